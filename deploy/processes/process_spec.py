"""What a supervised process is: how to start it, what its end means, and where it is now."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vcppo.common.errors import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE, VcppoError
from vcppo.deploy.logs.log_lines import Record
from vcppo.deploy.processes.restarts import Restarts, RoomPause


class ProcessFailed(VcppoError):
    """A process the run can't do without has ended. What no restart can mend is told on by our own exit code."""

    def __init__(self, name: str, exit_code: int, last_lines: Sequence[str]) -> None:
        how = (
            f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
        )
        tail = "".join(f"\n    {line}" for line in last_lines)
        super().__init__(f"{name} {how}. Its last lines:{tail or ' none'}")
        self.name, self.process_exit_code = name, exit_code
        if exit_code in (EXIT_USAGE, EXIT_REFUSED):
            self.exit_code = exit_code


class Interrupted(VcppoError):
    """Ctrl-C or SIGTERM."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class ProcessSpec:
    """What to start and what to do when it ends.

    Attributes:
        name: e.g. ``generator-0``; names the log file and the prefix on the terminal.
        command: program and arguments.
        environment: added to the launcher's own.
        cores: ids to pin to; None leaves the launcher's.
        niceness: added to the launcher's own; higher gives way.
        max_restarts: how often it is started again for one cause after failing once it had been ready
            (`vcppo.deploy.processes.restarts`); 0: its failure is the run's. Exit codes 2 and 3 (bad config, refused)
            are never tried again.
        is_ready: recognises the line that says it is ready; default: the log event ``ready`` or ``<role>_ready``.
        peers_suffice: when it is restarted no more, the run goes on while another process of the same `role` lives.
        noted_in: folder for the note of a living program that is not ours (`vcppo.common.process.living`); None: it
            makes its own.
        role: what kind of process it is, e.g. ``generator``.
        folder: where it keeps its data, for the line that says that a disk is full; None: it says so itself.
        may_finish: exit code 0 is its normal end; for a server it is a failure like any other.
    """

    name: str
    command: Sequence[str]
    role: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] | None = None
    niceness: int = 0
    max_restarts: int = 0
    peers_suffice: bool = False
    may_finish: bool = True
    is_ready: Callable[[Record], bool] | None = None
    folder: Path | None = None
    noted_in: Path | None = None

    def says_ready(self, record: Record) -> bool:
        """Whether this line says that the process is up.

        By `is_ready`, else by the event ``ready`` or ``ROLE_ready``.
        """
        if self.is_ready is not None:
            return self.is_ready(record)
        return record.get("event") in ("ready", f"{self.role}_ready")


class Child:
    """One process of a spec: alive, or ended with an exit code, or waiting to be started again."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.popen: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.ready = False
        self.ready_at = float("inf")
        self.stopping = False
        self.last_error = ""  # the text of its last `fatal` line
        self.lacked = ""  # the resource that this line names
        self.refused_with = 0  # the exit code that line names, of those that are never answered with a restart
        self.restarts = Restarts()
        self.waits = RoomPause()
        self.start_deadline = float("inf")
        self.restart_at = float("inf")

    @property
    def alive(self) -> bool:
        """Started, and its end not seen yet."""
        return self.popen is not None and self.exit_code is None

    @property
    def pid(self) -> int:
        """Of the process; only asked for after it was started."""
        assert self.popen is not None
        return self.popen.pid
