"""`vcppo check`: what it takes on the command line. Its work is imported when it runs: a help text waits for none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]
ConfigOf = Callable[[argparse.Namespace], "VcppoConfig"]

DEFAULT_RESPONSES = 3


def add_check(add: Add, takes_config: Callable[[argparse.ArgumentParser], None], config_of: ConfigOf) -> None:
    """The command."""
    check = add("check", partial(_check, config_of), "what can be known before a run starts; exit 1: it would fail",
                "vcppo check -c my.yaml                  model, data, prompts, verifier, machine: a minute or two\n"
                "vcppo check -c my.yaml --quick          only what takes a second, as every `vcppo up` does first\n"
                "vcppo check -c my.yaml --generate       also brings vLLM up and shows three responses\n"
                "vcppo check -c my.yaml generator.max_model_len=4096    what if")  # fmt: skip
    takes_config(check)
    check.add_argument("--quick", action="store_true", help="neither the model nor the data are loaded")
    check.add_argument(
        "--generate", type=_positive, nargs="?", const=DEFAULT_RESPONSES, default=0, metavar="N",
        help=f"N responses by the real engine, judged by the verifier ({DEFAULT_RESPONSES})",
    )  # fmt: skip
    check.add_argument("--json", action="store_true", help="one JSON object a line, the last one a summary")


def _check(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    from vcppo.deploy.check.run_check import run_check

    return run_check(config_of, arguments)


def _positive(text: str) -> int:
    """argparse's type: an integer from 1."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
