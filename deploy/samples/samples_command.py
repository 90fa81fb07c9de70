"""`vcppo samples`: what it takes on the command line. Its work is imported when it runs: a help text waits for none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from vcppo.common.records.outcomes import Outcome
from vcppo.deploy.samples.sample_choices import SORTS, STAGES, parse_steps

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
DEFAULT_LIMIT = 5


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
    command.add_argument("--sort", choices=SORTS, help="largest first; advantage and mismatch are of its tokens")
    command.add_argument("--tokens", action="store_true", help="of RL: what the critic believed, token by token")
    command.add_argument("--limit", type=_count, default=DEFAULT_LIMIT, metavar="N", help="a page (5); 0: all")
    command.add_argument("--page", type=_page, default=1, metavar="N", help="which page, from 1")
    command.add_argument("--tokenizer", metavar="DIR", help="decode with this one; default: that of model.path")
    command.add_argument("--json", action="store_true", help="JSON lines, for jq")


def _samples(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.samples.run_samples import run_samples

    return run_samples(arguments)


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
