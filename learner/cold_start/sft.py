"""``python -m vcppo.learner.cold_start.sft --config RUN/config.yaml``: the cold start.

Supervised training on the task's demonstrations.

    task.demonstrations(seed of the step) ─▶ packed micro-batches ─▶ −log p of response tokens ─▶ Hugging Face folder

Starts from a model (`sft.init`) or from random weights. Prompt tokens are context only: the loss is on the response and
its end-of-sequence token. What comes out is marked by a hash of everything it depends on (`cold_start.json`), so
the stage is skipped when it has been done, and done again when its config has changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from transformers import GenerationConfig
from transformers.utils import logging as transformers_logging

from vcppo.common.config import SftPhase, VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.files.fingerprints import contents_named, model_contents
from vcppo.common.files.whole_folder import replace_folder
from vcppo.common.model_folder.tokenizer import warn_of_plain_loading
from vcppo.common.process import watchdog
from vcppo.common.process.end_process import end_process
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.run_folder import RunFolder
from vcppo.common.tasks import Demonstration, Task, encode_prompt, load_task
from vcppo.common.tasks.asking import demonstrations_of
from vcppo.common.telemetry.metrics import MetricsWriter, open_metrics
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.batching.packing import build_packed, plan_micro_batches
from vcppo.learner.cold_start.process import Product, fingerprinted, run_stage
from vcppo.learner.cold_start.starting_point import starting_point
from vcppo.learner.engine.deepspeed_engine import (
    EngineOptions,
    TrainEngine,
    barrier,
    init_distributed,
    num_ranks,
    rank,
    sharing,
    sum_over_ranks,
)
from vcppo.learner.models.models import PolicyModel, load_policy, save_model

log = structlog.get_logger(__name__)

MARKER = "cold_start.json"
PRODUCT = Product("cold_start", "a cold start", MARKER, "set sft.output to another folder")
_RECIPE_VERSION = 1  # raise it when the same config starts to give other weights
_WARMUP_STEPS = 20
_ADAM_BETA2 = 0.95  # a short run with a high learning rate must forget its first gradients
_LOG_EVERY_SECONDS = 5.0


class _Step(NamedTuple):
    """One optimizer step of the plan: its number over all phases, and its place on its phase's cosine."""

    number: int
    phase: SftPhase
    learning_rate: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the cold start of the config's run unless it is there. Returns the exit code."""
    transformers_logging.disable_progress_bar()
    return run_stage("sft", __doc__, cold_start, arguments)


def cold_start(config: VcppoConfig) -> Path:
    """Train and write the cold-start model; returns its folder. Collective: call it on every rank.

    Raises:
        VcppoError: nothing to do (no phases), the task has no demonstrations or tokenizer, the model can't be
            loaded, training diverged, or the output folder holds something that is not a cold start.
    """
    if not config.sft.phases:
        raise VcppoError("sft.phases is empty: give at least one phase, or skip the cold start and set model.path")
    output = config.sft.output or RunFolder(config.run.path).cold_start
    if output.resolve() == config.run.path.resolve():
        raise VcppoError(f"sft.output = {output} is the run folder itself: leave it out, or name a folder of its own")
    inputs = fingerprint(config)
    if _is_done(output, inputs):
        return output
    init_distributed(config.learner.device)
    _make(config, output, inputs)
    return output


def fingerprint(config: VcppoConfig) -> dict[str, Any]:
    """Everything the cold start depends on, and the hash of it under ``hash``."""
    task = load_task(config.task)
    inputs = {
        "recipe_version": _RECIPE_VERSION,
        "sft": config.sft.model_dump(mode="json", exclude={"output"}),
        "task": {"name": config.task.name, "options": config.task.options, "version": task.version},
        "seed": config.run.seed,
        "dtype": config.model.dtype,
        "max_grad_norm": config.rl.max_grad_norm,
    }
    # Only where there are any: a cold start from scratch keeps the hash it has had.
    if config.sft.init != "scratch" and (start := model_contents(config.sft.init)):
        inputs["init_files"] = start
    if files := contents_named([config.task.name, config.task.options]):
        inputs["task_files"] = files
    return fingerprinted(inputs)


def _is_done(output: Path, inputs: dict[str, Any]) -> bool:
    is_empty = output.is_dir() and not any(output.iterdir())  # somebody's place for it
    return not is_empty and PRODUCT.is_there(output, inputs)


