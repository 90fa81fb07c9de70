"""`vcppo samples`: what it takes on the command line; one page of what matches."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from vcppo.common.config import load_config
from vcppo.common.errors import EXIT_OK
from vcppo.common.records.ids import is_within
from vcppo.common.records.trajectory import Outcome
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_config import RunError, latest_run, open_run
from vcppo.deploy.samples.show import Decoder, show, show_json
from vcppo.deploy.samples.sources import (
    STAGES,
    Sample,
    Stage,
    newest_stage,
    parse_steps,
    samples_of_evaluations,
    samples_of_rl,
    samples_of_value_pretraining,
    steps_of,
)

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
DEFAULT_LIMIT = 5
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


def add_samples(add: Add) -> None:
    """The command."""
    command = add("samples", _samples, "read responses of a run: RL steps, value pretraining, evaluations",
                  "vcppo samples runs/run                             of the newest RL step, five a page\n"
                  "vcppo samples runs/run --step 3-7 --outcome correct --limit 20\n"
                  "vcppo samples runs/run --sort advantage --limit 1 --tokens   what the critic believed\n"
                  "vcppo samples runs/run --stage value_pretraining --finish length --page 2\n"
                  "vcppo samples runs/run --stage eval --model export --outcome unparsable\n"
                  "vcppo samples runs/run --step all --json --limit 0 | jq .response")  # fmt: skip
    command.add_argument("run", nargs="?", metavar="RUN", help="run folder or name; default: the latest")
    command.add_argument("--stage", choices=STAGES, help="default: rl, else value_pretraining, else eval")
    command.add_argument("--step", type=_steps, metavar="S", help="of RL: 12, 3-7 or all; default: the newest")
    command.add_argument("--model", metavar="NAME", help="of evaluations: of this model or benchmark only")
    command.add_argument("--outcome", type=_outcomes, metavar="O", help=f"one or more of {','.join(get_args(Outcome))}")
    command.add_argument("--finish", choices=["stop", "length", "abort"], help="how it ended; length: cut off")
    for name, kind, text in (("reward", float, "reward"), ("length", int, "length in tokens")):
        command.add_argument(f"--min-{name}", type=kind, metavar="N", help=f"least {text}")
        command.add_argument(f"--max-{name}", type=kind, metavar="N", help=f"largest {text}")
    command.add_argument("--prompt", metavar="ID", help="one prompt, or all samples of one group")
    command.add_argument("--sort", choices=list(_SORTS), help="largest first; advantage and mismatch are of its tokens")
    command.add_argument("--tokens", action="store_true", help="of RL: what the critic believed, token by token")
    command.add_argument("--limit", type=_count, default=DEFAULT_LIMIT, metavar="N", help="a page (5); 0: all")
    command.add_argument("--page", type=_page, default=1, metavar="N", help="which page, from 1")
    command.add_argument("--tokenizer", metavar="DIR", help="decode with this one; default: that of model.path")
    command.add_argument("--json", action="store_true", help="JSON lines, for jq")


def _samples(arguments: argparse.Namespace) -> int:
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


def _steps(text: str) -> tuple[int, int]:
    if (found := parse_steps(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no step: write 12, 3-7 or all")
    return found


def _outcomes(text: str) -> frozenset[str]:
    chosen = frozenset(text.split(","))
    if unknown := sorted(chosen - set(get_args(Outcome))):
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no outcome: choose of {', '.join(get_args(Outcome))}")
    return chosen


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no count: write a whole number, 0 for all")
    return int(text)


def _page(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no page: pages count from 1")
    return int(text)
