"""Is what a GPU computes right, and how fast is it? `make gpu-test`, or `python -m benchmarks.gpu attention gae`.

Part a needs torch, transformers and DeepSpeed and one GPU, and should take under four minutes. Part b needs vLLM too.
Each check runs in a process of its own, with a deadline. The page goes to docs/records/gpu/DEVICE.md and .json.

Exit 0: every number that was computed is right; what could not run is listed. Exit 1: one is wrong, or a check failed.
Exit 2: no CUDA, and --device does not say cpu.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import REPOSITORY
from benchmarks.gpu import page
from benchmarks.gpu.findings import Findings, Place
from benchmarks.gpu.machine import describe
from benchmarks.gpu.page import Outcome

RECORDS = REPOSITORY / "docs" / "records" / "gpu"
NO_CUDA = 2
PART_A_SECONDS = 240.0
_LAST_LINES = 12


class Check(NamedTuple):
    """One entry of the list: its module has ``run(place) -> Findings``."""

    name: str
    part: str
    deadline_seconds: float
    about: str

    @property
    def module(self) -> str:
        """Where it is."""
        return f"benchmarks.gpu.checks.{self.name}"


CHECKS = (
    Check("attention", "a", 120, "attention by segment, every form the learner asks for"),
    Check("log_probs", "a", 120, "log-probs and entropy in blocks"),
    Check("gae", "a", 60, "values to numpy, GAE, and back"),
    Check("learner_step", "a", 180, "a whole learner step, actor and critic"),
    Check("zero3", "a", 180, "the same with ZeRO 3, and with offload"),
    Check("speeds", "a", 180, "bfloat16 speeds against the device's own"),
    Check("weight_update", "b", 600, "weights to a real generator, with their proof"),
    Check("sleep", "b", 300, "a generator's sleep: memory given back, the same answers after it"),
    Check("real_job", "b", 1500, "five steps of the real job, `vcppo up`"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen checks one after the other. Returns the exit code."""
    options = _parse(arguments)
    if options.inside:
        found = importlib.import_module(_named(options.checks)[0].module).run(_place(options))
        Path(options.inside).write_text(json.dumps(found.as_dict()))
        return 0
    machine = describe(options.device)
    if options.device == "cuda" and not machine["device"].startswith("cuda"):
        print(f"no CUDA: {machine['device']}. With --device cpu the same checks run on the CPU.", file=sys.stderr)
        return NO_CUDA
    chosen = [each for each in _named(options.checks) or CHECKS if options.part in (None, each.part)]
    outcomes = []
    for check in chosen:
        print(f"\n{check.name}: {check.about}", flush=True)
        outcomes.append(_run(check, options))
        print(page.plain(outcomes[-1]), flush=True)
    slow = sum(outcome.seconds for check, outcome in zip(chosen, outcomes, strict=True) if check.part == "a")
    if slow > PART_A_SECONDS:
        print(f"\npart a took {slow:.0f} s; it should take {PART_A_SECONDS:.0f} at most")
    files = page.write(Path(options.out), _file_name(machine["device"]), machine, outcomes)
    print(f"\n{page.verdict(outcomes)} The page: {files[-1]}")
    return page.exit_code(outcomes)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(check.name for check in CHECKS)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {names}; default: all")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--part", choices=["a", "b"], help="a: without vLLM; b: with it; default: both")
    parser.add_argument("--quick", action="store_true", help="small: does it run, is it right? Speeds say nothing")
    parser.add_argument("--out", default=str(RECORDS), help="folder of the page")
    parser.add_argument("--inside", metavar="FILE", help=argparse.SUPPRESS)  # in the process of one check
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.checks) - {check.name for check in CHECKS}):
        parser.error(f"no check called {', '.join(unknown)}; there are: {names}")
    return options


def _named(names: Sequence[str]) -> list[Check]:
    return [check for check in CHECKS if check.name in names]


def _place(options: argparse.Namespace) -> Place:
    import torch

    return Place(torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu"), options.quick)


def _run(check: Check, options: argparse.Namespace) -> Outcome:
    """In a process of its own, which is killed with its children at its deadline."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "findings.json", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu", check.name, "--device", options.device]
        command += ["--inside", str(result), *(["--quick"] if options.quick else [])]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=REPOSITORY,
            )  # fmt: skip
            try:
                code = process.wait(check.deadline_seconds)
                failure = "" if code == 0 and result.exists() else f"it ended with {code}: {_end_of(log)}"
            except subprocess.TimeoutExpired:
                failure = f"it was not through after {check.deadline_seconds:.0f} s: {_end_of(log)}"
            finally:
                _kill(process)
        found = Findings() if failure else Findings.from_dict(json.loads(result.read_text()))
    return Outcome(check.name, check.about, time.monotonic() - began, found, failure)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The check, and what it started and left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(30)


def _end_of(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_LAST_LINES:])[-2000:].replace("|", "¦")


def _file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")[:60]


if __name__ == "__main__":
    sys.exit(main())
