"""Pairs for a reward model, and its loss. That it learns: tests/integration/learner/cold_start/test_reward_model.py."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from vcppo.common.config import TaskConfig
from vcppo.common.errors import VcppoError
from vcppo.common.tasks import load_task
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.cold_start.preference_pairs import Prefixes, RolloutPairs, longer_against_shorter, one_digit_changed
from vcppo.learner.cold_start.reward_model import pair_loss


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


def test_one_digit_changes_and_nothing_else() -> None:
    text = "<think>#A4*8+6=38;\n</think>038"
    for seed in range(50):
        changed = one_digit_changed(text, random.Random(seed))
        different = [(a, b) for a, b in zip(text, changed, strict=True) if a != b]
        assert len(different) == 1
        assert all(symbol.isdigit() for symbol in different[0])


def test_no_digit_is_an_error_with_a_remedy() -> None:
    with pytest.raises(VcppoError, match=r"reward_model\.rollouts"):
        one_digit_changed("none", random.Random(0))


def test_a_longer_part_beats_a_shorter_one() -> None:
    complete = 0
    for seed in range(200):
        pair = longer_against_shorter(ids(1, 2), ids(*range(3, 9)), random.Random(seed), complete=False)
        assert len(pair.better.response_token_ids) > len(pair.worse.response_token_ids) >= 1
        assert pair.complete == (len(pair.better.response_token_ids) == 6, False)
        complete += pair.complete[0]
        whole = longer_against_shorter(ids(1, 2), ids(*range(3, 9)), random.Random(seed), complete=True)
        assert len(whole.better.response_token_ids) == 6 > len(whole.worse.response_token_ids)
    assert 0 < complete < 200


def rollout(group: str, index: int, outcome: str):  # type: ignore[no-untyped-def]
    made = as_trajectory(ids(1), ids(2, 3, 4))
    return replace(made, group_id=group, prompt_id=f"{group}-{index}", sample_index=index, outcome=outcome)


def test_rollouts_pair_right_with_wrong_of_one_prompt() -> None:
    rollouts = [rollout("a", 0, "correct"), rollout("a", 1, "wrong"), rollout("b", 0, "correct")]
    pairs = RolloutPairs(rollouts, Prefixes(0.0)).draw(0, 20)
    assert {(pair.better.prompt_id, pair.worse.prompt_id) for pair in pairs} == {("a-0", "a-1")}
    assert pairs == RolloutPairs(rollouts[::-1], Prefixes(0.0)).draw(0, 20)


def test_rollouts_without_a_mixed_prompt_are_refused() -> None:
    with pytest.raises(VcppoError, match="none of its 2 prompts"):
        RolloutPairs([rollout("a", 0, "correct"), rollout("b", 0, "wrong")], Prefixes(0.0))


def test_loss_is_bradley_terry_with_centring_of_complete_pairs() -> None:
    scores = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
    loss = pair_loss(scores, torch.tensor([True, False, True]), centre=0.5)
    expected = [np.log1p(np.exp(-1.0)) + 0.5 * 1.5**2, np.log1p(np.exp(3.0)), np.log(2.0) + 0.5 * 1.0]
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)


def test_the_tasks_own_demonstrations_make_pairs() -> None:
    from transformers import PreTrainedTokenizerFast

    from vcppo.learner.cold_start.preference_pairs import DemonstrationPairs

    task = load_task(TaskConfig(name="chain_arithmetic", options={"num_operations": 1}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=task.tokenizer(), pad_token="<pad>", eos_token="<eos>")
    pairs = DemonstrationPairs(task, tokenizer, {}, Prefixes(0.5)).draw(3, 40)
    whole = [pair for pair in pairs if all(pair.complete)]
    assert 10 < len(whole) < 30
    for pair in whole:
        better, worse = pair.better.response_token_ids, pair.worse.response_token_ids
        assert better[-1] == tokenizer.eos_token_id
        assert (better != worse).sum() == 1
