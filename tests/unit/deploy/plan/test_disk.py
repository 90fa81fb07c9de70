"""What a run writes into its folder, against sums made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.deploy.plan.test_plan import both, config
from vcppo.deploy.plan.disk import disk_plan

MODEL = "Qwen/Qwen2.5-0.5B"
WEIGHTS = 2 * 494_032_768  # bfloat16


def parts(**sections: Any) -> dict[str, int]:
    plan = disk_plan(both(MODEL), config(**sections))
    assert plan.certain == sum(size for name, size in plan.parts if name not in ("recording", "redis"))
    assert plan.total == sum(size for _, size in plan.parts)
    return dict(plan.parts)


def test_without_evaluations_there_is_one_export() -> None:
    found = parts()
    assert (found["export"], found["exports on the way"]) == (WEIGHTS, 0)


@pytest.mark.parametrize("settings", [{"every": 5}, {"at_start": True}])
def test_the_best_version_takes_three_exports_and_a_checkpoint(settings: dict[str, Any]) -> None:
    """The one that is being evaluated, the best, and the last; and the best one's checkpoint."""
    plain, found = parts(), parts(eval=settings)
    assert found["exports on the way"] == 3 * WEIGHTS
    assert found["checkpoints"] == plain["checkpoints"] // 3 * 4  # keep_checkpoints is 2, one more is being written
    assert parts(eval={**settings, "keep_best": False}) == plain


def test_regular_exports_are_as_many_as_there_will_be() -> None:
    found = parts(learner={"export_every": 8}, rl={"num_steps": 20})
    assert found["exports on the way"] == 2 * WEIGHTS
