"""Adapters in the plan: counts against peft's own, sums by hand, and the table that the docs have."""

from __future__ import annotations

from typing import Any

import pytest

from tests.paths import ROOT
from vcppo.common.config import LoraConfig, VcppoConfig, load_config
from vcppo.deploy.cli import main
from vcppo.deploy.plan.architecture import Architecture, models_of
from vcppo.deploy.plan.arithmetic import problems, rank_plan
from vcppo.deploy.plan.side_by_side import FULL, GRPO, LORA, MODELS, NUM_GPUS, need

TEMPLATE = ROOT / "deploy" / "configs" / "math_dataset.yaml"


def config(**sections: Any) -> VcppoConfig:
    return VcppoConfig.model_validate({"model": {"path": "Qwen/Qwen2.5-7B", "dtype": "bfloat16"}, **sections})


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
def test_adapter_parameters_are_what_peft_makes(family: str, targets: list[str]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from vcppo.learner.models.adapters import add_adapters
    from vcppo.learner.models.merged_weights import trained_with_adapters

    values = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 80, "vocab_size": 101,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    add_adapters(model, LoraConfig(rank=5, target_modules=targets))
    counted = sum(parameter.numel() for parameter in trained_with_adapters(model).values())
    assert Architecture.of({"model_type": family, **values}, family).adapter_parameters(5, targets) == counted


def test_the_base_counts_once_and_adapters_as_what_is_trained() -> None:
    tried = config(lora={"rank": 16}, learner={"zero_stage": 2, "num_ranks": 2}, algorithm={"kl_coefficient": 0.1})
    models = models_of(tried)
    found = rank_plan(models, tried)
    adapters = models.policy.adapter_parameters(16)
    assert adapters == 40_370_176
    assert found.base == 2 * 7_615_616_512
    assert found.actor.total == 2 * adapters + 4 * adapters // 2 + 12 * adapters // 2
    head = models.critic.hidden
    assert found.critic is not None and found.critic.weights == 2 * (adapters + head)
    assert found.reference == 2 * adapters
    assert found.checkpoint == 14 * (2 * adapters + head)
    other = config(lora={"rank": 16}, critic={"model": "Qwen/Qwen2.5-1.5B"})
    assert rank_plan(models_of(other), other).base == found.base + 2 * models_of(other).critic.backbone_parameters


def test_what_does_not_fit_names_adapters_as_a_way_out() -> None:
    from vcppo.deploy.plan.arithmetic import GIB, make_plan

    for lora, names_it in ((None, True), (64, False)):
        tried = config(lora={"rank": lora})
        found = next(problems(make_plan(models_of(tried), tried, 10 * GIB, 64 * GIB), tried))
        assert ("lora.rank" in found) == names_it


def test_adapters_with_a_critic_fit_where_full_training_without_one_does_not() -> None:
    tried = load_config(TEMPLATE)
    for model in MODELS:
        for num_gpus in NUM_GPUS:
            full, lora, grpo = (need(tried, model, num_gpus, way).total for way in (FULL, LORA, GRPO))
            assert lora < grpo < full
    assert need(tried, MODELS[1], 1, LORA).total < 80 * 2**30 < need(tried, MODELS[1], 1, GRPO).total


def test_the_page_has_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-c", str(TEMPLATE), "--side-by-side"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "lora.md").read_text()
