"""The work of `vcppo samples`: one page of what matches."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vcppo.common.config import load_config
from vcppo.common.errors import EXIT_OK
from vcppo.common.records.ids import is_within
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_config import RunError, latest_run, open_run
from vcppo.deploy.samples.sample_choices import Stage
from vcppo.deploy.samples.show import Decoder, show, show_json
from vcppo.deploy.samples.sources import (
    Sample,
    newest_stage,
    samples_of_evaluations,
    samples_of_rl,
    samples_of_value_pretraining,
    steps_of,
)

_SORTS: dict[str, Callable[[Sample], float | None]] = {
    "advantage": lambda sample: sample.largest_advantage,
    "mismatch": lambda sample: sample.largest_mismatch,
    "reward": lambda sample: sample.reward,
    "length": lambda sample: sample.length,
}


@dataclass(frozen=True)
class Wanted:
    """Which samples; None wants all."""

    outcomes: frozenset[str] | None = None
    finish_reason: str | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    min_length: int | None = None
    max_length: int | None = None
    prompt: str | None = None

    def __call__(self, sample: Sample) -> bool:
        reward, length = sample.reward, sample.length
        return (
            (self.outcomes is None or sample.outcome in self.outcomes)
            and (self.finish_reason is None or sample.finish_reason == self.finish_reason)
            and (self.min_reward is None or (reward is not None and reward >= self.min_reward))
            and (self.max_reward is None or (reward is not None and reward <= self.max_reward))
            and (self.min_length is None or length >= self.min_length)
            and (self.max_length is None or length <= self.max_length)
            and (self.prompt is None or is_within(sample.id, self.prompt))
        )


def run_samples(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises VcppoError."""
    folder = latest_run() if arguments.run is None else open_run(arguments.run)
    config = load_config(folder.config)
    stage: Stage | None = arguments.stage or newest_stage(folder)
    if stage is None:
        raise RunError(f"{folder.path} has no responses yet: value pretraining or the first RL step brings them")
    wanted = Wanted(
        arguments.outcome, arguments.finish, arguments.min_reward, arguments.max_reward, arguments.min_length,
        arguments.max_length, arguments.prompt,
    )  # fmt: skip
    first = (arguments.page - 1) * arguments.limit
    last = first + arguments.limit if arguments.limit else sys.maxsize
    page: list[Sample] = []
    outcomes, num_matching = Counter[str](), 0
    for sample in _sorted(_of_stage(stage, folder, arguments), arguments.sort):
        outcomes[sample.outcome] += 1
        if wanted(sample):
            if first <= num_matching < last:
                page.append(sample)
            num_matching += 1
    decode = Decoder(config, arguments.tokenizer)
    if arguments.json:
        show_json(page, decode, sys.stdout, with_tokens=arguments.tokens)
        return EXIT_OK
    show(page, decode, sys.stdout, colour=sys.stdout.isatty(), with_tokens=arguments.tokens)
    sys.stdout.write(_summary(stage, outcomes, num_matching, first, len(page), arguments) + "\n")
    return EXIT_OK


def _sorted(samples: Iterator[Sample], by: str | None) -> Iterable[Sample]:
    """Largest first; those without the number last."""
    if by is None:
        return samples
    number = _SORTS[by]
    return sorted(samples, key=lambda sample: -math.inf if (found := number(sample)) is None else found, reverse=True)


def _of_stage(stage: Stage, folder: RunFolder, arguments: argparse.Namespace) -> Iterator[Sample]:
    if stage == "value_pretraining":
        return samples_of_value_pretraining(folder)
    if stage == "eval":
        return samples_of_evaluations(folder, arguments.model)
    steps = list(steps_of(folder))
    if not steps:
        raise RunError(
            f"{folder.path} has no samples of RL steps: none is done yet, or metrics.samples_per_step was 0;"
            " --stage value_pretraining shows the recording"
        )
    first, last = arguments.step or (steps[-1], steps[-1])
    if not any(first <= step <= last for step in steps):
        raise RunError(f"--step: {folder.samples} keeps samples of steps {steps[0]} to {steps[-1]}: choose of these")
    return samples_of_rl(folder, first, last)


def _summary(
    stage: Stage, outcomes: Counter[str], num_matching: int, first: int, shown: int, arguments: argparse.Namespace
) -> str:
    """What there is, what of it matched, and how to see the rest."""
    kinds = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    text = f"{sum(outcomes.values())} responses looked at ({kinds or 'none'}), {num_matching} match"
    if shown:
        text += f"; these are {first + 1} to {first + shown}"
    if arguments.limit and num_matching > first + shown:
        text += f", more with --page {arguments.page + 1}"
    if stage == "rl":
        text += ". A step keeps rare outcomes first: for rates see `vcppo report`"
    return f"{text}."
