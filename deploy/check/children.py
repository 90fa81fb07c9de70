"""The checks that load the model, as child programs side by side: their messages as they come, each with a deadline.

A child that is silent past the deadline of its check, or dies in it, is a failed line of that check; a new child goes
on with the next one. So a model that takes the process with it hides nothing.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vcppo.common.check.check_lines import CheckLine
from vcppo.common.files.json_file import parse_json
from vcppo.common.process.family import END_SECONDS, guarded
from vcppo.common.user_modules import SAFE_PATH
from vcppo.deploy.placement.gpus import visible_to
from vcppo.deploy.placement.place import Placement
from vcppo.deploy.processes.cores import available_cores, thread_environment

START_SECONDS = 180.0  # imports of torch and vLLM, on a busy machine
_NUM_LAST_LINES = 5
_Message = dict[str, Any]


@dataclass(frozen=True)
class Began:
    """A check has started; ``line`` has only its names."""

    child: str
    group: str
    name: str


@dataclass(frozen=True)
class Ended:
    """A check is done."""

    child: str
    group: str
    name: str


@dataclass(frozen=True)
class Planned:
    """What a child will run: (group, name) in order."""

    child: str
    checks: tuple[tuple[str, str], ...]


Event = Began | Ended | Planned | CheckLine


@dataclass
class Child:
    """One program and where it is.

    Attributes:
        name: shown when it fails.
        command: without ``--first``.
        group: heading of a failure before it has said what it runs.
        environment: added to ours.
    """

    name: str
    command: Sequence[str]
    group: str
    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = START_SECONDS
    checks: tuple[tuple[str, str], ...] = ()
    current: int = -1
    process: subprocess.Popen[str] | None = None
    stderr: IO[str] | None = None
    deadline: float = 0.0
    seconds: float = 0.0
    began: float = 0.0
    incarnation: int = 0
    is_done: bool = field(default=False)


class Children:
    """Run them all; iterate over `events`. A context manager: leaving ends what still runs."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = list(children)
        self._messages: queue.Queue[tuple[Child, int, str | None]] = queue.Queue()
        self._files = ExitStack()
        threads = max(1, len(available_cores()) // max(1, len(children)))
        self._environment = (
            os.environ | SAFE_PATH | thread_environment(threads, shared=True) | {"TOKENIZERS_PARALLELISM": "true"}
        )

    def __enter__(self) -> Children:
        for child in self._children:
            self._start(child, 0)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            _kill(child)
        self._files.close()

    @property
    def running(self) -> list[str]:
        """What is being looked at now, for a progress line."""
        now = time.monotonic()
        return [
            f"{child.name}: {child.checks[child.current][1] if 0 <= child.current < len(child.checks) else 'starting'}"
            f" {now - child.began:.0f} s"
            for child in self._children
            if not child.is_done
        ]

    def events(self, tick_seconds: float = 0.2) -> Iterator[Event | None]:
        """Everything that happens, until all are done; None at least every `tick_seconds`."""
        while not all(child.is_done for child in self._children):
            try:
                child, incarnation, text = self._messages.get(timeout=tick_seconds)
            except queue.Empty:
                yield None
            else:
                if incarnation == child.incarnation and not child.is_done:
                    yield from self._end(child) if text is None else self._read(child, text)
            for child in self._children:
                if not child.is_done and time.monotonic() > child.deadline:
                    yield from self._lost(child, f"no answer in {child.seconds:.0f} s")

    def _start(self, child: Child, first: int) -> None:
        child.incarnation += 1
        child.stderr = self._files.enter_context(tempfile.TemporaryFile("w+", errors="replace"))  # noqa: SIM115
        child.process = subprocess.Popen(
            guarded([*child.command, "--first", str(first)]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=child.stderr, text=True, errors="replace",
            env={**self._environment, **child.environment}, start_new_session=True,
        )  # fmt: skip
        child.current = first - 1
        self._expect(child, child.start_seconds)
        threading.Thread(target=self._listen, args=(child, child.incarnation, child.process), daemon=True).start()

    def _listen(self, child: Child, incarnation: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._messages.put((child, incarnation, line))
        self._messages.put((child, incarnation, None))

    def _expect(self, child: Child, seconds: float) -> None:
        child.began = time.monotonic()
        child.seconds, child.deadline = seconds, child.began + seconds

    def _read(self, child: Child, text: str) -> Iterator[Event]:
        """One message. What is none is passed over: it is a stray line, and a check that is silent is found by time."""
        try:
            message: _Message = parse_json(text)
            if "plan" in message:
                child.checks = tuple((str(group), str(name)) for group, name in message["plan"])
                yield Planned(child.name, child.checks)
            elif "begin" in message:
                child.current = int(message["begin"])
                self._expect(child, float(message["deadline"]))
                yield Began(child.name, *child.checks[child.current])
            elif "line" in message:
                yield CheckLine.from_dict(message["line"])
            elif "end" in message:
                yield Ended(child.name, *child.checks[int(message["end"])])
                self._expect(child, child.start_seconds)
        except (ValueError, KeyError, TypeError, IndexError):
            return

    def _end(self, child: Child) -> Iterator[Event]:
        """It has closed its output."""
        assert child.process is not None
        try:
            code = child.process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            _kill(child)
            code = 128 + signal.SIGKILL
        if code == 0:
            child.is_done = True
            return
        how = f"was killed by {signal.Signals(code - 128).name}" if code > 128 else f"ended with exit code {code}"
        yield from self._lost(child, f"its program {how}")

    def _lost(self, child: Child, why: str) -> Iterator[Event]:
        """The check in progress has failed, and took its program along: say so, go on with the next."""
        seconds = time.monotonic() - child.began
        _kill(child)
        last = _last_lines(child.stderr)
        if child.current < 0 or not child.checks:
            child.is_done = True
            remedy = f"see what it says: {' '.join(child.command)}"
            yield CheckLine(child.group, f"{child.name} checks", "failed", why, remedy, last, seconds)
            yield from (Ended(child.name, *check) for check in child.checks)
            return
        group, name = child.checks[child.current]
        remedy = "memory, a broken installation or the model's own code may be why; its last lines are below"
        yield CheckLine(group, name, "failed", why, remedy, last, seconds)
        yield Ended(child.name, group, name)
        if child.current + 1 < len(child.checks):
            self._start(child, child.current + 1)
        else:
            child.is_done = True


def child_programs(config: Path, generate: int, placement: Placement | None = None) -> list[Child]:
    """The learner's and the generator's, on a config that is written down.

    Args:
        placement: of the run; each then sees the GPUs of the first process of its kind, and both run side by side.
    """
    more = ["--generate", str(generate)] if generate else []
    given = ["--config", str(config)]
    is_placed = placement is not None and placement.has_devices
    learner, generator = (placement.ranks[:1], placement.generators[0]) if placement and is_placed else ((), ())
    sees = visible_to(learner), visible_to(generator)
    return [
        Child("learner", [sys.executable, "-m", "vcppo.learner.check", *given], "model", sees[0]),
        Child("generator", [sys.executable, "-m", "vcppo.generator.check", *given, *more], "data", sees[1]),
    ]


def _kill(child: Child) -> None:
    """It and whatever it started: its guardian sees to it."""
    if child.process is None:
        return
    child.process.terminate()
    try:
        child.process.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:  # who is left hangs in the kernel
        child.process.kill()


def _last_lines(file: IO[str] | None) -> tuple[str, ...]:
    if file is None:
        return ()
    file.seek(0)
    lines = [line.rstrip()[:300] for line in file.read()[-20_000:].splitlines() if line.strip()]
    return tuple(lines[-_NUM_LAST_LINES:])