def _make(config: VcppoConfig, output: Path, inputs: dict[str, Any]) -> None:
    """Train in ``<output>.partial`` and rename it when it is whole, so a crash leaves no half model behind."""
    began = time.monotonic()
    task = load_task(config.task)
    partial = output.with_name(output.name + ".partial")
    start, tokenizer = starting_point(config, task, partial)
    policy = _load(config, start)
    engine = _engine(config, policy)
    steps = list(_plan(config.sft.phases))
    log.info("sft_started", init=config.sft.init, num_steps=len(steps), num_ranks=num_ranks(), task=config.task.name)
    loss = _train(config, task, tokenizer, engine, steps)
    state = engine.gather_full_state_dict()
    seconds = time.monotonic() - began
    if rank() == 0:
        save_model(policy, partial, state)
        warn_of_plain_loading(tokenizer, partial)
        _write_generation_config(partial, tokenizer)
        marker = {**inputs, "steps": len(steps), "final_loss": loss, "seconds": round(seconds, 1)}
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        replace_folder(output, partial)  # empty, or an outdated cold start: `_is_done` has made sure
        log.info("cold_start_written", path=str(output), loss=round(loss, 4), seconds=round(seconds, 1))
    barrier()


def _write_generation_config(folder: Path, tokenizer: Any) -> None:
    GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(str(folder))


def _load(config: VcppoConfig, path: str) -> PolicyModel:
    return load_policy(
        path,
        dtype=torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32,
        as_stored=config.learner.zero_stage == 3,
        trust_remote_code=config.model.trust_remote_code,
        recomputed_every=config.learner.recomputed_every,
        max_tokens=config.generator.max_model_len,
        chunk_tokens=config.learner.log_prob_chunk_tokens,
        chunk_vocab=config.learner.log_prob_chunk_vocab,
    )


def _engine(config: VcppoConfig, policy: PolicyModel) -> TrainEngine:
    options = EngineOptions(
        **sharing(config),
        adam_beta2=_ADAM_BETA2,
        max_grad_norm=config.rl.max_grad_norm,
    )
    return TrainEngine(
        policy,
        learning_rate=config.sft.phases[0].learning_rate,
        options=options,
        rate_setting="learning_rate in sft.phases",
    )


def _plan(phases: Sequence[SftPhase]) -> Iterator[_Step]:
    """Every step of every phase; each phase warms up linearly and follows a cosine to 0."""
    number = 0
    for phase in phases:
        warmup = min(_WARMUP_STEPS, phase.steps // 5)
        for place in range(phase.steps):
            rise = min(1.0, (place + 1) / (warmup + 1))
            number += 1
            yield _Step(number, phase, phase.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * place / phase.steps)))


def _train(config: VcppoConfig, task: Task, tokenizer: Any, engine: TrainEngine, steps: Sequence[_Step]) -> float:
    """All steps; returns the mean loss of the last tenth (nats a token)."""
    metrics = _metrics(config)
    losses: list[float] = []
    last_logged = time.monotonic()
    try:
        for step in steps:
            began = time.monotonic()
            watchdog.stage("sft_step")
            seed = derive_seed(config.run.seed, "sft", step.number)
            demonstrations = demonstrations_of(task, seed, step.phase.batch_size, step.phase.style)
            batch = [_encode(demonstration, tokenizer) for demonstration in demonstrations]
            engine.set_learning_rate(step.learning_rate)
            loss, grad_norm = _train_step(engine, batch, config.learner.micro_batch_tokens)
            losses.append(loss)
            now = time.monotonic()
            values = {
                "sft/loss": loss,
                "sft/grad_norm": grad_norm,
                "sft/learning_rate": step.learning_rate,
                "sft/tokens_per_second": sum(t.num_tokens for t in batch) / (now - began),
            }
            if metrics is not None:
                metrics.write(step.number, {"stage": "sft", **values})
            if now - last_logged > _LOG_EVERY_SECONDS or step is steps[-1]:
                last_logged = now
                rounded = {name.removeprefix("sft/"): float(f"{value:.4g}") for name, value in values.items()}
                log.info("sft_step", step=step.number, num_steps=len(steps), **rounded)
    finally:
        if metrics is not None:
            metrics.close()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


def _metrics(config: VcppoConfig) -> MetricsWriter | None:
    if rank() != 0:
        return None
    return open_metrics(config, "sft", "steps_of_process")


def _train_step(engine: TrainEngine, batch: Sequence[Trajectory], token_budget: int) -> tuple[float, float]:
    """One optimizer step on this rank's share of `batch`; returns (mean loss over all ranks, gradient norm)."""
    lengths = [trajectory.num_tokens for trajectory in batch]
    num_actions = sum(len(trajectory.response_token_ids) for trajectory in batch)
    total = 0.0
    for micro_batch in plan_micro_batches(lengths, token_budget, num_ranks())[rank()]:
        packed = build_packed(batch, micro_batch).to(engine.device)
        loss = -engine.forward(packed).log_probs.sum() / num_actions
        engine.accumulate(loss)
        total += float(loss.detach())
    grad_norm = engine.step()
    return float(sum_over_ranks(np.array([total]))[0]), grad_norm


def _encode(demonstration: Demonstration, tokenizer: Any) -> Trajectory:
    ids = tokenizer(demonstration.response, add_special_tokens=False)["input_ids"]
    response = np.asarray([*ids, tokenizer.eos_token_id], np.int32)
    return as_trajectory(encode_prompt(tokenizer, demonstration.prompt), response)


if __name__ == "__main__":
    end_process(main())
