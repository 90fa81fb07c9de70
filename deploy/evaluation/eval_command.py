"""`vcppo eval` and `vcppo contamination`: what they take on the command line, and what they call."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vcppo.common.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]
ConfigOf = Callable[[argparse.Namespace, Sequence[str]], "VcppoConfig"]
"""The config of a command, with settings between the file's and the command line's."""


def add_evaluation(add: Add, takes_config: Callable[[argparse.ArgumentParser], None], config_of: ConfigOf) -> None:
    """Both commands."""
    evaluation = add("eval", partial(_eval, config_of), "pass@1 and pass@k of models on held-out problems",
                      "vcppo eval -c my.yaml --model runs/run/export\n"
                      "vcppo eval --run run --model runs/run/cold_start --model runs/run/export eval.k=4\n"
                      "vcppo eval --run run --benchmark aime --model runs/run/export        32 samples a problem\n"
                      "vcppo eval -c my.yaml --benchmark gpqa --data gpqa.parquet --model DIR --generators 4\n"
                      "killed in the middle, the same command makes only the missing samples")  # fmt: skip
    takes_config(evaluation)
    evaluation.add_argument(
        "--model",
        type=Path,
        action="append",
        required=True,
        metavar="DIR",
        help="a Hugging Face folder; may be given more than once",
    )
    _takes_benchmark(evaluation, required=False)
    evaluation.add_argument(
        "--generators", type=_positive, metavar="N",
        help="vLLM processes for each model; default: generator.num_generators, divided between the models",
    )  # fmt: skip

    contamination = add(
        "contamination", partial(_contamination, config_of),
        "do training questions occur in a benchmark? exit 1 if any does",
        "vcppo contamination -c my.yaml --benchmark aime\n"
        "vcppo contamination -c my.yaml --benchmark jsonl --data test.jsonl --ngram 8")  # fmt: skip
    takes_config(contamination)
    _takes_benchmark(contamination, required=True)
    contamination.add_argument(
        "--ngram", type=_positive, default=13, metavar="N", help="words in a row that count as the same (13)"
    )
    contamination.add_argument(
        "--problems", type=_positive, default=100_000, metavar="N", help="training questions looked at, of each source"
    )


def _eval(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    from vcppo.common.tasks import load_task
    from vcppo.deploy.evaluation.workers import Place, evaluate, print_table
    from vcppo.deploy.run.run_config import RunError, leaving_nothing, write_config
    from vcppo.deploy.terminal.session import open_session

    if arguments.data and not arguments.benchmark:
        raise RunError(
            "--data says where a benchmark's problems are: give --benchmark jsonl, aime, gpqa or codeforces too"
        )
    config = _benchmark_config(config_of, arguments) if arguments.benchmark else config_of(arguments, ())
    models = {path.resolve().name: path for path in arguments.model}
    if len(models) < len(arguments.model):
        models = {f"{path.resolve().parent.name}-{path.resolve().name}": path for path in arguments.model}
    workers = arguments.generators or max(1, config.generator.num_generators // len(models))
    with leaving_nothing(config.run.path):
        if arguments.benchmark:
            load_task(config.task)  # data at fault is one line now, not the end of a process later
            place = Place.of_benchmark(config, arguments.benchmark)
        else:
            write_config(config)
            place = Place.of_run(config)
        with open_session(config, "follow") as session, session.stage("evaluation"):
            results = evaluate(config, models, session.sink, place=place, workers=workers)
    print_table(results)
    print(f"records: {place.results}/*.jsonl")
    return EXIT_OK


def _contamination(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from vcppo.deploy.evaluation.contamination import check_contamination

    train = config_of(arguments, ())
    benchmark = argparse.Namespace(**{**vars(arguments), "overrides": []})  # those given are of what is trained on
    test = _benchmark_config(config_of, benchmark)
    clean = check_contamination(train, test, arguments.problems, arguments.ngram, Console())
    return EXIT_OK if clean else EXIT_FAILURE


def _benchmark_config(config_of: ConfigOf, arguments: argparse.Namespace) -> VcppoConfig:
    """The command's config, with the benchmark's settings between the file's and the command line's."""
    from vcppo.deploy.evaluation.known_benchmarks import as_overrides
    from vcppo.deploy.run.run_config import RunError

    try:
        return config_of(arguments, as_overrides(arguments.benchmark, arguments.data))
    except ValueError as error:
        raise RunError(str(error)) from None


def _takes_benchmark(parser: argparse.ArgumentParser, required: bool) -> None:
    from vcppo.deploy.evaluation.known_benchmarks import names

    parser.add_argument(
        "--benchmark", choices=names(), required=required,
        help="instead of the task's held-out problems; jsonl: your own questions and answers (see docs/evaluation.md)",
    )  # fmt: skip
    parser.add_argument(
        "--data",
        metavar="FILE|ID",
        help="its problems: .jsonl, .json, .parquet, or a Hugging Face id of the same columns",
    )


def _positive(text: str) -> int:
    """argparse's type: an integer from 1."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)
