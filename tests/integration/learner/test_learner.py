"""The learner process for real (Redis, DeepSpeed, a tiny model), with a scripted generator: stages, crashes, resume."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch_file

from tests.integration.rig.learner_run import BATCH, NUM_STEPS, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from tests.paths import ROOT
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.learner.rl.trained_log import read_trained_log

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.mark.parametrize(
    ("of_critic", "frozen", "lora"),
    [
        ({}, [], {}),
        ({"head": "hl_gauss", "num_bins": 21, "freeze": ["embed_tokens", "mlp"]}, ["mlp"], {}),
        ({"head": "hl_gauss", "num_bins": 21}, [], {"rank": 4}),
    ],
    ids=["scalar", "bins_and_frozen", "adapters"],
)
def test_synchronous_run_survives_kills_and_ends_like_an_undisturbed_one(
    tmp_path: Path,
    redis_server: str,
    model: Path,
    generate: Callable[..., ScriptedGenerator],
    of_critic: dict[str, Any],
    frozen: list[str],
    lora: dict[str, Any],
) -> None:
    # More passes than one, over more batches than one: what the critic has yet to do outlives a crash too.
    critic = {"passes": "auto", "max_passes": 3, "min_rise": 0.0, "replay_batches": 1, **of_critic}
    rl = {"actor_schedule": "cosine", "actor_warmup_steps": 1, "critic_warmup_steps": 4, "actor_freeze": frozen}
    # The checkpoint of step 4 has the reference policy of step 3; the entropy's weight goes up from step to step.
    algorithm = {"num_mini_batches": 2, "kl_coefficient": 0.05, "kl_in": "reward", "reference_refresh_steps": 3,
                 "entropy_target": 100.0, "entropy_step": 0.002}  # fmt: skip
    calm = Run(tmp_path, "calm", redis_server, model, critic=critic, rl=rl, algorithm=algorithm, lora=lora)
    generate(calm)
    calm_process = calm.start()
    stormy = Run(tmp_path, "stormy", redis_server, model, critic=critic, rl=rl, algorithm=algorithm, lora=lora)
    limit = [3]  # the generator holds back what was issued at this version and later
    generate(stormy, lambda prompt: prompt.purpose != "rl" or prompt.issue_version < limit[0], seed=1)
    process = stormy.start()
    stormy.wait_for_step(process, 3)  # step 3 is trained, the checkpoint is of step 2
    stormy.kill(process)
    limit[0] = 99
    process = stormy.start()
    stormy.wait_for_step(process, 5)  # killed wherever it is
    stormy.kill(process)
    stormy.finish(stormy.start())
    calm.finish(calm_process)

    for run in (calm, stormy):
        run.check_accounts(max_staleness=0)
    assert stormy.events("step_replayed")
    assert [line["prompt_ids"] for line in read_trained_log(calm.folder.trained_log).values()] == [
        line["prompt_ids"] for line in read_trained_log(stormy.folder.trained_log).values()
    ]
    undisturbed = load_file(calm.folder.export / "model.safetensors")
    resumed = load_file(stormy.folder.export / "model.safetensors")
    assert undisturbed.keys() == resumed.keys()
    for name, weights in undisturbed.items():
        np.testing.assert_allclose(resumed[name], weights, rtol=0, atol=1e-6, err_msg=name)
    start = load_file(model / "model.safetensors")
    assert any(np.abs(start[name] - weights).max() > 1e-4 for name, weights in undisturbed.items())
    _check_frozen(start, undisturbed, frozen)
    if lora:
        _check_adapters_alone(calm, start)
    else:
        _check_frozen(start, _critic_of_checkpoint(calm), of_critic.get("freeze", []))
    assert any(done["passes"] > 1 for done in calm.events("critic_passes_done"))
    rows = [row for row in read_metrics(calm.folder.metrics_file("learner")) if row.get("stage") == "rl"]
    assert [row["critic/learning_rate"] / 6e-5 for row in rows[:5]] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rows[0]["policy/learning_rate"] == pytest.approx(5e-4)
    assert rows[-1]["policy/learning_rate"] < rows[1]["policy/learning_rate"] == pytest.approx(1e-3)
    for run in (calm, stormy):
        _check_reference_and_entropy(run)
    _check_artefacts(calm)
    _check_export_of_checkpoint(calm, NUM_STEPS)


def _check_frozen(start: dict[str, Any], now: dict[str, Any], patterns: list[str]) -> None:
    """What a pattern finds is bit for bit what it was, and there is some; of the rest most has moved."""
    found = {name for name in start if any(pattern in name for pattern in patterns)}
    assert bool(found) == bool(patterns)
    assert all(np.array_equal(start[name], now[name]) for name in found)
    assert sum(not np.array_equal(start[name], now[name]) for name in {*start} - found) > len(start) / 3


def _check_adapters_alone(run: Run, start: dict[str, Any]) -> None:
    """Checkpoints have no number of the base; the export has the merged weights, and the adapters besides."""
    held = _critic_of_checkpoint(run)
    assert {"score.weight"} < held.keys() and not held.keys() & start.keys()
    assert all(".lora_" in name or name == "score.weight" for name in held)
    adapters = load_file(run.folder.export / "adapter" / "adapter_model.safetensors")
    merged = load_file(run.folder.export / "model.safetensors")
    changed = {name for name, weights in merged.items() if not np.array_equal(weights, start[name])}
    assert changed == {
        name.removeprefix("base_model.model.").replace(".lora_A", "") for name in adapters if ".lora_A." in name
    }
    for name in changed:
        a, b = (adapters["base_model.model." + name.replace(".weight", f".lora_{side}.weight")] for side in "AB")
        np.testing.assert_allclose(merged[name], start[name] + 2 * b @ a, rtol=1e-5, atol=1e-6)


def _critic_of_checkpoint(run: Run) -> dict[str, Any]:
    (file,) = (run.folder.checkpoints / f"step-{NUM_STEPS:06d}" / "critic").rglob("*model_states.pt")
    state = torch.load(file, weights_only=True)["module"]
    return {name.removeprefix("hf_model."): tensor.numpy() for name, tensor in state.items()}


def _check_reference_and_entropy(run: Run) -> None:
    """By step, of the last time that it was trained."""
    rows = {row["step"]: row for row in read_metrics(run.folder.metrics_file("learner")) if row.get("stage") == "rl"}
    in_order = [rows[step] for step in sorted(rows)]
    assert [row["policy/reference_version"] for row in in_order] == [step // 3 * 3 for step in range(NUM_STEPS)]
    weights = [row["policy/entropy_coefficient"] for row in in_order]
    assert weights == pytest.approx([0.002 * step for step in range(NUM_STEPS)])
    kl = [abs(row["reward/kl"]) for row in in_order]
    assert max(kl[0], kl[3], kl[6]) < 1e-5 < min(kl[1], kl[2], kl[4], kl[5])  # 0 where the two have just become one


def _check_export_of_checkpoint(run: Run, step: int) -> None:
    checkpoint, output = run.folder.checkpoints / f"step-{step:06d}", run.folder.path / "again"
    command = [sys.executable, "-m", "vcppo.learner.export", "--checkpoint", str(checkpoint), "--output", str(output)]
    subprocess.run(command, check=True, timeout=200, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    expected, found = (load_file(folder / "model.safetensors") for folder in (run.folder.export, output))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def _check_artefacts(run: Run) -> None:
    decision = json.loads((run.folder.value_pretraining / "decision.json").read_text())
    assert decision["passed"]
    assert len(decision["history"]) == 3
    rows = [row for row in read_metrics(run.folder.metrics_file("learner")) if row.get("stage") == "rl"]
    assert sorted({row["step"] for row in rows}) == list(range(1, NUM_STEPS + 1))
    expected = "reward/mean explained_variance/token policy/loss critic/grad_norm time/step ledger/issued staleness/max"
    for name in expected.split():
        assert rows[-1][name] is not None, name
    assert len(rows[-1]["advantages/by_position"]) == 10
    trained = {step: set(line["trajectory_ids"]) for step, line in read_trained_log(run.folder.trained_log).items()}
    kept = {
        step: {each["id"] for each in SampleTable(run.folder.samples / f"step-{step:06d}.parquet").heads()}
        for step in trained
    }
    assert kept == trained  # 8 a step, of at most 256
    tokens = SampleTable(run.folder.samples / "step-000001.parquet").tokens(0)
    known = [each for each in tokens["entropy"] if each is not None]
    assert known and all(each >= 0.0 for each in known) and any(each > 0.1 for each in known)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(run.folder.export).config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(run.folder.export).eos_token == "<eos>"


def test_asynchronous_run_stops_on_sigterm_and_resumes(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    run = Run(tmp_path, "asynchronous", redis_server, model, rl={"max_staleness": 2})
    limit = [3]
    generate(run, lambda prompt: prompt.purpose != "rl" or prompt.issue_version < limit[0])
    process = run.start()
    run.wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 128 + signal.SIGTERM, run.tail()
    assert run.store().ledger().claimed == 0  # what was trained is in the checkpoint, and committed
    limit[0] = 99
    tree = yaml.safe_load(run.folder.config.read_text())
    tree["rl"] |= {"actor_learning_rate": 1e-4, "weight_decay": 0.01}  # the config counts from the next step on
    run.folder.config.write_text(yaml.safe_dump(tree))
    run.finish(run.start())
    run.check_accounts(max_staleness=2)
    staleness = [s for line in read_trained_log(run.folder.trained_log).values() for s in line["staleness"]]
    assert max(staleness) > 0
    assert not run.events("step_replayed")
    step = run.events("checkpoint_loaded")[-1]["policy_version"]
    changed = {e["setting"]: (e["before"], e["now"], e["from_step"]) for e in run.events("setting_changed")}
    assert changed == {
        "rl.actor_learning_rate": (1e-3, 1e-4, step + 1),
        "rl.weight_decay": (0.0, 0.01, step + 1),
    }
    actor, critic = run.events("optimizer_settings_changed")
    assert (actor["learning_rate"], actor["weight_decay"]) == ("0.001 → 0.0001", "0 → 0.01")
    assert "learning_rate" not in critic
    assert critic["weight_decay"] == "0 → 0.01"


def _check_profiles(run: Run, num_ranks: int) -> None:
    """Of step 2 and no other: where its time went, by phases and operators, on each rank."""
    folder = run.folder.profiles
    traces = [folder / f"step_2.learner.rank{rank}.json.gz" for rank in range(num_ranks)]
    assert sorted(folder.glob("*.json.gz")) == traces
    for path in traces:
        names = {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
        assert names >= {"claim", "values", "old_log_probs", "update", "aten::mm"}, path.name
    assert [event["step"] for event in run.events("step_profiled")] == [2] * num_ranks
    if not run.events("flame_graphs_left_out"):  # py-spy is there
        assert list(folder.glob("step_2.learner*.svg")) or run.events("flame_graphs_refused")


@pytest.mark.parametrize(
    ("zero_stage", "of_critic"),
    [(0, {}), (3, {"head": "two_hot", "num_bins": 21, "freeze": ["embed_tokens"], "sees_log_probs": True})],
)
def test_two_ranks_train_what_one_does(
    tmp_path: Path,
    redis_server: str,
    model: Path,
    generate: Callable[..., ScriptedGenerator],
    zero_stage: int,
    of_critic: dict[str, Any],
) -> None:
    shorter = {"num_steps": 2, "max_staleness": 0, "actor_learning_rate": 1e-4}
    learner = {"checkpoint_every": 1, "profile_steps": [2]}
    critic = {"passes": 3, "replay_batches": 1, **of_critic}
    if zero_stage == 3:  # a critic of twice the width
        make_tiny_model(tmp_path / "wide", hidden_size=64)
        critic["model"] = str(tmp_path / "wide")
    one = Run(tmp_path, "one", redis_server, model, rl=shorter, learner=learner, critic=critic)
    sharded = learner | {"num_ranks": 2, "zero_stage": zero_stage}
    two = Run(tmp_path, "two", redis_server, model, rl=shorter, learner=sharded, critic=critic)
    for run in (one, two):
        generate(run)
    processes = [one.start(), two.start(num_ranks=2)]
    for run, process in zip((one, two), processes, strict=True):
        run.finish(process)
    _check_profiles(one, 1)
    _check_profiles(two, 2)
    expected = load_file(one.folder.export / "model.safetensors")
    found = load_file(two.folder.export / "model.safetensors")
    _check_close(load_file(model / "model.safetensors"), expected, found)
    _check_export_of_checkpoint(two, 2)  # one process, whoever wrote it
    made = json.loads((two.folder.value_pretraining / "critic" / "config.json").read_text())
    assert made["hidden_size"] == (64 if zero_stage == 3 else 32)
    assert made.get("vcppo_sees_log_probs", False) == of_critic.get("sees_log_probs", False)
    if zero_stage == 3:  # RL has read it from there; whether it learns is seen in test_engine_ranks.py
        saved = load_file(two.folder.value_pretraining / "critic" / "model.safetensors")
        assert saved["surprise_input.weight"].shape == (64, 2)


def _check_close(
    start: dict[str, Any], expected: dict[str, Any], found: dict[str, Any], share: float = 0.02, unit: float = 0.0
) -> None:
    """Weights of two runs differ by a small share of what training has moved them, and by `unit` of their size."""
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        moved, size = np.abs(weights - start[name]).mean(), np.abs(weights).mean()
        # Adam turns rounding of near-zero gradients into whole steps, so a few entries may differ.
        assert np.abs(found[name] - weights).mean() < share * moved + unit * size, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_with_other_ranks_and_zero_stages(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator], dtype: str
) -> None:
    """1 rank at stage 0, then 2 at stage 3, then 1 at stage 0: as a run on one rank that nobody has touched."""
    critic = {"passes": 2, "replay_batches": 1}
    rl = {"actor_schedule": "cosine", "actor_warmup_steps": 1, "critic_warmup_steps": 4, "actor_learning_rate": 1e-4}
    algorithm = {"num_mini_batches": 2, "kl_coefficient": 0.05, "kl_in": "reward", "reference_refresh_steps": 3,
                 "entropy_target": 100.0, "entropy_step": 0.002}  # fmt: skip
    sections = {"critic": critic, "rl": rl, "algorithm": algorithm}
    calm = Run(tmp_path, "calm", redis_server, model, **sections)
    moving = Run(tmp_path, "moving", redis_server, model, **sections)
    for run in (calm, moving):
        _set(run, "model", dtype=dtype)
    generate(calm)
    calm_process = calm.start()
    limit = [3]  # the generator holds back what was issued at this version and later
    generate(moving, lambda prompt: prompt.purpose != "rl" or prompt.issue_version < limit[0], seed=1)
    process = moving.start()
    moving.wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)  # with a checkpoint of step 3
    assert process.wait(100) == 128 + signal.SIGTERM, moving.tail()
    _set(moving, "learner", num_ranks=2, zero_stage=3)
    limit[0] = 5
    process = moving.start(num_ranks=2)
    moving.wait_for_step(process, 5)  # the checkpoint is of step 4: step 5 is trained again, by one rank
    moving.kill(process)
    limit[0] = 99
    _set(moving, "learner", num_ranks=1, zero_stage=0)
    moving.finish(moving.start())
    calm.finish(calm_process)

    for run in (calm, moving):
        run.check_accounts(max_staleness=0)
        _check_reference_and_entropy(run)
    ready = [event for event in moving.events("learner_ready") if event["service"] == "learner"]
    assert [event["num_ranks"] for event in ready] == [1, 2, 1]
    ways = [(event["saved"], event["now"]) for event in moving.events("checkpoint_cut_anew")]
    plain = f"ZeRO {int(dtype == 'bfloat16')}, 1 ranks, {dtype}"
    cut = f"ZeRO 3, 2 ranks, {dtype}"
    assert ways == [(plain, cut)] * 2 + [(cut, plain)] * 2  # actor and critic
    assert moving.events("step_replayed")
    changed = {(e["setting"], e["before"], e["now"]) for e in moving.events("setting_changed")}
    assert changed >= {("learner.num_ranks", 1, 2), ("learner.zero_stage", 3, 0)}
    assert not moving.events("optimizer_settings_changed")
    folders = (model, calm.folder.export, moving.folder.export)
    weights = [_in_float32(folder / "model.safetensors") for folder in folders]
    if dtype == "float32":
        _check_close(*weights, share=0.05)
    else:
        _check_close(*weights, share=0.3, unit=2**-9)
    rates = ["policy/learning_rate", "critic/learning_rate"]
    by_step = [
        {row["step"]: [row[name] for name in rates] for row in read_metrics(run.folder.metrics_file("learner"))
         if row.get("stage") == "rl"}
        for run in (calm, moving)
    ]  # fmt: skip
    assert by_step[0] == by_step[1] and sorted(by_step[0]) == list(range(1, NUM_STEPS + 1))


def _in_float32(file: Path) -> dict[str, Any]:
    return {name: tensor.float().numpy() for name, tensor in load_torch_file(file).items()}


def _set(run: Run, section: str, **settings: Any) -> None:
    tree = yaml.safe_load(run.folder.config.read_text())
    tree[section] |= settings
    run.folder.config.write_text(yaml.safe_dump(tree))


def test_value_pretraining_takes_in_the_recording_of_another_run(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    short = {"num_steps": 1}
    first = Run(tmp_path, "first", redis_server, model, rl=short)
    generate(first)
    first.finish(first.start())
    stage = {"recordings": [str(first.folder.path)], "batch_size": 32}
    second = Run(tmp_path, "second", redis_server, model, rl=short, learner={"num_ranks": 2},
                 run={"seed": 5}, value_pretraining=stage)  # fmt: skip
    generate(second)
    second.finish(second.start(num_ranks=2))
    decision = json.loads((second.folder.value_pretraining / "decision.json").read_text())
    (taken,) = decision["recordings"]
    assert (taken["num_trajectories"], taken["num_taken"], taken["num_twice"]) == (48, 48, 0)
    assert decision["num_train"] + decision["num_held_out"] == 96
    assert decision["recorded"]["num_prompts"] == 24 + taken["num_new_prompts"]
    assert second.store().ledger().trained == 48 + BATCH  # what is taken in was never issued here
    tree = yaml.safe_load(second.folder.config.read_text())
    tree["run"]["name"], tree["sampling"]["temperature"] = "third", 0.5
    third = Run(tmp_path, "third", redis_server, model)
    third.folder.config.write_text(yaml.safe_dump(tree | {"learner": tree["learner"] | {"num_ranks": 1}}))
    assert third.start().wait(200) == EXIT_REFUSED
    (fatal,) = third.events("fatal")
    assert "sampling.temperature is 1.0 in the run and 0.5 now" in fatal["error"]


def test_failed_gate_stops_the_run_by_name(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    run = Run(tmp_path, "gate", redis_server, model)
    tree = yaml.safe_load(run.folder.config.read_text())
    tree["value_pretraining"]["min_explained_variance"] = 0.999
    run.folder.config.write_text(yaml.safe_dump(tree))
    generate(run)
    assert run.start().wait(280) == EXIT_REFUSED
    (fatal,) = run.events("fatal")
    assert "value_pretraining.min_explained_variance = 0.999" in fatal["error"]
    assert not json.loads((run.folder.value_pretraining / "decision.json").read_text())["passed"]
    assert run.store().ledger().is_exact
