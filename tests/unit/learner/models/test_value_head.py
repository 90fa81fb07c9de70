"""Critics with a head of bins: what they say at first, how they are saved, and which folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen2ForSequenceClassification

from tests.unit.rig import oracle
from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy, tiny_config
from vcppo.common.errors import EXIT_REFUSED
from vcppo.learner.algorithm.value_bins import ValueBins, categorical_value_loss
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import load_critic, save_model
from vcppo.learner.models.value_head import HeadRefused

BINS = ValueBins(0.0, 2.0, 21, sigma_ratio=0.75)
TWO_HOT = ValueBins(-1.0, 1.0, 21)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("bins", [BINS, TWO_HOT])
def test_a_new_head_says_the_middle_of_its_range_and_learns(folder: Path, bins: ValueBins) -> None:
    critic = load_critic(folder, bins=bins)
    out = critic(build_packed(mixed_batch()))
    middle = (bins.low + bins.high) / 2
    torch.testing.assert_close(out.values, torch.full_like(out.values, middle), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.last_values, torch.full((7,), middle), atol=1e-6, rtol=0)
    assert out.logits.shape == (len(out.values), bins.num_bins)
    loss = categorical_value_loss(out.logits, torch.ones_like(out.values), bins, num_tokens=len(out.values))
    loss.value.backward()
    assert critic.hf_model.score.weight.grad.abs().max() > 0


def test_packing_changes_no_value_and_plain_transformers_gives_the_same(folder: Path, tmp_path: Path) -> None:
    critic = load_critic(folder, bins=BINS)
    torch.nn.init.normal_(critic.hf_model.score.weight, generator=torch.Generator().manual_seed(0))
    save_model(critic, tmp_path)
    batch = mixed_batch()
    with torch.no_grad():
        packed = critic(build_packed(batch)).last_values
        alone = torch.cat([critic(build_packed([each])).last_values for each in batch])
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).float()
        centres, expected = BINS.centres(packed).tolist(), []
        for each in batch:
            tokens = torch.tensor([[*each.prompt_token_ids.tolist(), *each.response_token_ids.tolist()]])
            probabilities = oracle.softmax(plain(tokens).logits[0].tolist())
            expected.append(sum(p * c for p, c in zip(probabilities, centres, strict=True)))
    assert packed.std() > 0.05
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bins", [BINS, TWO_HOT])
def test_a_saved_critic_comes_back(folder: Path, tmp_path: Path, bins: ValueBins) -> None:
    critic = load_critic(folder, bins=bins)
    torch.nn.init.normal_(critic.hf_model.score.weight)
    save_model(critic, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vcppo_value_head"] == bins.as_json()
    again = load_critic(folder, init=str(tmp_path), bins=bins)
    packed = build_packed(mixed_batch())
    assert torch.equal(again(packed).values, critic(packed).values)


def test_bfloat16_weights_give_float32_logits(folder: Path) -> None:
    out = load_critic(folder, bins=BINS, dtype=torch.bfloat16)(build_packed(mixed_batch()))
    assert out.values.dtype == out.logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        (TWO_HOT, None),
        (None, TWO_HOT),
        (TWO_HOT, ValueBins(-1.0, 1.0, 21, 0.75)),
        (TWO_HOT, ValueBins(-1.0, 1.0, 31)),
        (TWO_HOT, ValueBins(-1.0, 2.0, 21)),
    ],
)
def test_a_folder_with_another_head_is_refused_by_name(
    folder: Path, tmp_path: Path, saved: ValueBins | None, wanted: ValueBins | None
) -> None:
    save_model(load_critic(folder, bins=saved), tmp_path)
    with pytest.raises(HeadRefused, match=r"the critic at .* has critic\.head = .*asks for critic\.head = ") as refused:
        load_critic(folder, init=str(tmp_path), bins=wanted)
    assert refused.value.exit_code == EXIT_REFUSED


def test_a_reward_model_is_no_critic_with_bins(folder: Path, tmp_path: Path) -> None:
    Qwen2ForSequenceClassification(tiny_config(num_labels=1)).float().save_pretrained(str(tmp_path))
    with pytest.raises(HeadRefused, match=r"has critic\.head = scalar"):
        load_critic(folder, init=str(tmp_path), bins=BINS)
