"""`vcppo eval --benchmark`: what each benchmark is as settings, laid over the user's config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

ALL_PROBLEMS = 1_000_000
SAMPLES = 32


@dataclass(frozen=True)
class Benchmark:
    """A task and its options; ``source`` is the public data set, `--data` a file or set of the same columns instead."""

    task: str
    source: str | None
    options: dict[str, object]
    verifier_timeout_seconds: float = 10.0


BENCHMARKS = {
    "aime": Benchmark("aime", "HuggingFaceH4/aime_2024", {}),
    "gpqa": Benchmark("gpqa", "Idavidrein/gpqa", {"subset": "gpqa_diamond"}),
    "codeforces": Benchmark(
        "code",
        "open-r1/codeforces",
        {
            "subset": "verifiable",
            "hub_split": "test",
            "question_columns": ["description", "input_format", "output_format"],
            "tests_column": "official_tests",
            "time_limit_column": "time_limit",
            "total_seconds": 60.0,
        },
        verifier_timeout_seconds=90.0,
    ),
    "jsonl": Benchmark("dataset", None, {}),
}


def as_overrides(name: str, data: str | None) -> list[str]:
    """``section.field=value`` texts; the user's own come after them and win.

    Raises:
        ValueError: the benchmark needs `data`.
    """
    benchmark = BENCHMARKS[name]
    path = data or benchmark.source
    if path is None:
        raise ValueError(f"--benchmark {name} needs --data FILE (.jsonl, .json, .parquet) or a data set's id")
    options = dict(benchmark.options) if data is None or not _is_file(data) else _for_file(benchmark.options)
    task = {"path": path, "evaluation_only": True, **options}
    settings: dict[str, object] = {
        "task.name": benchmark.task,
        "task.options": task,
        "task.verifier_timeout_seconds": benchmark.verifier_timeout_seconds,
        "eval.num_problems": ALL_PROBLEMS,
        "eval.samples_per_problem": SAMPLES,
        "eval.k": SAMPLES,
    }
    return [f"{field}={json.dumps(value)}" for field, value in settings.items()]


def _is_file(data: str) -> bool:
    return data.endswith((".jsonl", ".json", ".parquet"))


def _for_file(options: dict[str, object]) -> dict[str, object]:
    """Without what only says where on the hub."""
    return {name: value for name, value in options.items() if name not in ("subset", "hub_split")}


def names() -> Sequence[str]:
    """What `vcppo eval --benchmark` takes."""
    return tuple(BENCHMARKS)
