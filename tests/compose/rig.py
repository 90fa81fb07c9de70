"""The application under docker compose, as a user has it, and what its logs say."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.paths import ROOT

RUN = "compose"
CONFIG = Path(__file__).parent / "small.yaml"
T = TypeVar("T")
Record = dict[str, Any]


def no_engine() -> str | None:
    """Why there is nothing to test with; None when there is an engine."""
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"`{' '.join(command)}`: {error}"
        if done.returncode != 0:
            return f"`{' '.join(command)}`: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return None


@contextmanager
def built_image(name: str) -> Iterator[str]:
    """The CPU image from the tree as it is; gone afterwards. The network is the host's: pip's configuration holds."""
    command = ["docker", "build", "--network", "host", "--file", "deploy/Dockerfile", "--tag", name, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    try:
        yield name
    finally:
        subprocess.run(["docker", "image", "rm", "--force", "--no-prune", name], check=True, capture_output=True)


class Application:
    """One compose project. Every line that any of its containers writes is kept in `lines`.

    Args:
        log_file: where the lines go in the end, for whoever looks into a failure.
        environment: of `docker compose`, what a user writes into .env.
    """

    def __init__(self, project: str, image: str, log_file: Path, environment: dict[str, str]) -> None:
        self._log_file = log_file
        self.project = project
        self._environment = {
            **os.environ,
            **{"COMPOSE_PROJECT_NAME": project, "IMAGE": image, "RUN": RUN, "CONFIG": str(CONFIG)},
            **environment,
        }  # fmt: skip
        self.lines: list[str] = []
        self._tails: dict[str, subprocess.Popen[str]] = {}
        self._readers: list[threading.Thread] = []

    # ---- docker

    def compose(self, *words: str, timeout: float = 300, stdin: str | None = None) -> str:
        """`docker compose WORDS`. Returns its stdout."""
        return self._run(["docker", "compose", *words], timeout, stdin)

    def docker(self, *words: str) -> str:
        return self._run(["docker", *words], 60)

    def _run(self, command: Sequence[str], timeout: float, stdin: str | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)} → {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def set(self, **settings: str) -> None:
        """Change what a user writes into .env."""
        self._environment |= settings

    def up(self, *words: str, **settings: str) -> None:
        """`docker compose up -d`, and follow the logs of what is new."""
        self.set(**settings)
        self.compose("up", "--detach", "--no-build", *words, timeout=600)
        self.follow()

    def containers(self, service: str) -> list[str]:
        """Ids of the service's running containers."""
        return self.compose("ps", "--quiet", "--status", "running", service).split()

    def started_at(self, service: str) -> list[str]:
        """When the service's containers began their present lives."""
        return sorted(self.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", one).strip()
                      for one in self.containers(service))  # fmt: skip

    # ---- logs

    def follow(self) -> None:
        """Tail each container not tailed yet, from its first line. (One by one: none then misses what is new.)"""
        for one in self.compose("ps", "--all", "--quiet").split():
            tail = self._tails.get(one)
            if tail is not None and tail.poll() is None:
                continue
            since = (
                [] if tail is None else ["--since", self.docker("inspect", "-f", "{{.State.StartedAt}}", one).strip()]
            )
            self._tails[one] = subprocess.Popen(
                ["docker", "logs", "--follow", *since, one],
                env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            reader = threading.Thread(target=self._read, args=(self._tails[one],), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, tail: subprocess.Popen[str]) -> None:
        assert tail.stdout is not None
        for line in tail.stdout:
            self.lines.append(line.rstrip("\n"))

    def records(self, event: str, since: int = 0) -> list[Record]:
        """Log records of that event, from line number `since` on."""
        found = []
        for line in self.lines[since:]:
            if f'"{event}"' in line:
                record = json.loads(line)
                if record.get("event") == event:
                    found.append(record)
        return found

    def wait(self, what: str, condition: Callable[[], T], seconds: float = 240) -> T:
        """Until `condition()` is true. Fails with the last lines that say why."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                states = self.compose("ps", "--all", "--format", "{{.Name}} {{.Status}}")
                last = "\n".join(line[:400] for line in self.lines[-25:])
                raise AssertionError(f"waited {seconds:.0f} s for: {what}\n{states}\n{last}")
            time.sleep(0.5)  # the engine and the logs give no event to wait on
        return found

    def trains(self, num_steps: int = 2, seconds: float = 240) -> None:
        """Until so many more steps are trained from now."""
        mark = len(self.lines)
        self.wait(f"{num_steps} more steps", lambda: len(self.records("step", mark)) >= num_steps, seconds)

    def wait_for_generators(self, count: int) -> frozenset[str]:
        """Until a broadcast from now on reached exactly `count` generators. Returns their ids."""
        mark = len(self.lines)

        def reached() -> frozenset[str] | None:
            members = [frozenset(record["members"]) for record in self.records("weights_broadcast", mark)]
            return next((each for each in members if len(each) == count), None)

        found = self.wait(f"{count} generators in a broadcast", reached, seconds=360)
        assert found is not None
        return found

    # ---- state

    def cli(self, *words: str, stdin: str | None = None) -> str:
        """`docker compose run --rm cli WORDS`, i.e. vcppo WORDS."""
        return self.compose("run", "--rm", "--no-deps", "--no-TTY", "cli", *words, stdin=stdin)

    def close(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20", "--remove-orphans")
        self.finish_logs()
        self._log_file.write_text("\n".join(self.lines))

    def finish_logs(self) -> None:
        """After `down`: all lines are there."""
        for reader in self._readers:
            reader.join(timeout=30)
            assert not reader.is_alive(), "a container's log did not end"
        for tail in self._tails.values():
            tail.wait(timeout=10)
        self._tails.clear()
        self._readers.clear()


@contextmanager
def application(name: str, image: str, log_file: Path, **environment: str) -> Iterator[Application]:
    """Settings as in .env; what it made is gone afterwards."""
    made = Application(f"vcppo-{name}-{os.getpid()}", image, log_file, environment)
    try:
        yield made
    finally:
        made.close()
