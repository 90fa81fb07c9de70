"""Weight updates of a run: which version went to how many generators, how long it took, and what failed. Pure.

The learner's log names each update and each failure. Where a run's logs went elsewhere (containers), its metrics still
have the seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from vcppo.common.text.yaml_text import one_line

_FAILURES = {
    "broadcast_failed": "update failed",
    "canary_failed": "generator ran other weights than it was sent",
    "generator_dropped": "generator left out",
}
"""Event of the learner's log → in words."""


class Update(NamedTuple):
    """One update; what is None was not written down.

    Attributes:
        seconds: of the whole update; `pause_seconds`: the longest that a generator stood still for it.
        num_bytes: of the weights, once.
        generators: how many run the version; `left_behind`: ids of those that don't.
    """

    version: int
    time: str
    seconds: float | None
    pause_seconds: float | None
    num_bytes: int | None
    generators: int | None
    left_behind: tuple[str, ...] = ()


class Failure(NamedTuple):
    """What went wrong; `generator` is empty where nobody is to blame alone."""

    time: str
    what: str
    generator: str
    reason: str


class WeightUpdates(NamedTuple):
    """Of a run, oldest first."""

    updates: Sequence[Update]
    failures: Sequence[Failure]

    @property
    def summary(self) -> str:
        """In a sentence; empty without any update."""
        if not self.updates:
            return ""
        seconds = [each.seconds for each in self.updates if each.seconds is not None]
        sizes = [each.num_bytes for each in self.updates if each.num_bytes]
        stops = [each.pause_seconds for each in self.updates if each.pause_seconds is not None]
        parts = [f"{len(self.updates):,} update{'s' if len(self.updates) > 1 else ''}"]
        if sizes:
            parts.append(f"{sizes[-1] / 2**20:,.1f} MiB each")
        if seconds:
            parts.append(f"median {median(seconds):.2f} s, longest {max(seconds):.2f} s")
        if stops:
            parts.append(f"longest stop of a generator {max(stops):.2f} s")
        failed = f"{len(self.failures):,} failure{'s' if len(self.failures) > 1 else ''}"
        return f"{', '.join(parts)}; {failed if self.failures else 'no failure'}."


def from_log(records: Iterable[Mapping[str, Any]]) -> WeightUpdates:
    """From records of the learner's log, in order."""
    updates, failures = [], []
    for record in records:
        event, time = record.get("event"), str(record.get("time", ""))
        if event == "weights_broadcast" and isinstance(version := record.get("policy_version"), int):
            updates.append(
                Update(
                    version, time, _number(record.get("seconds")), _number(record.get("pause_seconds")),
                    _whole(record.get("num_bytes")), _count(record.get("members")), _names(record.get("dropped")),
                )
            )  # fmt: skip
        elif event in _FAILURES:
            reason = record.get("reason", record.get("error", ""))
            generator = str(record.get("generator_id", ""))
            failures.append(Failure(time, _FAILURES[event], generator, one_line(str(reason))))
    return WeightUpdates(updates, failures)


def from_metrics(rows: Iterable[Mapping[str, Any]]) -> WeightUpdates:
    """From rows of RL steps: the seconds in the row of a step are of the version before it."""
    updates = [
        Update(row["step"] - 1, str(row.get("time", "")), seconds, _number(row.get("time/pause")), None, None)
        for row in rows
        if (seconds := _number(row.get("time/broadcast"))) is not None
    ]
    return WeightUpdates(updates, ())


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _count(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None
