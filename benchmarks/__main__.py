"""Measure against physical limits and the peers' ways: `make bench`, or `python -m benchmarks gae wire`.

Each benchmark runs in a process of its own, pinned to as many cores as it is about, and gives figures: ratios taken
within one run, medians over rounds. They are printed and, unless --quick, kept in docs/performance.json, from which the
table of docs/performance.md is made. Exit 0: all ran; a goal that is missed is reported, not an error. Exit 1: one
failed, or computed something wrong.

`python -m benchmarks compare A B` prints what moved between two commits or files; see its --help.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import compare
from benchmarks.rig import performance_page
from benchmarks.rig.figures import Figure
from benchmarks.rig.harness import Settings

DEADLINE_SECONDS = 2700.0


class Benchmark(NamedTuple):
    """One entry of the list: its module has ``run(settings) -> list[Figure]``."""

    name: str
    num_cores: int
    about: str
    by_name_only: bool = False  # takes too long for `make bench`

    @property
    def module(self) -> str:
        return f"benchmarks.cases.by_name.{self.name}" if self.by_name_only else f"benchmarks.cases.{self.name}"


BENCHMARKS = (
    Benchmark("gae", 1, "decoupled GAE against a copy of its arrays and a tensor loop"),
    Benchmark("wire", 1, "encode and decode a trajectory against memcpy, pickled lists, JSON"),
    Benchmark("transport", 2, "generator to learner through ZeroMQ and Redis against Redis streams"),
    Benchmark("log_probs", 1, "log-probs and entropy without the logits against with them"),
    Benchmark("packing", 1, "packed forward and backward against padded and length-sorted"),
    Benchmark("attention", 1, "our bfloat16 attention against torch's kernel, by length of the segments"),
    Benchmark("learner_step", 1, "a whole learner step against the machine's own matrix product"),
    Benchmark("generation", 1, "a generator's tokens per second against vLLM's LLM.generate"),
    Benchmark("turn_prefix", 1, "a session of eight turns, found again in the prefix cache, against one turn"),
    Benchmark("weight_update", 2, "pause to resume, and bytes per second, against memcpy and gloo's broadcast"),
    Benchmark("weight_proof", 2, "wrong weights on purpose: found every time? right ones: never taken for wrong?"),
    Benchmark("overlap", 2, "asynchronous against synchronous on the same work"),
    Benchmark("start_up", 2, "a generator and the learner coming up against vLLM's engine alone"),
    Benchmark("processes", 2, "1 to 4 generators, 1 to 2 learner ranks: is it a straight line?"),
    Benchmark("growth", 2, "1k to 32k tokens, 10² to 10⁵ buffered trajectories: is it a straight line?"),
    Benchmark("pages", 2, "`vcppo ui` on a run of 10⁴ steps and 10⁵ samples: milliseconds a page"),
    Benchmark("soak", 2, "memory of every process over half an hour of training", by_name_only=True),
    Benchmark("adapters", 1, "memory and time of a learner with LoRA against full training", by_name_only=True),
    Benchmark("compose_scaling", 2, "docker compose --scale 1 → 2 → 4 → 1: throughput follows?", by_name_only=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen benchmarks one after the other. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["compare"]:
        return compare.main(words[1:])
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    slow = [benchmark.name for benchmark in BENCHMARKS if benchmark.by_name_only]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default: all but {' and '.join(slow)}"
    )
    parser.add_argument("--quick", action="store_true", help="small and once: does it run, is it right? Keeps nothing")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--inside", metavar="FILE", help=argparse.SUPPRESS)  # in the process of one benchmark
    options = parser.parse_args(words)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are: {', '.join(known)}")
    if options.list:
        print("\n".join(f"{benchmark.name:14} {benchmark.about}" for benchmark in BENCHMARKS))
        return 0
    settings = Settings(quick=options.quick)
    if options.inside:
        return _inside(known[options.names[0]], settings, Path(options.inside))
    chosen = [known[name] for name in options.names] or [each for each in BENCHMARKS if not each.by_name_only]
    failed = [benchmark.name for benchmark in chosen if not _run(benchmark, settings)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _inside(benchmark: Benchmark, settings: Settings, result: Path) -> int:
    figures = importlib.import_module(benchmark.module).run(settings)
    result.write_text(json.dumps([figure.as_dict() for figure in figures]))
    return 0


def _run(benchmark: Benchmark, settings: Settings) -> bool:
    """One benchmark in a process of its own; prints its figures and keeps them. False when it failed."""
    print(f"\n{benchmark.name}: {benchmark.about}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks", benchmark.name, "--inside", str(result)]
        cores = sorted(os.sched_getaffinity(0))
        if not settings.quick:  # whose times say nothing: several may run at once, on whatever is free
            cores = cores[-benchmark.num_cores :]
        threads = "1" if settings.quick else str(len(cores))
        try:
            subprocess.run(
                command + (["--quick"] if settings.quick else []),
                env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
                preexec_fn=lambda: os.sched_setaffinity(0, cores),
                check=True,
                timeout=DEADLINE_SECONDS,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"{benchmark.name} failed: {error}", file=sys.stderr)
            return False
        figures = [Figure.from_dict(values) for values in json.loads(result.read_text())]
    print(performance_page.plain(figures))
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    if not settings.quick:
        performance_page.keep(benchmark.name, figures, [entry.name for entry in BENCHMARKS])
    return True


if __name__ == "__main__":
    sys.exit(main())
