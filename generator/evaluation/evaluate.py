"""Samples of a model folder on a task's held-out problems, by vLLM, judged by the task's verifier; then the figures.

    python -m vcppo.generator.evaluation.evaluate --config RUN/config.yaml --model DIR --output FILE.json
                                 [--worker 0 --num-workers 2] [section.field=value ...]

Each sample goes to disk as it is done (`vcppo.common.evaluation.eval_samples`), and samples that are there are not made
again: killed and started anew, only the missing ones are made. Of W workers, number w makes every W-th sample; who
finds all of them there writes FILE.jsonl (a line a problem) and FILE.json (the figures,
`vcppo.common.evaluation.pass_at_k`).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.eval_samples import (
    Key,
    Sample,
    SampleFiles,
    plan_key,
    problem_keys,
    records_of,
    summarise,
    write_results,
)
from vcppo.common.evaluation.evaluation_inputs import asked, evaluation_inputs, with_evaluation_sampling
from vcppo.common.evaluation.held_out import held_out_problems, sample_seed
from vcppo.common.process import watchdog
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.records.ids import make_evaluation_group_id, make_process_name, make_prompt_id
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem, encode_prompt, load_task, prompt_lengths
from vcppo.generator.evaluation.judged_engine import judged_engine, together
from vcppo.generator.reward_sources.source import RewardSource
from vcppo.generator.turns.judges import Judges, Respondent
from vcppo.generator.vllm_engine.end_tokens import load_tokenizer
from vcppo.generator.vllm_engine.engine import Engine

log = structlog.get_logger(__name__)


class Work(NamedTuple):
    """One sample to be made: the problem, its key, and which of its samples."""

    problem: Problem
    key: str
    sample: int


@dataclass(frozen=True)
class Plan:
    """What is to be evaluated, the same in every worker.

    Attributes:
        left_out: how many problems are not among `problems` because their prompts are too long.
    """

    config: VcppoConfig
    model: str
    problems: list[Problem]
    left_out: int = 0

    @classmethod
    def of(cls, config: VcppoConfig, model: str, tokenizer: Any = None) -> Plan:
        """``eval.num_problems`` held-out problems, or all there are; with a tokenizer, those for whose prompts
        ``generator.max_model_len`` has room.

        Raises:
            TaskError: a task or data at fault; a prompt is too long and ``task.overlong`` is ``refuse``; all are.
        """
        lengths_of = None if tokenizer is None else partial(prompt_lengths, tokenizer)
        found = held_out_problems(config, load_task(config.task), config.eval.num_problems, lengths_of)
        return cls(config, model, found.problems, found.left_out)

    @property
    def inputs(self) -> dict[str, Any]:
        """What the samples depend on; not how many there are, so that more can be added."""
        return evaluation_inputs(self.config, self.model)

    @property
    def key(self) -> str:
        """Of the inputs as they are now."""
        return plan_key(self.inputs)

    def work(self, worker: int, num_workers: int, done: set[Key]) -> list[Work]:
        """What this worker has to make. By the sample's place in the whole, so workers agree without a word."""
        per_problem = self.config.eval.samples_per_problem
        return [
            Work(problem, key, sample)
            for index, (key, problem) in enumerate(zip(problem_keys(self.problems), self.problems, strict=True))
            for sample in range(per_problem)
            if (index * per_problem + sample) % num_workers == worker and (key, sample) not in done
        ]

    def finish(self, files: SampleFiles, output: Path) -> dict[str, Any] | None:
        """Write the results when every sample is there; None when another worker still has some."""
        records = records_of(self.problems, files.read(), self.config.eval.samples_per_problem)
        if records is None:
            return None
        settings, sampling = self.config.eval, with_evaluation_sampling(self.config).sampling
        figures = summarise(records, settings.k, settings.seed) | {
            "model": self.model,
            "task": self.config.task.name,
            "samples_per_problem": settings.samples_per_problem,
            "seed": settings.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "left_out": self.left_out,
            "asked": asked(self.config),
            "inputs": files.plan,
        }
        write_results(output, figures, records)
        return figures


