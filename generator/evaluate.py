"""pass@1 and pass@k of a model folder, sampled by vLLM and judged by the task's verifier.

    python -m generator.evaluate --config RUN/config.yaml --model DIR --output FILE.json [section.field=value ...]

Writes FILE.json (the figures) and FILE.jsonl beside it (one line a problem). pass@k is the unbiased estimate
1 − C(n−c, k)/C(n, k) for n samples of which c are correct, averaged over problems; intervals are 95 %: Wilson's for
one sample a problem, else a bootstrap over problems, since samples of one problem are not independent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from common import watchdog
from common.config import VcppoConfig, load_config
from common.errors import EXIT_OK, VcppoError
from common.log import configure_logging
from common.run_folder import RunFolder
from common.tasks import Problem, decode_response, encode_prompt, load_task
from common.trajectory import Prompt
from generator.engine import Engine
from generator.model_files import load_tokenizer
from generator.verifier_pool import VerifierPool

log = structlog.get_logger(__name__)

_Z = 1.959964  # 95 %
_NUM_BOOTSTRAPS = 2000


@dataclass(slots=True)
class ProblemRecord:
    """What became of one problem: lengths in tokens, outcomes, extracted answers, one entry a sample."""

    index: int
    prompt: Any
    lengths: list[int] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    extracted: list[str | None] = field(default_factory=list)

    @property
    def num_correct(self) -> int:
        return self.outcomes.count("correct")


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of ``k`` of the ``num_samples`` is correct. ValueError unless k <= num_samples."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@k needs 1 <= k <= num_samples, got k={k}, num_samples={num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def wilson_interval(num_correct: int, num: int) -> tuple[float, float]:
    """95 % interval of a proportion; honest near 0 and 1."""
    rate, z2 = num_correct / num, _Z**2
    centre = (rate + z2 / (2 * num)) / (1 + z2 / num)
    half = _Z * math.sqrt(rate * (1 - rate) / num + z2 / (4 * num**2)) / (1 + z2 / num)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over problems; ``values [P]``."""
    generator = np.random.default_rng(seed)
    means = generator.choice(values, (_NUM_BOOTSTRAPS, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def summarise(records: Sequence[ProblemRecord], k: int, seed: int) -> dict[str, Any]:
    """The figures of FILE.json, from all problems' records."""
    num = sum(len(r.outcomes) for r in records)
    correct = sum(r.num_correct for r in records)
    rates = np.asarray([r.num_correct / len(r.outcomes) for r in records])
    at_k = np.asarray([pass_at_k(len(r.outcomes), r.num_correct, k) for r in records])
    single = all(len(r.outcomes) == 1 for r in records)
    lengths = [length for r in records for length in r.lengths]
    outcomes = Counter(outcome for r in records for outcome in r.outcomes)
    truncated = sum(reason == "length" for r in records for reason in r.finish_reasons)
    return {
        "pass_at_1": float(rates.mean()),
        "pass_at_1_interval": wilson_interval(correct, num) if single else bootstrap_interval(rates, seed),
        "k": k,
        "pass_at_k": float(at_k.mean()),
        "pass_at_k_interval": bootstrap_interval(at_k, seed),
        "num_problems": len(records),
        "num_samples": num,
        "mean_length": float(np.mean(lengths)),
        "max_length": max(lengths),
        "truncated_fraction": truncated / num,
        "outcomes": dict(outcomes),
    }


class Evaluation:
    """One model on the held-out problems. Make it, ``await run()``."""

    def __init__(self, config: VcppoConfig, engine: Engine, verifiers: VerifierPool, tokenizer: Any) -> None:
        self._config = config
        self._engine = engine
        self._verifiers = verifiers
        self._tokenizer = tokenizer
        self._places = asyncio.Semaphore(config.generator.max_in_flight)
        self._num_done = 0

    async def run(self) -> list[ProblemRecord]:
        """Records in problem order."""
        settings = self._config.eval
        problems = load_task(self._config.task).problems("held_out", settings.seed, 0, settings.num_problems)
        records = [ProblemRecord(i, problem.prompt) for i, problem in enumerate(problems)]
        total = len(problems) * settings.samples_per_problem
        log.info("evaluation_started", problems=len(problems), samples=total, model=self._engine.model)
        async with asyncio.TaskGroup() as group:
            for record, problem in zip(records, problems, strict=True):
                for sample in range(settings.samples_per_problem):
                    group.create_task(self._sample(record, problem, sample, total))
        return records

    async def _sample(self, record: ProblemRecord, problem: Problem, sample: int, total: int) -> None:
        async with self._places:
            rollout = await self._engine.generate(self._prompt(record.index, problem, sample))
            text = decode_response(self._tokenizer, rollout.token_ids)
            verdict = await self._verifiers.verify(problem.answer, text, rollout.finish_reason)
        record.lengths.append(len(rollout.token_ids))
        record.outcomes.append(verdict.outcome)
        record.finish_reasons.append(rollout.finish_reason)
        record.extracted.append(verdict.extracted)
        self._num_done += 1
        watchdog.stage("evaluate", waiting_for=["vLLM", "verifier"])
        if self._num_done % max(1, total // 10) == 0:
            log.info("evaluation_progress", done=self._num_done, of=total)

    def _prompt(self, index: int, problem: Problem, sample: int) -> Prompt:
        settings = self._config.eval
        return Prompt(
            id=f"eval-{index}-{sample}",
            group_id=f"eval-{index}",
            sample_index=sample,
            task=self._config.task.name,
            token_ids=encode_prompt(self._tokenizer, problem.prompt),
            problem=problem.answer,
            seed=(settings.seed * 1_000_003 + index * settings.samples_per_problem + sample) % 2**31,
            issue_version=0,
            purpose="rl",
            max_response_tokens=self._config.sampling.max_response_tokens,
        )


async def evaluate(config: VcppoConfig, model: str) -> tuple[dict[str, Any], list[ProblemRecord]]:
    """Bring an engine up on ``model``, run the held-out problems, return figures and records."""
    if config.eval.k > config.eval.samples_per_problem:
        raise VcppoError(
            f"eval.k = {config.eval.k} needs eval.samples_per_problem >= k, it is {config.eval.samples_per_problem}"
        )
    engine, verifiers = Engine(config, model=model, seed=config.eval.seed % 2**31), VerifierPool(config.task)
    began = time.monotonic()
    try:
        tokenizer = await asyncio.to_thread(load_tokenizer, model, config.model.trust_remote_code)
        await verifiers.start()
        await engine.start()
        started = time.monotonic()
        records = await Evaluation(config, engine, verifiers, tokenizer).run()
        seconds = time.monotonic() - started
    finally:
        engine.shutdown()
        await verifiers.close()
    figures = summarise(records, config.eval.k, config.eval.seed)
    num_tokens = sum(sum(r.lengths) for r in records)
    return figures | {
        "model": model,
        "seed": config.eval.seed,
        "temperature": config.sampling.temperature,
        "seconds": seconds,
        "startup_seconds": started - began,
        "tokens_per_second": num_tokens / seconds,
    }, records


def write_results(output: Path, figures: dict[str, Any], records: Sequence[ProblemRecord]) -> None:
    """FILE.json, whole or not at all, after FILE.jsonl."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({name: getattr(r, name) for name in r.__slots__}, ensure_ascii=False) for r in records)
    output.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines))
    partial = output.with_name(output.name + ".partial")
    partial.write_text(json.dumps(figures, indent=2) + "\n")
    partial.replace(output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m generator.evaluate", description="pass@1 and pass@k of a model")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--output", type=Path, required=True, help="FILE.json; records go to FILE.jsonl")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        configure_logging(config.logging, "evaluate", config.run.name)
        watchdog.start(config.watchdog, RunFolder(config.run.path).create().stacks_file("evaluate"))
        watchdog.stage("start", waiting_for=["vLLM"])
        figures, records = asyncio.run(evaluate(config, options.model))
        write_results(options.output, figures, records)
    except VcppoError as error:
        log.error("fatal", error=str(error))
        return error.exit_code
    finally:
        watchdog.stop()
    log.info(
        "evaluation_done", output=str(options.output), pass_at_1=figures["pass_at_1"], pass_at_k=figures["pass_at_k"]
    )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
