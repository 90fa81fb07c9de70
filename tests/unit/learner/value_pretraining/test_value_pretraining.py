"""The recorded file survives a crash; the gate stops, keeps the best and says why; the split is by prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vcppo.common.config import ValuePretrainingConfig, VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.over_prompts import Figure, Interval
from vcppo.common.records.trajectory import Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.value_pretraining.gate import Gate, Measurement
from vcppo.learner.value_pretraining.gate_remedies import NEEDED_OF_EACH
from vcppo.learner.value_pretraining.recording_stats import count_responses
from vcppo.learner.value_pretraining.stage import enough_held_out, split_held_out


def trajectory(index: int) -> Trajectory:
    return Trajectory(
        id=f"vp-{index}@generator-0.0",
        prompt_id=f"vp-{index}",
        group_id=f"vp-g{index // 4}",
        sample_index=index % 4,
        task="t",
        prompt_token_ids=np.arange(4, dtype=np.int32),
        response_token_ids=np.arange(5, dtype=np.int32),
        action_mask=np.ones(5, np.bool_),
        behaviour_log_probs=np.full(5, -1.0, np.float32),
        version_spans=(VersionSpan(0, 5),),
        finish_reason="stop",
        reward=1.0,
        outcome="correct",
        generator_id="generator-0",
        issue_version=0,
    )


def payloads(*indices: int) -> list[bytes]:
    return [encode_trajectory(trajectory(i)) for i in indices]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value_pretraining" / "trajectories.msgpack"


def test_file_records_each_prompt_once_and_is_read_again(path: Path) -> None:
    file = TrajectoryFile(path)
    assert file.append(payloads(0, 1)) == 2
    assert file.append(payloads(1, 2)) == 1
    file.close()
    again = TrajectoryFile(path)
    assert [t.prompt_id for t in again.trajectories] == ["vp-0", "vp-1", "vp-2"]
    assert again.append(payloads(0)) == 0
    assert np.array_equal(again.trajectories[2].response_token_ids, np.arange(5))


def test_a_learner_that_was_replaced_overwrites_nothing_and_doubles_nothing(path: Path) -> None:
    """It was frozen right before it wrote; what it writes when it wakes up, its successor has written too."""
    old = TrajectoryFile(path)
    old.append(payloads(0))
    new = TrajectoryFile(path)
    new.append(payloads(1, 2))
    old.append(payloads(1))
    new.append(payloads(3))
    assert [t.prompt_id for t in TrajectoryFile(path).trajectories] == ["vp-0", "vp-1", "vp-2", "vp-3"]


@pytest.mark.parametrize("torn", [1, 7, 60])
def test_torn_tail_is_cut_off_and_written_anew(path: Path, torn: int) -> None:
    file = TrajectoryFile(path)
    file.append(payloads(0, 1))
    file.close()
    path.write_bytes(path.read_bytes()[:-torn])
    resumed = TrajectoryFile(path)
    assert len(resumed) == 1
    assert resumed.append(payloads(1)) == 1
    resumed.close()
    assert [t.prompt_id for t in TrajectoryFile(path).trajectories] == ["vp-0", "vp-1"]


def test_damage_in_the_middle_is_an_error_that_names_the_file(path: Path) -> None:
    file = TrajectoryFile(path)
    file.append(payloads(0, 1))
    file.close()
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(VcppoError, match=r"trajectories\.msgpack is damaged after 0 bytes"):
        TrajectoryFile(path)


def measure(step: int, found: float | None, loss: float = 0.1) -> Measurement:
    return Measurement(step, loss, found, None, None, None)


def test_gate_keeps_the_best_and_stops_when_it_no_longer_rises() -> None:
    gate = Gate(ValuePretrainingConfig(patience=2, min_delta=0.01, min_explained_variance=0.5))
    news = [gate.add(measure(step, found)) for step, found in enumerate([0.0, 0.4, 0.6, 0.605])]
    assert news == [True, True, True, False]
    assert not gate.out_of_patience
    gate.add(measure(4, 0.55))
    assert gate.out_of_patience
    decision = gate.decision()
    assert decision["passed"]
    assert (decision["best_step"], decision["best_explained_variance"]) == (2, 0.6)
    assert "2 measurements" in decision["stopped_because"]


def test_patience_does_not_run_while_values_move_into_range() -> None:
    """Figures of a run that an earlier gate stopped at step 15: the loss falls first, explained variance follows."""
    gate = Gate(ValuePretrainingConfig(patience=3))
    seen = [(0.0, 0.5), (-0.07, 0.417), (-0.136, 0.212), (-0.023, 0.052)]
    for step, (found, loss) in enumerate(seen):
        gate.add(measure(5 * step, found, loss))
    assert not gate.out_of_patience
    for step in range(4, 7):
        assert not gate.out_of_patience
        gate.add(measure(5 * step, -0.02, 0.051))
    assert gate.out_of_patience


def test_gate_does_not_pass_on_undefined_or_low_explained_variance() -> None:
    gate = Gate(ValuePretrainingConfig(min_explained_variance=0.3))
    gate.add(measure(0, None))
    assert not gate.decision()["passed"]
    gate.add(measure(5, 0.29))
    assert not gate.decision()["passed"]
    assert "max_steps" in gate.decision()["stopped_because"]


@pytest.mark.parametrize(("threshold", "passed"), [(-10.0, True), (0.0, True), (0.01, False)])
def test_returns_that_do_not_vary_pass_only_a_gate_that_asks_for_nothing(threshold: float, passed: bool) -> None:
    """By chance none of few held-out responses is right: no critic can be measured."""
    gate = Gate(ValuePretrainingConfig(min_explained_variance=threshold))
    saved = [gate.add(measure(step, None, loss)) for step, loss in enumerate([0.5, 0.2, 0.21, 0.1])]
    assert saved == [True, True, False, True]  # there is a critic to go on with: the one of the lowest loss
    decision = gate.decision(Figure(None, None))
    assert decision["passed"] == passed
    assert (decision["best_step"], decision["best_explained_variance"]) == (3, None)


def test_a_figure_is_better_than_none() -> None:
    gate = Gate(ValuePretrainingConfig())
    assert [gate.add(measure(0, None, 0.1)), gate.add(measure(1, -0.5, 0.3)), gate.add(measure(2, None, 0.01))] == [
        True, True, False,
    ]  # fmt: skip
    assert gate.decision()["best_step"] == 1


def test_gate_goes_by_the_judged_figure_not_by_the_best_one() -> None:
    gate = Gate(ValuePretrainingConfig(min_explained_variance=0.3))
    gate.add(measure(0, 0.35))
    assert gate.decision()["passed"]
    decision = gate.decision(Figure(0.25, Interval(0.1, 0.4)))
    assert not decision["passed"]
    assert not decision["certain"]
    assert (decision["explained_variance"], decision["best_explained_variance"]) == (0.25, 0.35)
    assert gate.decision(Figure(0.45, Interval(0.31, 0.6)))["certain"]
    assert not gate.decision(Figure(None, None))["passed"]


def test_a_cap_that_ends_a_rise_is_said() -> None:
    gate = Gate(ValuePretrainingConfig(patience=4, max_steps=20))
    for step, found in enumerate([0.0, 0.1, 0.2, 0.3]):
        gate.add(measure(5 * step, found))
    assert gate.decision()["cut_short"]
    assert gate.decision()["stopped_because"] == "max_steps = 20 reached while it still got better"
    gate.add(measure(20, 0.3))
    assert not gate.decision()["cut_short"]


def answer(index: int, outcome: str, length: int = 5, finish: str = "stop") -> Trajectory:
    reward = 1.0 if outcome == "correct" else -1.0
    base = trajectory(index)
    return replace(
        base,
        response_token_ids=np.arange(length, dtype=np.int32),
        action_mask=np.ones(length, np.bool_),
        outcome=outcome,  # type: ignore[arg-type]
        reward=reward,
        finish_reason=finish,  # type: ignore[arg-type]
    )


def test_counts_stand_beside_rates() -> None:
    counts = count_responses(
        [answer(0, "correct"), answer(1, "wrong", 9), answer(2, "unparsable", 20, "length"), answer(3, "wrong"),
         answer(4, "wrong"), answer(5, "wrong", 1)]
    )  # fmt: skip
    assert counts.outcomes == {"correct": 1, "wrong": 4, "unparsable": 1, "timeout": 0, "crash": 0}
    assert (counts.num_right, counts.num_not_right, counts.num_rarer) == (1, 5, 1)
    assert (counts.num_prompts, counts.num_mixed, counts.num_repeated) == (2, 1, 2)
    metrics = counts.metrics()
    assert metrics["vp/num_outcome/wrong"] == 4
    assert metrics["vp/outcome/wrong"] == pytest.approx(2 / 3)
    assert metrics["vp/cut_fraction"] == pytest.approx(1 / 6)
    assert metrics["vp/reward"] == pytest.approx(-2 / 3)
    assert (metrics["vp/length/mean"], metrics["vp/length/max"]) == (7.5, 20)
    assert metrics["vp/prompts_with_both_fraction"] == 0.5
    said = counts.as_text()
    assert said["correct"] == "1 (16.7%)"
    assert said["prompts_with_both"] == "1 of 2"
    assert count_responses([]).metrics()["vp/accuracy"] == 0.0


def test_the_fraction_that_would_do_does() -> None:
    """Of 64 prompts each fifth has right responses: following the remedy holds out enough of both kinds."""
    config = VcppoConfig.model_validate(
        {
            "model": {"path": "m"},
            "rl": {"group_size": 4, "batch_size": 16},
            "value_pretraining": {"num_trajectories": 256, "batch_size": 32},
        }
    )
    answers = [answer(i, "correct" if (i // 4) % 5 == 0 and i % 4 else "wrong") for i in range(256)]
    fraction = enough_held_out(answers, config)
    assert fraction is not None
    stage = config.value_pretraining.model_copy(update={"held_out_fraction": fraction})
    held_out = split_held_out(answers, stage.num_held_out_groups(4), config.run.seed)[1]
    assert count_responses(held_out).num_rarer >= NEEDED_OF_EACH
    smaller = stage.model_copy(update={"held_out_fraction": fraction - 0.04})
    held_out = split_held_out(answers, smaller.num_held_out_groups(4), config.run.seed)[1]
    assert count_responses(held_out).num_rarer < NEEDED_OF_EACH
    assert enough_held_out([answer(i, "wrong") for i in range(256)], config) is None


def test_split_keeps_prompts_whole_and_does_not_depend_on_order() -> None:
    trajectories = [trajectory(i) for i in range(40)]
    train, held_out = split_held_out(trajectories, 3, seed=7)
    assert len({t.group_id for t in held_out}) == 3
    assert len(held_out) == 12
    assert not {t.group_id for t in train} & {t.group_id for t in held_out}
    again = split_held_out(trajectories[::-1], 3, seed=7)[1]
    assert {t.id for t in again} == {t.id for t in held_out}
    assert {t.group_id for t in split_held_out(trajectories, 3, seed=8)[1]} != {t.group_id for t in held_out}


def test_split_with_an_empty_side_names_the_fields() -> None:
    same = [replace(trajectory(i), group_id="g") for i in range(4)]
    with pytest.raises(VcppoError, match="held_out_fraction"):
        split_held_out(same, 1, seed=0)
