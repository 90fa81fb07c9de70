"""``python -m vcppo.learner.cold_start.reward_model --config RUN/config.yaml``: trains a Bradley-Terry reward model.

Critics start from it.

    pairs (better, worse) ─▶ score at each one's last token ─▶ −log σ(better − worse) + centring ─▶ Hugging Face folder

Starts from the policy's backbone (model.path) with a new head, the very form of a critic, so ``critic.init`` can name
what comes out. Centring, c · ((better + worse) / 2)² over pairs of complete responses, fixes the level Bradley-Terry
leaves open. Like the cold start it is skipped when it is there, and made again when what it depends on has changed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
from torch.nn import functional

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.files.fingerprints import contents_named, file_digest, model_contents
from vcppo.common.files.whole_folder import written_whole
from vcppo.common.process import watchdog
from vcppo.common.process.end_process import end_process
from vcppo.common.records.seeds import derive_seed
from vcppo.common.run_folder import RunFolder
from vcppo.common.tasks import load_task
from vcppo.common.telemetry.metrics import open_metrics
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.batching.packing import build_packed, plan_micro_batches
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.cold_start.preference_pairs import DemonstrationPairs, Pair, PairSource, Prefixes, RolloutPairs
from vcppo.learner.cold_start.process import Product, fingerprinted, run_stage
from vcppo.learner.critic_quality.explained_variance import mean_by_position
from vcppo.learner.engine.deepspeed_engine import (
    EngineOptions,
    TrainEngine,
    init_distributed,
    num_ranks,
    rank,
    sharing,
    sum_over_ranks,
)
from vcppo.learner.engine.forward import compute_values
from vcppo.learner.export import load_tokenizer
from vcppo.learner.models.models import CriticModel, load_critic, save_model

log = structlog.get_logger(__name__)

MARKER = "reward_model.json"
PRODUCT = Product("reward_model", "a reward model of ours", MARKER, "set reward_model.output")
_RECIPE_VERSION = 1  # raise it when the same config starts to give other weights
_LOG_EVERY = 25  # steps
_NUM_MEASURED = 128  # fresh pairs


class Quality(NamedTuple):
    """A reward model on fresh pairs.

    Attributes:
        accuracy: share of pairs it ranks right; `whole`: of complete pairs only (None without any).
        complete_score: mean score of complete responses.
        score_by_position: mean score by tenth of the better response of complete pairs: what a critic starts with.
    """

    accuracy: float
    whole: float | None
    complete_score: float | None
    score_by_position: list[float | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the reward model of the config's run unless it is there. Returns the exit code."""
    return run_stage("reward_model", __doc__, reward_model, arguments)


