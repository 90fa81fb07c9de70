"""`vcppo plan`: counts against published ones, bytes against sums made by hand."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT
from vcppo.common.config import VcppoConfig, load_config
from vcppo.deploy.cli import main
from vcppo.deploy.plan.architecture import KNOWN, Architecture, Models, PlanError, architecture_of, models_of
from vcppo.deploy.plan.arithmetic import (
    GIB,
    activation_bytes,
    flow_plan,
    generator_plan,
    make_plan,
    model_memory,
    problems,
    rank_plan,
    remarks,
)
from vcppo.deploy.plan.plan_tables import model_rows, rank_rows
from vcppo.deploy.report.paper_numbers import paper_numbers

PAPER = ROOT / "deploy" / "configs" / "paper_qwen32b.yaml"
PUBLISHED = {  # numel() over the published checkpoints, tied weights once
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
}


def config(**sections: Any) -> VcppoConfig:
    return VcppoConfig.model_validate({"model": {"path": "Qwen/Qwen2.5-32B"}, **sections})


def known(name: str) -> Architecture:
    return Architecture.of(yaml.safe_load(KNOWN.read_text())[name], name)


def both(name: str) -> Models:
    """Policy and critic of one architecture."""
    return Models(known(name), known(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    assert known(name).policy_parameters == PUBLISHED[name]


def test_every_known_model_is_checked() -> None:
    assert set(yaml.safe_load(KNOWN.read_text())) == set(PUBLISHED)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameter_counts_are_transformers_own(family: str, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    values = {
        "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 80, "vocab_size": 101, "tie_word_embeddings": tied,
    }  # fmt: skip
    made = AutoConfig.for_model(family, **values)
    ours = Architecture.of({"model_type": family, **values}, family)
    assert ours.policy_parameters == AutoModelForCausalLM.from_config(made).num_parameters()
    made.num_labels = 1
    assert ours.critic_parameters == AutoModelForSequenceClassification.from_config(made).num_parameters()


@pytest.mark.parametrize(
    ("dtype", "stage", "ranks", "parts"),
    [
        ("float32", 0, 4, (400, 400, 800)),
        ("float32", 1, 4, (400, 400, 300)),
        ("float32", 3, 4, (100, 100, 300)),
        ("bfloat16", 0, 4, (200, 400, 300)),
        ("bfloat16", 1, 4, (200, 400, 300)),
        ("bfloat16", 2, 4, (200, 100, 300)),
        ("bfloat16", 3, 4, (50, 100, 300)),
        ("bfloat16", 3, 1, (200, 400, 1200)),
    ],
)
def test_memory_of_a_hundred_parameters(dtype: str, stage: int, ranks: int, parts: tuple[int, ...]) -> None:
    memory = model_memory(100, dtype, stage, ranks)
    assert (memory.weights, memory.gradients, memory.optimizer) == parts
    assert memory.total == sum(parts)


def test_keys_and_values_of_qwen_32b() -> None:
    """2 * 64 layers * 8 heads * 128 * 2 bytes = 256 KiB a token; 4 GPUs share it."""
    plan = generator_plan(known("Qwen/Qwen2.5-32B"), config(generator={"tensor_parallel_size": 4}), 80 * GIB)
    assert plan.kv_per_token == 64 * 1024
    assert plan.weights == 32_763_876_352 // 2
    assert plan.kv_room == int(80 * GIB * 0.85) - plan.weights - 2 * GIB
    one = generator_plan(known("Qwen/Qwen2.5-32B"), config(), None)
    assert (one.kv_per_token, one.kv_room) == (256 * 1024, GIB)
    assert one.kv_wanted == 64 * 512 * 256 * 1024


def test_checkpointing_keeps_a_layer_and_inputs() -> None:
    architecture = known("Qwen/Qwen2.5-0.5B")
    whole = activation_bytes(architecture, config())
    less = activation_bytes(architecture, config(learner={"gradient_checkpointing": True}))
    layers, layer, tokens = 24, architecture.activation_elements_per_token, 8192
    assert whole - less == 2 * tokens * ((layers - 1) * layer - layers * 896)
    half, third = (
        activation_bytes(
            architecture, config(learner={"gradient_checkpointing": True, "gradient_checkpointing_every": n})
        )
        for n in (2, 23)
    )
    assert whole - half == 2 * tokens * (12 * layer - 12 * 896)  # the last is kept: none is there besides
    assert whole - third == 2 * tokens * (1 * layer - 2 * 896)  # the 1st and the 24th, of which one is there again


def test_buckets_are_stage_3s_and_one_a_model() -> None:
    models = both("Qwen/Qwen2.5-0.5B")
    group = {"algorithm": {"advantage_estimator": "leave_one_out"}, "critic": {"init": "policy"}}
    assert rank_plan(models, config(learner={"zero_stage": 2})).buckets == 0
    assert rank_plan(models, config(learner={"zero_stage": 3})).buckets == 4_000_000_000
    assert rank_plan(models, config(learner={"zero_stage": 3}, **group)).buckets == 2_000_000_000


def test_what_is_offloaded_leaves_the_device() -> None:
    models = both("Qwen/Qwen2.5-0.5B")
    shared = {"zero_stage": 3, "num_ranks": 4}
    plain = rank_plan(models, config(learner=shared))
    optimizer = rank_plan(models, config(learner={**shared, "offload": {"optimizer": "cpu"}}))
    both_of_them = rank_plan(models, config(learner={**shared, "offload": {"optimizer": "cpu", "parameters": "cpu"}}))
    assert plain.critic is not None and optimizer.critic is not None
    assert plain.offloaded == 0
    assert optimizer.offloaded == plain.actor.optimizer + plain.critic.optimizer == plain.total - optimizer.total
    assert optimizer.actor.optimizer == optimizer.critic.optimizer == 0 < optimizer.actor.weights
    assert both_of_them.actor.weights == 0
    assert both_of_them.offloaded == optimizer.offloaded + plain.actor.weights + plain.critic.weights


def test_flows() -> None:
    flow = flow_plan(known("Qwen/Qwen2.5-32B"), config(rl={"max_staleness": 2, "batch_size": 64}))
    assert flow.credits == 192
    assert flow.update_bytes == 65_527_752_704
    assert flow.trajectory_bytes == 500 + 4 * 256 + 9 * 256
    assert flow.store_bytes == int((192 + 5 * 64) * flow.trajectory_bytes * 1.25)


def test_the_wire_is_about_as_long_as_planned() -> None:
    import numpy as np

    from vcppo.common.records.trajectory import Trajectory, VersionSpan
    from vcppo.common.records.wire import encode_trajectory

    length = 256
    one = Trajectory(
        id="rl-00000012-3@generator-0.1a2b3c4d5e", prompt_id="rl-00000012-3", group_id="rl-00000012", sample_index=3,
        task="dataset", prompt_token_ids=np.arange(256, dtype=np.int32),
        response_token_ids=np.arange(length, dtype=np.int32), action_mask=np.ones(length, bool),
        behaviour_log_probs=-np.ones(length, np.float32), version_spans=(VersionSpan(3, 100), VersionSpan(4, 156)),
        finish_reason="stop", reward=1.0, outcome="correct", generator_id="generator-0", issue_version=3,
        timings={"generate": 1.5, "verify": 0.1},
    )  # fmt: skip
    planned = flow_plan(known("Qwen/Qwen2.5-32B"), config()).trajectory_bytes
    assert planned * 0.9 < len(encode_trajectory(one)) <= planned


def test_the_papers_setting_fits_64_gpus_of_80_gib_and_not_40() -> None:
    paper = load_config(PAPER, [])
    assert paper.learner.num_ranks + paper.generator.num_generators * paper.generator.tensor_parallel_size == 64
    for field, value in paper_numbers().setting.items():
        assert attrgetter(field)(paper) == value, field
    plan = make_plan(models_of(paper), paper, 80 * GIB, 0)
    assert list(problems(plan, paper)) == []
    small = make_plan(models_of(paper), paper, 40 * GIB, 0)
    assert any(problem.startswith("learner rank:") for problem in problems(small, paper))


def test_what_does_not_fit_is_named() -> None:
    big = config(redis={"maxmemory_mib": 1.0}, generator={"tensor_parallel_size": 3})
    found = list(problems(make_plan(both("Qwen/Qwen2.5-32B"), big, 24 * GIB, 0), big))
    for start in ("learner rank: ", "generator: ", "redis.maxmemory_mib", "generator.tensor_parallel_size = 3"):
        assert any(problem.startswith(start) for problem in found), (start, found)
    host = make_plan(both("Qwen/Qwen2.5-32B"), config(), None, 24 * GIB)
    assert any(problem.startswith("this machine:") for problem in problems(host, config()))


def test_a_critic_of_another_size_counts_as_what_it_is() -> None:
    small = config(critic={"model": "Qwen/Qwen2.5-0.5B"})
    one, other = (make_plan(models_of(each), each, 80 * GIB, 0) for each in (config(), small))
    assert one.rank.critic is not None
    assert other.rank.critic is not None
    assert one.rank.actor == other.rank.actor
    assert other.rank.critic.weights / one.rank.critic.weights == pytest.approx(0.494 / 31.98, rel=0.01)
    assert other.generator == one.generator
    assert model_rows(other.models, small)[1] == (
        "critic",
        "0.494 B parameters",
        "a backbone of its own, one number a token",
    )
    large = config(model={"path": "Qwen/Qwen2.5-0.5B"}, critic={"init": "Qwen/Qwen2.5-32B"})
    assert make_plan(models_of(large), large, None, 0).rank.activations == one.rank.activations  # the larger one's
    nobodys = config(critic={"model": "somebody/else"})
    with pytest.raises(PlanError, match=r"critic\.model = 'somebody/else'"):
        models_of(nobodys)
    group = config(algorithm={"advantage_estimator": "leave_one_out"}, critic={"init": "policy"})
    assert [name for name, *_ in model_rows(models_of(group), group)] == ["policy"]


def test_remarks() -> None:
    costly = config(algorithm={"kl_coefficient": 0.1}, generator={"max_in_flight": 300, "max_model_len": 8192})
    assert rank_plan(both("Qwen/Qwen2.5-32B"), costly).reference == 65_527_752_704
    refreshed = config(algorithm={"kl_coefficient": 0.1, "reference_refresh_steps": 5})
    checkpoints = [rank_plan(both("Qwen/Qwen2.5-32B"), each).checkpoint for each in (costly, refreshed)]
    assert checkpoints[1] - checkpoints[0] == 65_527_752_704  # a refreshed reference is in them too
    text = "\n".join(remarks(make_plan(both("Qwen/Qwen2.5-32B"), costly, 141 * GIB, 0), costly))
    for words in ("sequences of full length fit", "before it is split", "kl_coefficient > 0", "600 places for"):
        assert words in text


def test_models_come_from_folder_scratch_or_name(tmp_path: Path) -> None:
    values = yaml.safe_load(KNOWN.read_text())["Qwen/Qwen2.5-0.5B"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert architecture_of(config(model={"path": str(tmp_path)})).policy_parameters == 494_032_768
    assert architecture_of(config(model={"path": "Qwen/Qwen2.5-7B-Instruct"})).layers == 28
    with pytest.raises(PlanError, match="no folder here"):
        architecture_of(config(model={"path": "somebody/else"}))
    (tmp_path / "config.json").write_text(json.dumps({**values, "model_type": "mamba"}))
    with pytest.raises(PlanError, match="model_type 'mamba' can't be planned"):
        architecture_of(config(model={"path": str(tmp_path)}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(PlanError, match="hidden_size"):
        architecture_of(config(model={"path": str(tmp_path)}))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-c", str(PAPER), "--gpu-memory-gib", "80", "--tokens-per-second", "2000"]) == 0
    text = capsys.readouterr().out
    for words in ("32.764 B parameters", "1,024 prompts", "at 16,000 tokens/s", "everything fits"):
        assert words in text
    assert main(["plan", "-c", str(PAPER), "--gpu-memory-gib", "24"]) == 1
    assert "will not fit: learner rank" in capsys.readouterr().out
    assert main(["plan", "-c", str(ROOT / "deploy" / "configs" / "demo.yaml")]) == 0


def test_ranks_that_share_packs() -> None:
    """Qwen2.5-32B has 40 heads and 8 key heads: four ranks share them, three don't."""
    models, learner = both("Qwen/Qwen2.5-32B"), {"num_ranks": 12, "zero_stage": 3, "micro_batch_tokens": 8192}
    longest = {"generator": {"max_model_len": 24_000}}
    fits, not_so = (config(learner={**learner, "sequence_parallel_size": size}, **longest) for size in (4, 3))
    found = make_plan(models, fits, None, 100 * GIB)
    shared = {name: remark for name, _, remark in rank_rows(found, fits)}
    assert shared["activations"] == "8,192 tokens, all kept; 4 ranks share packs of 32,768"
    assert not [text for text in problems(found, fits) if "sequence_parallel_size" in text]
    wrong = [text for text in problems(make_plan(models, not_so, None, 100 * GIB), not_so) if "sequence_par" in text]
    assert wrong == [
        "learner.sequence_parallel_size = 3: the policy has 40 attention heads and 8 key heads, which 3 ranks can't"
        " share: set it to 1 or 2 or 4 or 8 or 40"
    ]
