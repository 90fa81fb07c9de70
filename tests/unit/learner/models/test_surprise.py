"""A critic that sees what tokens were sampled with: its values by hand, its start, its folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2ForSequenceClassification

from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy, tiny_config
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import CriticModel, load_critic, save_model
from vcppo.learner.models.surprise import SurpriseRefused

NAME = "surprise_input.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def seeing(folder: Path, **how: object) -> CriticModel:
    """A critic whose head and input are not zeros."""
    critic = load_critic(folder, sees_log_probs=True, **how)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        critic.hf_model.score.weight.normal_(generator=generator)
        critic.hf_model.surprise_input.weight.normal_(std=0.3, generator=generator)
    return critic


def batch() -> list[Trajectory]:
    """With a token below the clamp, one beyond it, one a rounding above 0, and noise where there is no action."""
    made, rng = mixed_batch(), np.random.default_rng(2)
    log_probs = made[1].behaviour_log_probs.copy()
    log_probs[0], log_probs[-1] = -50.0, 1e-4
    made[1] = replace(made[1], behaviour_log_probs=log_probs, action_mask=np.ones(len(log_probs), np.bool_))
    for i, each in enumerate(made[2:], start=2):
        noise = np.where(each.action_mask, each.behaviour_log_probs, rng.normal(-3, 1, len(each.action_mask)))
        made[i] = replace(each, behaviour_log_probs=noise.astype(np.float32))
    return made


def by_hand(critic: CriticModel, each: Trajectory) -> Tensor:
    """``[T]`` V of the state after each token but the last of one response, in Hugging Face's own model."""
    state = critic.hf_model.state_dict()
    weight = state.pop(NAME)
    model = Qwen2ForSequenceClassification(tiny_config(num_labels=1)).float().eval()
    model.load_state_dict(state)
    tokens = [*each.prompt_token_ids.tolist(), *each.response_token_ids.tolist()]
    rows = []
    for place, token in enumerate(tokens):
        row = model.model.embed_tokens.weight[token].clone()
        at = place - len(each.prompt_token_ids)
        if at >= 0 and each.action_mask[at]:
            nats = min(10.0, max(0.0, -float(each.behaviour_log_probs[at])))
            row += 20 * (nats / 3 * weight[:, 0] + (1.0 if nats > 2 else 0.0) * weight[:, 1])
        rows.append(row)
    hidden = model.model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0]
    values: Tensor = model.score(hidden)[:, 0]
    return values


@pytest.mark.parametrize("checkpointing", [False, True])
def test_values_are_those_of_embeddings_made_by_hand(folder: Path, checkpointing: bool) -> None:
    critic = seeing(folder, recomputed_every=int(checkpointing))
    trajectories = batch()
    with torch.no_grad():
        out = critic(build_packed(trajectories))
        expected, ends = [], []
        for each in trajectories:
            values = by_hand(critic, each)
            places = len(each.prompt_token_ids) + np.flatnonzero(each.action_mask) - 1
            expected.append(values[torch.from_numpy(places)])
            ends.append(values[-1])
        torch.testing.assert_close(out.values, torch.cat(expected), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.last_values, torch.stack(ends), atol=1e-4, rtol=1e-4)
        blind = build_packed([replace(t, behaviour_log_probs=0 * t.behaviour_log_probs) for t in trajectories])
        assert (critic(blind).values - out.values).abs().max() > 0.05


def test_a_value_does_not_see_the_action_it_is_the_baseline_of(folder: Path) -> None:
    critic, each = seeing(folder), batch()[1]
    actions = np.flatnonzero(each.action_mask)
    at = len(actions) // 2
    log_probs = each.behaviour_log_probs.copy()
    log_probs[actions[at]] -= 4.0
    with torch.no_grad():
        before = critic(build_packed([each])).values
        after = critic(build_packed([replace(each, behaviour_log_probs=log_probs)])).values
    assert torch.equal(before[: at + 1], after[: at + 1])
    assert not torch.equal(before[at + 1 :], after[at + 1 :])


