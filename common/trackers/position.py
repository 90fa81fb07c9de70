"""How far a tracker has been told of a metrics file, and at which step each number stands. Pure but for its file.

A line is told once. After a crash the learner does the steps since its last checkpoint again: of a step that is told
already, the tracker keeps what it has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole
from vcppo.common.trackers.tracker import STEP

Axis = Literal["steps_of_run", "steps_of_process", "seconds"]
"""What ``step`` of a service is, and so what a tracker shows a number at.

    steps_of_run        the learner's: a process that starts again goes on with them, and does some again
    steps_of_process    of a training without checkpoints: one that starts again is another run of the tracker
    seconds             of a service that begins to count when it starts: seconds since the first line of all
"""

_NOT_METRICS = {"time", "service", "run_id", STEP}


class Told(NamedTuple):
    """What is to be told of one line; `begins`: it is the first of another run of the tracker."""

    step: int
    values: dict[str, float | int]
    wall_time: float
    begins: bool


@dataclass
class Position:
    """How far a tracker has been told of one service.

    Attributes:
        id: of the tracker's run.
        offset: bytes of the metrics file.
        began: time of the first line, seconds since the epoch.
        steps: the last step of each number.
        samples: the last step whose responses were told.
    """

    id: str
    offset: int = 0
    began: float | None = None
    steps: dict[str, int] = field(default_factory=dict)
    samples: int = 0

    def told_of(self, line: Mapping[str, Any], axis: Axis) -> Told | None:
        """What of the line is new; None: nothing, or it is no line of metrics."""
        step, wall_time = line.get(STEP), _seconds(line.get("time"))
        if not isinstance(step, int) or wall_time is None:
            return None
        numbers = {
            name: value for name, value in line.items() if isinstance(value, int | float) and name not in _NOT_METRICS
        }
        again = {name for name in numbers if step <= self.steps.get(name, -1)}
        if axis == "seconds":
            return Told(max(0, int(wall_time - (self.began or wall_time))), numbers, wall_time, begins=False)
        if axis == "steps_of_process":
            return Told(step, numbers, wall_time, begins=bool(again))
        new = {name: value for name, value in numbers.items() if name not in again}
        return Told(step, new, wall_time, begins=False) if new else None

    def after(self, told: Told | None, offset: int) -> Position:
        """The position behind a line that ends at byte `offset`."""
        if told is None:
            return Position(self.id, offset, self.began, self.steps, self.samples)
        steps = self.steps | dict.fromkeys(told.values, told.step)
        return Position(self.id, offset, self.began or told.wall_time, steps, self.samples)

    def write(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self)))


def read_position(path: Path) -> Position | None:
    """What `Position.write` left; None: nothing, or nothing that can be read, so all is told to a new run."""
    try:
        found = read_json_object(path, "it is made anew")
        return Position(
            str(found["id"]), int(found["offset"]), found["began"], dict(found["steps"]), int(found["samples"])
        )
    except (VcppoError, KeyError, TypeError, ValueError):
        return None


def _seconds(stamp: object) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return None
