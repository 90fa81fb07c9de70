"""What a tracker is to us, and what it is told of the run it shows. No library is imported here."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STEP = "step"
"""The x-axis, as a metric of its own where a tracker wants one."""
SAMPLES = "samples"
"""Name of the tables of responses."""

_LOGIN = re.compile(r"(?<=://)[^/@\s]*@")


@dataclass(frozen=True)
class TrackedRun:
    """One run of a tracker: one service of one of our runs.

    Attributes:
        id: its name for ever, also when the process starts again.
        run: ``run.name``; groups the services.
        service: ``learner``, ``generator-0``, …
        folder: for files of the tracker's library.
        settings: our config, as nested plain values.
    """

    id: str
    run: str
    service: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def flat_settings(self) -> dict[str, Any]:
        """``rl.num_steps: 20``, in the order of the config. Logins in addresses are left out."""
        return dict(_flattened(self.settings))


@dataclass(frozen=True)
class Table:
    """A few responses of one RL step."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Tracker(Protocol):
    """A library's client. Called by one thread. Any exception means that the tracker is away: it is opened anew later.

    Attributes:
        name: as users know it.
    """

    name: str

    def open(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one of this id."""

    def log(self, step: int, values: Mapping[str, float | int], wall_time: float) -> None:
        """Numbers of one step; `wall_time` in seconds since the epoch."""

    def log_table(self, step: int, table: Table) -> None:
        """Responses of one step."""

    def close(self) -> None:
        """Hand over what the library still holds; may wait for the network."""


def new_id(run: str, service: str) -> str:
    """An id that no other run has: a run of the same name that begins anew is another one."""
    return f"{run}-{service}-{uuid.uuid4().hex[:8]}"


def _flattened(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += _flattened(value, f"{above}{name}.")
        else:
            plain = value if isinstance(value, int | float | bool) or value is None else str(value)
            found.append((f"{above}{name}", _LOGIN.sub("", plain) if isinstance(plain, str) else plain))
    return found
