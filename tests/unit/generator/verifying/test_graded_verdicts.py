"""Numbers and components through the verifier's child: its lines, the user's functions, and what is no number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.processes import in_pool
from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.records.trajectory import Outcome
from vcppo.common.tasks import Problem, Task, Verdict
from vcppo.generator.verifying.scorer import Scorer
from vcppo.generator.verifying.verifier_lines import parse_reply, reply_line
from vcppo.generator.verifying.verifier_pool import VerifierPool

NUMBERS = st.floats(-1e6, 1e6)
VERDICTS = st.builds(
    Verdict,
    st.sampled_from(get_args(Outcome)),
    st.none() | st.text(max_size=20),
    st.none() | NUMBERS,
    st.dictionaries(st.from_regex(r"\Ac[a-z0-9_]{0,20}\Z"), NUMBERS, max_size=32),
)


@given(VERDICTS, st.integers(1, 2**40))
def test_a_verdict_survives_its_line_to_the_last_bit(verdict: Verdict, number: int) -> None:
    assert parse_reply(reply_line(number, verdict).encode(), number) == (verdict, None)


@pytest.mark.parametrize(
    "said",
    [
        '"reward": NaN, "components": {}',
        '"reward": 1e999, "components": {}',
        '"reward": "1", "components": {}',
        '"reward": null, "components": []',
        '"reward": null, "components": {"x": Infinity}',
        '"reward": null, "components": {"mean": 1.0}',
        '"reward": null',
    ],
)
def test_what_a_hostile_child_says_is_checked_too(said: str) -> None:
    line = f'{{"number": 1, "outcome": "correct", "extracted": null, "detail": null, {said}}}'
    with pytest.raises(ValueError):
        parse_reply(line.encode(), 1)


class Graded(Task):
    """Gives the number that the response names, and a component."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return []

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: str) -> Verdict:
        if response == "own format":
            return Verdict("wrong", None, components={"format": 1.0})
        if response == "nan part":
            return Verdict("correct", None, components={"steps": math.nan})
        if response == "plain":
            return Verdict("correct", None)
        return Verdict("wrong", response, float(response), {"steps": len(response)})


def brevity(answer: Mapping[str, object], response: str, finish_reason: str) -> float:
    if response == "9":
        raise RuntimeError("no nines")
    while response == "0.125":
        pass
    return 1 / len(response) if response != "8" else math.inf


NAME = f"{__name__}:Graded"
BREVITY = {"name": f"{__name__}:brevity", "weight": 0.5}
TASK: dict[str, Any] = {
    "name": NAME, "rewards": [BREVITY], "format_pattern": r"\d\.\d", "reward_weights": {"format": 0.25},
    "verifier_timeout_seconds": 1.0,
}  # fmt: skip


def test_functions_and_format_come_with_every_verdict_or_it_is_a_crash() -> None:
    async def body(pool: VerifierPool) -> None:
        found = await pool.verify({}, "0.5", "stop")
        assert found == ("wrong", "0.5", 0.5, {"steps": 3.0, "brevity": 1 / 3, "format": 1.0})
        assert (await pool.verify({}, "2", "stop")).components == {"steps": 1.0, "brevity": 1.0, "format": 0.0}
        assert (await pool.verify({}, "plain", "stop")).reward is None
        for response in ("nan", "inf", "1e7", "nan part", "8", "9", "own format"):
            with capture_logs() as logs:
                assert await pool.verify({}, response, "stop") == Verdict("crash", None), response
            assert [line["event"] for line in logs] == ["verifier_crash"] and logs[0]["detail"]
        assert await pool.verify({}, "0.125", "stop") == Verdict("timeout", None)
        assert (await pool.verify({}, "0.5", "stop")).reward == 0.5

    in_pool(body, TaskConfig.model_validate(TASK))


def test_a_score_is_verdict_and_rule_and_beyond_the_range_it_says_so() -> None:
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "task": {**TASK, "length_cost": 0.0625}})

    async def body(pool: VerifierPool) -> None:
        scorer = Scorer(config, pool)
        score = await scorer.score({}, "0.5", "stop", 4)
        assert score.reward == math.fsum([0.5, 0.5 / 3, 0.25, -0.25]) and score.outcome == "wrong"
        assert score.components == {
            "base": 0.5, "steps": 3.0, "brevity": 1 / 3, "format": 1.0, "length_cost": -0.25,
        }  # fmt: skip
        with capture_logs() as logs:
            score = await scorer.score({}, "5.0", "stop", 4)
        assert (score.outcome, score.reward, score.components) == ("crash", -1.25, {"length_cost": -0.25})
        assert [line["event"] for line in logs] == ["reward_out_of_range"]
        assert "beyond task.reward_range = [-17.5, 1.75]" in logs[0]["detail"]

    in_pool(body, config.task)