class Sampler:
    """Makes samples and writes each down. Make it, ``await run()``."""

    def __init__(
        self,
        config: VcppoConfig,
        engine: Engine,
        judges: Judges,
        tokenizer: Any,
        files: SampleFiles,
        rewards: RewardSource | None = None,
    ) -> None:
        self._config = config
        self._model = engine.model
        self._respondent = Respondent(config, engine, judges, tokenizer, rewards)
        self._tokenizer = tokenizer
        self._files = files
        self._places = asyncio.Semaphore(config.generator.max_in_flight)
        self._num_done = 0

    async def run(self, work: Sequence[Work]) -> None:
        """Raises VcppoError, the first, when vLLM, the judges or the source of rewards fails for good."""
        log.info("evaluation_started", samples=len(work), model=self._model)
        await together(self._make(each, len(work)) for each in work)

    async def _make(self, work: Work, total: int) -> None:
        async with self._places:
            made = await self._respondent.respond(self._prompt(work))
        self._files.add(
            Sample(
                problem=work.key,
                sample=work.sample,
                outcome=made.verdict.outcome,
                extracted=made.verdict.extracted,
                finish_reason=made.finish_reason,
                length=made.num_tokens,
                seconds=round(made.seconds, 3),
                response=made.text,
            )
        )
        self._num_done += 1
        watchdog.stage("evaluate", waiting_for=["vLLM", "verifier"])
        if self._num_done % max(1, total // 10) == 0:
            log.info("evaluation_progress", done=self._num_done, of=total)

    def _prompt(self, work: Work) -> Prompt:
        config = self._config
        group_id = make_evaluation_group_id(work.key)
        return Prompt(
            id=make_prompt_id(group_id, work.sample),
            group_id=group_id,
            sample_index=work.sample,
            task=config.task.name,
            token_ids=encode_prompt(self._tokenizer, work.problem.prompt),
            answer=work.problem.answer,
            seed=sample_seed(config.eval.seed, work.key, work.sample),
            issue_version=0,
            purpose="rl",
            max_response_tokens=config.sampling.max_response_tokens,
        )


async def generate(plan: Plan, work: Sequence[Work], files: SampleFiles, tokenizer: Any) -> None:
    """Bring an engine up on the plan's model and make the samples."""
    config, began = with_evaluation_sampling(plan.config), time.monotonic()
    async with judged_engine(config, plan.model, config.eval.seed) as (engine, judges, rewards):
        started = time.monotonic()
        await Sampler(config, engine, judges, tokenizer, files, rewards).run(work)
    seconds = time.monotonic() - started
    log.info("samples_done", samples=len(work), seconds=round(seconds, 1), startup_seconds=round(started - began, 1))


def evaluate(config: VcppoConfig, model: str, output: Path, worker: int, num_workers: int) -> dict[str, Any] | None:
    """Make what is missing of this worker's part; the figures if then nothing is missing at all."""
    tokenizer = load_tokenizer(model, config.model.trust_remote_code)
    plan = Plan.of(config, model, tokenizer)
    inputs = plan.inputs
    files = SampleFiles(output, plan_key(inputs), worker)
    there = files.read()
    if not there and (changed := files.changed_since_last(inputs)):
        log.info("older_samples_not_used", changed=changed, remedy="none needed: samples of these inputs are made")
    files.note_inputs(inputs)
    work = plan.work(worker, num_workers, set(there))
    if there:
        log.info("evaluation_resumed", samples_there=len(there), missing_of_mine=len(work))
    if work:
        asyncio.run(generate(plan, work, files, tokenizer))
    return plan.finish(files, output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = process_parser("python -m vcppo.generator.evaluation.evaluate", "pass@1 and pass@k of a model")
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--output", type=Path, required=True, help="FILE.json; records go to FILE.jsonl")
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=1)
    options = parser.parse_args(arguments)
    if not 0 <= options.worker < options.num_workers:
        parser.error(f"--worker {options.worker}: from 0 to --num-workers - 1 = {options.num_workers - 1}")

    def work(config: VcppoConfig) -> None:
        figures = evaluate(config, options.model, options.output, options.worker, options.num_workers)
        if figures is not None:
            shown = {name: figures[name] for name in ("pass_at_1", "k", "pass_at_k")}
            log.info("evaluation_done", output=str(options.output), **shown)

    stacks = make_process_name("evaluate", options.worker)
    return run_process(options, "evaluate", work, stacks=stacks, waiting_for=["vLLM"], holds_run=False)


if __name__ == "__main__":
    sys.exit(main())
