"""Rollouts of several conversations: each a trajectory for GAE, one response for baselines, weights and accounts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.learner.rl.test_estimates import BETA, estimates, kl_rows, numbers, rows
from tests.unit.rig import oracle
from tests.unit.rig.learner_samples import as_rollout, mixed_batch, trajectory
from tests.unit.rig.written_samples import write_step
from vcppo.common.errors import VcppoError
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trained_log import check_trained_once, read_trained_log
from vcppo.common.records.trajectory import VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.learner.algorithm.aggregation import loss_denominator
from vcppo.learner.batching.batch import Batch, mini_batches
from vcppo.learner.critic_quality.vs_prompt_mean import critic_worth
from vcppo.learner.critic_training.lesson import Lesson, Study
from vcppo.learner.rl.step_metrics import step_metrics
from vcppo.learner.rl.suspects import require_finite
from vcppo.learner.rl.trained_log import TrainedLog
from vcppo.learner.rl.update_stats import UpdateStats

OF_ROLLOUT = [0, 0, 0, 1, 2, 2, 3]
"""Which rollout each trajectory of `batch_of` belongs to: three conversations, one, two, one."""
GROUPS = ["g0", "g0", "g1", "g1"]
REWARDS = [1.0, -0.5, 0.25, -1.0]


def batch_of(seed: int = 0) -> Batch:
    """Four rollouts of two groups; the second conversation of the first is cut off."""
    found = mixed_batch(seed)
    whole = [
        as_rollout(*[each for each, r in zip(found, OF_ROLLOUT, strict=True) if r == number]) for number in range(4)
    ]
    return Batch(
        [
            replace(each, group_id=group, reward=reward, outcome="correct" if reward > 0 else "wrong")
            for each, group, reward in zip(whole, GROUPS, REWARDS, strict=True)
        ],
        version=0,
    )  # fmt: skip


def test_trajectories_stand_behind_each_other_by_rollout() -> None:
    batch = batch_of()
    assert (len(batch), len(batch.rollouts), batch.prompt_ids) == (7, 4, ["p0", "p3", "p4", "p6"])
    assert batch.rollout_numbers.tolist() == OF_ROLLOUT and batch.rollout_cu_seqlens.tolist() == [0, 3, 4, 6, 7]
    assert batch.outcome_rewards.tolist() == [REWARDS[r] for r in OF_ROLLOUT]
    assert [each.id for each in batch.trajectories][:3] == [
        "p0@generator-0.0",
        "p0@generator-0.0#1",
        "p0@generator-0.0#2",
    ]
    assert batch.rollout_action_cu_seqlens.tolist() == [int(batch.action_cu_seqlens[i]) for i in (0, 3, 4, 6, 7)]
    assert batch.sequences_of([2, 0]) == [4, 5, 0, 1, 2] and batch.rollouts_of([5, 0, 4]) == [0, 2]
    assert batch.truncated.tolist() == [False, True, False, False, False, False, False]
    again = Batch.decode([encode_trajectory(each) for each in batch.rollouts], 0)
    assert [each.id for each in again.trajectories] == [each.id for each in batch.trajectories]
    assert np.array_equal(again.behaviour_log_probs, batch.behaviour_log_probs)


@pytest.mark.parametrize("truncation", ["terminal", "bootstrap"])
@pytest.mark.parametrize("lambda_critic", [1.0, 0.9])
def test_each_conversation_ends_with_the_rollouts_reward(truncation: str, lambda_critic: float) -> None:
    """GAE and targets of each conversation alone, by the oracle: nothing flows from one into another."""
    batch = batch_of()
    given: dict[str, Any] = {k: v for k, v in numbers(batch, 3).items() if k != "reference_log_probs"}
    got = estimates(
        batch, given, truncation=truncation, lambda_actor=0.8, lambda_critic=lambda_critic, whiten_advantages=False
    )
    for i, values in enumerate(rows(batch, given["values"])):
        is_bootstrapped = truncation == "bootstrap" and batch.truncated[i]
        final = float(given["last_values"][i]) if is_bootstrapped else 0.0
        rewards = [0.0] * (len(values) - 1) + [0.0 if is_bootstrapped else REWARDS[OF_ROLLOUT[i]]]
        here = slice(int(batch.action_cu_seqlens[i]), int(batch.action_cu_seqlens[i + 1]))
        advantages, targets = got.raw_advantages[here], got.value_targets[here]
        np.testing.assert_allclose(advantages, oracle.gae(rewards, values, final, 0.8), atol=1e-4)
        np.testing.assert_allclose(targets, oracle.value_targets(rewards, values, final, lambda_critic), atol=1e-4)
        assert got.returns[here].tolist() == [REWARDS[OF_ROLLOUT[i]]] * len(values)


WANTED = {
    "group_centred": [0.75, -0.75, 0.625, -0.625],
    "leave_one_out": [1.5, -1.5, 1.25, -1.25],
    "group_mean": [1.0, -1.0, 1.0, -1.0],
    "reinforce_plus_plus_baseline": [0.75, -0.75, 0.625, -0.625],
}  # by hand, of rewards (1, -0.5) and (0.25, -1)


@pytest.mark.parametrize("estimator", WANTED)
def test_a_rollout_counts_once_in_its_groups_baseline(estimator: str) -> None:
    """Were its three conversations counted, the first group's mean would be 0.625."""
    batch = batch_of()
    given: dict[str, Any] = {k: v for k, v in numbers(batch, 3).items() if k != "reference_log_probs"}
    got = estimates(batch, given, advantage_estimator=estimator, whiten_advantages=False).raw_advantages
    for i, each in enumerate(rows(batch, got)):
        assert each == pytest.approx([WANTED[estimator][OF_ROLLOUT[i]]] * len(each), abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_of_all_its_conversations_is_in_a_rollouts_reward(estimator: str) -> None:
    batch = batch_of()
    given = numbers(batch, 3)
    got = estimates(
        batch, given, advantage_estimator="leave_one_out", kl_in="reward", kl_estimator=estimator, kl_coefficient=BETA
    )
    kl = [sum(each) for each in kl_rows(batch, given, estimator)]
    totals = [
        REWARDS[r] - BETA * sum(k for k, of in zip(kl, OF_ROLLOUT, strict=True) if of == r) for r in range(4)
    ]  # fmt: skip
    wanted = [totals[0] - totals[1], totals[1] - totals[0], totals[2] - totals[3], totals[3] - totals[2]]
    for i, each in enumerate(rows(batch, got.raw_advantages)):
        assert each == pytest.approx([wanted[OF_ROLLOUT[i]]] * len(each), rel=1e-4)


@pytest.mark.parametrize(("kind", "denominators"), [("sequence", (4, 2)), ("fixed_length", (400, 200))])
def test_a_rollout_weighs_in_the_loss_as_one_response(kind: str, denominators: tuple[int, int]) -> None:
    batch = batch_of()
    given: dict[str, Any] = {k: v for k, v in numbers(batch, 3).items() if k != "reference_log_probs"}
    got, cu = estimates(batch, given, aggregation=kind), batch.rollout_action_cu_seqlens
    for members, denominator in zip((range(7), [4, 5, 3]), denominators, strict=True):
        chosen = batch.rollouts_of(list(members))
        assert loss_denominator(got.actor_mask, cu, chosen, kind, 100) == denominator  # type: ignore[arg-type]
    weights = [float(got.loss_weights[cu[r] : cu[r + 1]].sum()) for r in range(4)]
    lengths = np.diff(cu).tolist()
    assert weights == pytest.approx([1.0] * 4 if kind == "sequence" else lengths)


def test_a_mini_batch_has_whole_rollouts() -> None:
    batch = batch_of()
    parts = mini_batches(batch, 3, seed=1, step=5, epoch=0)
    assert sorted(i for part in parts for i in part) == list(range(7))
    found = [{OF_ROLLOUT[i] for i in part} for part in parts]
    assert sum(map(len, found)) == 4


def test_the_mean_of_others_has_no_conversation_of_the_same_rollout() -> None:
    """All returns of one group's only rollout are its own outcome: a companion would have told it."""
    cu = np.array([0, 4, 7, 9, 12], np.int64)
    returns = np.repeat([1.0, 1.0, -1.0, 1.0], np.diff(cu))
    found = critic_worth(
        returns * 0, returns, cu, ["a", "a", "a", "b"], np.zeros(4, np.int64), 1, np.array([0, 0, 1, 2])
    )
    assert found.num_responses == 2
    weights = np.ones(9).tolist()
    assert found.prompt_mean.token == pytest.approx(
        oracle.explained_variance([-1.0] * 7 + [1.0] * 2, returns[:9].tolist(), weights)
    )


def test_figures_are_of_rollouts() -> None:
    batch = batch_of()
    batch = Batch([replace(each, timings={"environment": 2.0}) for each in batch.rollouts], 0)
    given: dict[str, Any] = {k: v for k, v in numbers(batch, 3).items() if k != "reference_log_probs"}
    got = step_metrics(batch, estimates(batch, given), UpdateStats(num_buckets=1), {"step": 1.0}, has_critic=True)
    assert (got["reward/mean"], got["reward/accuracy"], got["reward/num_responses"]) == (-0.0625, 0.5, 4)
    assert (got["length/mean"], got["length/truncated_fraction"]) == (batch.num_actions / 4, 0.0)
    assert (got["turns/segments"], got["turns/segments_max"]) == (7 / 4, 3)
    assert got["turns/mean"] == sum(each.num_turns for each in batch.trajectories) / 4
    alone = Batch([replace(each, segments=()) for each in batch.rollouts], 0)
    given = {k: v for k, v in numbers(alone, 3).items() if k != "reference_log_probs"}
    got = step_metrics(alone, estimates(alone, given), UpdateStats(num_buckets=1), {"step": 1.0}, has_critic=True)
    assert "turns/mean" in got and "turns/segments" not in got


def test_the_trained_log_names_every_trajectory_and_counts_rollouts(tmp_path: Path) -> None:
    path, batch = tmp_path / "trained.jsonl", batch_of()
    older = replace(batch.rollouts[2], segments=(batch.rollouts[2].segments[0]._replace(
        version_spans=(VersionSpan(0, len(batch.rollouts[2].segments[0].response_token_ids)),)),))  # fmt: skip
    rollouts = [replace(each, version_spans=(VersionSpan(2, len(each.response_token_ids)),)) for each in batch.rollouts]
    rollouts[2] = replace(rollouts[2], segments=older.segments)
    log = TrainedLog(path)
    log.append(3, Batch(rollouts, version=2))
    line = read_trained_log(path)[3]
    assert line["prompt_ids"] == ["p0", "p3", "p4", "p6"] and line["staleness"] == [2, 0, 2, 0]
    assert line["trajectory_ids"] == [f"{name}@generator-0.0" for name in line["prompt_ids"]]
    assert line["segment_ids"] == ["p0@generator-0.0#1", "p0@generator-0.0#2", "p4@generator-0.0#1"]
    assert check_trained_once(path, max_staleness=2) == 4
    log.append(4, Batch([replace(batch.rollouts[0], id="another@g.0", prompt_id="another")], version=2))
    text = path.read_text()
    path.write_text(text.replace("another@g.0#1", "p0@generator-0.0#1"))
    with pytest.raises(VcppoError, match=r"1 segment_ids were trained more than once, e.g. \['p0@generator-0.0#1'\]"):
        check_trained_once(path, max_staleness=2)
    log.append(5, Batch([replace(rollouts[1])], version=2))
    assert "segment_ids" not in json.loads(path.read_text().splitlines()[-1])  # as before there were any


def test_samples_say_which_conversation_each_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = trajectory(rng, "p0", 3, 5), trajectory(rng, "p0", 2, 4)
    write_step(tmp_path, 1, [as_rollout(first, second), trajectory(rng, "p1", 3, 2)], [str(i) for i in range(32)])
    heads = {head["id"]: head for head in SampleTable(tmp_path / "step-000001.parquet").heads()}
    assert {name: head["segment"] for name, head in heads.items()} == {
        "p0@generator-0.0": 0, "p0@generator-0.0#1": 1, "p1@generator-0.0": 0,
    }  # fmt: skip
    assert heads["p0@generator-0.0#1"]["prompt_token_ids"] == second.prompt_token_ids.tolist()
    assert heads["p0@generator-0.0#1"]["reward"] == first.reward


def test_a_critics_lesson_is_read_as_it_was_written(tmp_path: Path) -> None:
    batch = batch_of()
    given: dict[str, Any] = {k: v for k, v in numbers(batch, 3).items() if k != "reference_log_probs"}
    Study([Lesson.of(batch, estimates(batch, given), [1, 4])], 1).save(tmp_path / "study")
    (found,) = Study.load(tmp_path / "study").lessons
    assert [each.id for each in found.batch.trajectories] == [each.id for each in batch.trajectories]
    assert found.held_out == (1, 4) and len(found.batch.rollouts) == 4


def test_numbers_that_are_not_finite_name_the_prompt() -> None:
    batch = batch_of()
    values = np.zeros(batch.num_actions, np.float32)
    values[batch.action_cu_seqlens[5]] = np.nan
    with pytest.raises(VcppoError, match=r"the values of 1 of 4 trajectories are not finite: \['p4'\]"):
        require_finite(batch, {"values": values})
