"""What chaos sees of the run: its steps, and the few log lines that tell how a fault went."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from vcppo.common.errors import EXIT_INTERRUPTED
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.logs.log_lines import Record, level_of
from vcppo.deploy.run.run_data import JsonLinesTail

EXIT_TERMINATED = 128 + signal.SIGTERM  # the learner's, after a polite stop
SHORTAGES = ("waiting_for_room", "process_waits_for_room")
_ERROR = 40


@dataclass
class Watch:
    """Fed by the log sink (`see`) and by the learner's metrics (`refresh`).

    Attributes:
        step: the newest RL step that is complete.
        members: generators that took part in the newest weight broadcast.
        num_spool_full: how often a generator said that its spool has used up its quota.
        fatal: process -> what its last incarnation said of its end.
        ends: (process, exit code, what it said) of every process that ended.
        errors: lines of level error or above, by process and event.
        tracebacks: process and event of lines that carry an exception: ours to mend.
        verifier_ends: (time of the line in seconds since the epoch, generator) of verifiers given up, or environments.
        num_shortages: lines that say that something has run out.
        sieges: name of a hostile peer -> what its siege came to.
    """

    folder: RunFolder
    step: int = 0
    members: frozenset[str] = frozenset()
    num_spool_full: int = 0
    fatal: dict[str, str] = field(default_factory=dict)
    ends: list[tuple[str, int, str]] = field(default_factory=list)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    verifier_ends: list[tuple[float, str]] = field(default_factory=list)
    sieges: dict[str, Record] = field(default_factory=dict)
    num_shortages: int = 0

    def __post_init__(self) -> None:
        self._rows = JsonLinesTail(self.folder.metrics_file("learner"))

    def refresh(self) -> None:
        """Read the steps done since the last call."""
        for row in self._rows.read():
            if row.get("stage", "rl") == "rl" and isinstance(row.get("step"), int):
                self.step = max(self.step, row["step"])

    def see(self, process: str, record: Record) -> None:
        """One log line of a process."""
        event = str(record["event"])
        if event == "weights_broadcast":
            self.members = frozenset(map(str, record.get("members", ())))
        elif event == "spool_full":
            self.num_spool_full += 1
        elif event in ("verifier_killed", "environment_killed"):
            self.verifier_ends.append((datetime.fromisoformat(str(record["time"])).timestamp(), process))
        elif event in SHORTAGES:
            self.num_shortages += 1
        elif event == "siege_over":
            self.sieges[process] = record
        elif event == "fatal":
            self.fatal[process] = str(record.get("error", ""))
        elif process == "launcher" and event == "process_started":
            self.fatal.pop(str(record["process"]), None)
        elif process == "launcher" and event == "process_ended":
            name = str(record["process"])
            self.ends.append((name, int(record["exit_code"]), self.fatal.get(name, "")))
        if level_of(record) >= _ERROR:
            self.errors[process, event[:120]] += 1
            if record.get("exception"):
                self.tracebacks.append(f"{process}: {event[:200]}")

    def num_verifier_ends(self, generator: str) -> int:
        """How many verifiers this generator has given up."""
        return sum(process == generator for _, process in self.verifier_ends)

    def own_ends(self, process: str, since: int) -> list[int]:
        """Exit codes of a process that ended by itself, neither killed nor asked to, after the first `since` ends."""
        codes = [code for name, code, _ in self.ends[since:] if name == process]
        return [code for code in codes if code not in (0, EXIT_INTERRUPTED, EXIT_TERMINATED, -signal.SIGKILL)]

    def unexplained_ends(self, hit: Collection[str], groups: Collection[str] = ()) -> list[str]:
        """Processes that ended without being hit, asked to, or saying why.

        `groups` are launchers of processes (torchrun): one that was hit ends with a code of its own.
        """
        found = []
        for process, code, said in self.ends:
            asked = code in (0, EXIT_INTERRUPTED, EXIT_TERMINATED)
            struck = process in hit and (-code in (signal.SIGKILL, signal.SIGTERM) or process in groups)
            if not (asked or struck or said):
                found.append(f"{process} with exit code {code}")
        return found