def reward_model(config: VcppoConfig) -> Path:
    """Train and write it; returns its folder. Collective: call it on every rank.

    Raises:
        VcppoError: no pairs can be made, the model can't be loaded, or the folder holds something else.
    """
    output = config.reward_model.output or RunFolder(config.run.path).reward_model
    inputs = fingerprint(config)
    if PRODUCT.is_there(output, inputs):
        return output
    began = time.monotonic()
    init_distributed(config.learner.device)
    torch.manual_seed(config.run.seed)
    source, engine = pair_source(config), _engine(config)
    _train(config, source, engine)
    quality = measure(engine, source.draw(derive_seed(config.run.seed, "reward_model", "measured"), _NUM_MEASURED),
                      Share(rank(), num_ranks(), config.learner.micro_batch_tokens))  # fmt: skip
    state = engine.gather_full_state_dict()
    if rank() == 0:
        assert isinstance(engine.module, CriticModel)
        marker = {**inputs, **quality._asdict(), "seconds": round(time.monotonic() - began, 1)}
        with written_whole(output) as staging:
            staging.mkdir(parents=True)
            save_model(engine.module, staging, state)
            (staging / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
        shown = {name: value for name, value in quality._asdict().items() if name != "score_by_position"}
        log.info("reward_model_written", path=str(output), **shown)
    return output


def fingerprint(config: VcppoConfig) -> dict[str, Any]:
    """Everything the reward model depends on, and the hash of it under ``hash``; files by their content."""
    rollouts = config.reward_model.rollouts
    inputs = {
        "recipe_version": _RECIPE_VERSION,
        "reward_model": config.reward_model.model_dump(mode="json", exclude={"output"}),
        "rollouts": file_digest(rollouts) if rollouts is not None and rollouts.exists() else None,
        "model": {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code,
                  "path": config.model.path, "files": model_contents(config.model.path)},
        "task_files": contents_named([config.task.name, config.task.options]),
        "task": {"name": config.task.name, "options": config.task.options, "version": load_task(config.task).version},
        "style": _style(config),
        "seed": config.run.seed,
    }  # fmt: skip
    return fingerprinted(inputs)


def _style(config: VcppoConfig) -> dict[str, object]:
    """Demonstrations in the style the cold start ended with, which is the policy's."""
    return dict(config.sft.phases[-1].style) if config.sft.phases else {}


def pair_source(config: VcppoConfig) -> PairSource:
    """Recorded rollouts where the config names a file of them, else the task's demonstrations."""
    settings = config.reward_model
    prefixes = Prefixes(settings.prefix_fraction, settings.prefix_winner == "complete")
    if settings.rollouts is not None:
        if not settings.rollouts.is_file():
            raise VcppoError(f"reward_model.rollouts = {settings.rollouts}: there is no such file: record one first")
        file = TrajectoryFile(settings.rollouts)
        file.close()
        return RolloutPairs(file.trajectories, prefixes)
    return DemonstrationPairs(load_task(config.task), load_tokenizer(config), _style(config), prefixes)


def _engine(config: VcppoConfig) -> TrainEngine:
    options = EngineOptions(
        **sharing(config),
        max_grad_norm=config.rl.max_grad_norm,
        schedule="cosine",
        warmup_steps=config.reward_model.steps // 10,
        total_steps=config.reward_model.steps,
    )
    module = load_critic(
        config.model.path,
        init="policy",
        dtype=options.torch_dtype,
        as_stored=options.zero_stage == 3,
        trust_remote_code=config.model.trust_remote_code,
        recomputed_every=config.learner.recomputed_every,
        max_tokens=config.generator.max_model_len,
    )
    return TrainEngine(
        module,
        learning_rate=config.reward_model.learning_rate,
        options=options,
        rate_setting="reward_model.learning_rate",
    )


def _train(config: VcppoConfig, source: PairSource, engine: TrainEngine) -> None:
    settings = config.reward_model
    metrics = open_metrics(config, "reward_model", "steps_of_process") if rank() == 0 else None
    try:
        for step in range(1, settings.steps + 1):
            watchdog.stage("reward_model_step")
            pairs = source.draw(derive_seed(config.run.seed, "reward_model", step), settings.batch_size)
            loss, accuracy = _train_step(engine, pairs, settings.centre_coefficient, config.learner.micro_batch_tokens)
            values = {"reward_model/loss": loss, "reward_model/accuracy": accuracy}
            if metrics is not None:
                metrics.write(step, {"stage": "reward_model", **values})
            if step % _LOG_EVERY == 0 or step == settings.steps:
                log.info("reward_model_step", step=step, num_steps=settings.steps, loss=loss, accuracy=accuracy)
            if not math.isfinite(loss):
                raise VcppoError(f"reward model diverged at step {step}: lower reward_model.learning_rate")
    finally:
        if metrics is not None:
            metrics.close()


def _train_step(engine: TrainEngine, pairs: Sequence[Pair], centre: float, token_budget: int) -> tuple[float, float]:
    """One optimizer step; returns (mean loss, share ranked right) over all ranks. A pair stays in one micro-batch."""
    both = [trajectory for pair in pairs for trajectory in (pair.better, pair.worse)]
    lengths = [pair.better.num_tokens + pair.worse.num_tokens for pair in pairs]
    totals = np.zeros(2)
    for members in plan_micro_batches(lengths, token_budget, num_ranks())[rank()]:
        packed = build_packed(both, [2 * i + side for i in members for side in (0, 1)])
        scores = engine.forward(packed.to(engine.device)).last_values
        complete = torch.tensor([all(pairs[i].complete) for i in members], dtype=torch.bool, device=scores.device)
        loss = pair_loss(scores.view(-1, 2), complete, centre).sum() / len(pairs)
        engine.accumulate(loss)
        totals += [float(loss.detach()), float((scores[0::2] > scores[1::2]).sum()) / len(pairs)]
    engine.step()
    loss_sum, accuracy = sum_over_ranks(totals)
    return float(loss_sum), float(accuracy)


def pair_loss(scores: torch.Tensor, complete: torch.Tensor, centre: float) -> torch.Tensor:
    """``scores [P, 2]`` float32 (better, worse) and ``complete [P]`` bool to ``[P]`` losses."""
    ranking = -functional.logsigmoid(scores[:, 0] - scores[:, 1])
    return ranking + centre * complete * scores.mean(dim=1).square()


def measure(engine: TrainEngine, pairs: Sequence[Pair], share: Share) -> Quality:
    """On pairs that were not trained on. Collective."""
    batch = Batch([trajectory for pair in pairs for trajectory in (pair.better, pair.worse)], version=0)
    values, scores = compute_values(engine, Packer(batch, share))
    right = scores[0::2] > scores[1::2]
    whole = np.array([all(pair.complete) for pair in pairs])
    ends = np.array([done for pair in pairs for done in pair.complete])
    better = np.flatnonzero(np.repeat(whole, 2) & (np.arange(len(batch)) % 2 == 0))
    cu = batch.action_cu_seqlens
    kept = np.concatenate([values[cu[i] : cu[i + 1]] for i in better]) if len(better) else np.zeros(0)
    kept_cu = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(cu)[better])])
    return Quality(
        accuracy=float(right.mean()),
        whole=float(right[whole].mean()) if whole.any() else None,
        complete_score=float(scores[ends].mean()) if ends.any() else None,
        score_by_position=mean_by_position(kept, kept_cu),
    )


if __name__ == "__main__":
    end_process(main())