def test_prompt_and_tool_tokens_have_no_surprise() -> None:
    trajectories = batch()
    packed = build_packed(trajectories)
    expected = torch.zeros(packed.num_tokens)
    expected[packed.action_index] = torch.from_numpy(
        np.concatenate([-t.behaviour_log_probs[t.action_mask] for t in trajectories])
    ).clamp(0, 10)
    assert packed.surprise.dtype == torch.float32
    assert torch.equal(packed.surprise, expected)
    assert packed.surprise.max() == 10
    assert packed.surprise.min() == 0
    assert build_packed([]).surprise.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_first_it_is_the_critic_without_and_gradients_reach_it(
    folder: Path, dtype: torch.dtype, checkpointing: bool
) -> None:
    packed, found = build_packed(batch()), []
    for sees in (False, True):
        critic = load_critic(folder, sees_log_probs=sees, dtype=dtype, recomputed_every=int(checkpointing))
        torch.nn.init.normal_(critic.hf_model.score.weight, generator=torch.Generator().manual_seed(0))
        found.append(critic(packed).values)
    assert torch.equal(*found)
    assert found[1].dtype == torch.float32
    found[1].square().sum().backward()
    weight = critic.hf_model.surprise_input.weight
    assert weight.dtype == dtype
    assert torch.isfinite(weight.grad).all()
    assert (weight.grad.abs().amax(0) > 0).all()


def test_a_dummy_has_a_gradient_of_zeros(folder: Path) -> None:
    critic = seeing(folder)
    out = critic(build_packed([]))
    (out.values.sum() + 0 * out.last_values.sum()).backward()
    assert critic.hf_model.surprise_input.weight.grad.abs().max() == 0


@pytest.mark.parametrize("bins", [None, ValueBins(-1.0, 1.0, 21)])
def test_a_saved_critic_comes_back(folder: Path, tmp_path: Path, bins: ValueBins | None) -> None:
    critic = seeing(folder, bins=bins)
    save_model(critic, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vcppo_sees_log_probs"] is True
    again = load_critic(folder, init=str(tmp_path), bins=bins, sees_log_probs=True)
    packed = build_packed(batch())
    assert torch.equal(again(packed).values, critic(packed).values)
    save_model(again, tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")[NAME], critic.hf_model.surprise_input.weight)


def test_one_in_several_files_comes_back(folder: Path, tmp_path: Path) -> None:
    critic = seeing(folder)
    critic.hf_model.save_pretrained(str(tmp_path), max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = load_critic(folder, init=str(tmp_path), sees_log_probs=True)
    assert torch.equal(again.hf_model.surprise_input.weight, critic.hf_model.surprise_input.weight)


def test_a_reward_model_and_an_older_critic_start_with_zeros(folder: Path, tmp_path: Path) -> None:
    Qwen2ForSequenceClassification(tiny_config(num_labels=1)).float().save_pretrained(str(tmp_path))
    packed = build_packed(batch())
    without = load_critic(folder, init=str(tmp_path))
    critic = load_critic(folder, init=str(tmp_path), sees_log_probs=True)
    assert critic.hf_model.surprise_input.weight.abs().max() == 0
    assert torch.equal(critic(packed).values, without(packed).values)


def test_a_folder_that_sees_them_is_refused_by_a_run_that_does_not(folder: Path, tmp_path: Path) -> None:
    save_model(seeing(folder), tmp_path)
    with pytest.raises(SurpriseRefused, match=r"critic at .* was trained with critic.sees_log_probs = true") as refused:
        load_critic(folder, init=str(tmp_path))
    assert refused.value.exit_code == EXIT_REFUSED


@pytest.mark.parametrize("damage", ["missing", "narrow"])
def test_a_folder_without_the_weights_it_states_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    save_model(seeing(folder), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    weight = tensors.pop(NAME)
    save_file(tensors if damage == "missing" else tensors | {NAME: weight[:4].clone()}, file, {"format": "pt"})
    with pytest.raises(SurpriseRefused, match=r"have no surprise_input.weight of shape \(32, 2\)"):
        load_critic(folder, init=str(tmp_path), sees_log_probs=True)
