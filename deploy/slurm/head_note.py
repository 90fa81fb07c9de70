"""Where a run's head is: ``<run>/slurm/head.json``, by which learner nodes and generators of any job find it.

    head ─writes─▶ head.json ─read each second─▶ other learner nodes, generators

consumes: nothing. waits for: a note that suits the reader. Unblocked by: the head that comes up, or the deadline.
It names addresses and no secret.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import structlog

from vcppo.common.errors import DeadlineExceeded
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.whole_file import write_whole
from vcppo.common.transport.keys import private_files
from vcppo.deploy.slurm.batch_script import slurm_folder

log = structlog.get_logger(__name__)

State = Literal["up", "stopped", "done", "failed"]
_SAY_SECONDS = 30.0


@dataclass(frozen=True)
class HeadNote:
    """One start of a run's head.

    Attributes:
        state: ``stopped``: it was preempted, or its time was up, and comes again. ``done`` and ``failed`` are final.
        job: Slurm's number of its job, and ``restart`` how often that was queued again.
        address: of its node, as others reach it.
        rendezvous: port where the learner's nodes meet.
        redis_url: where our own Redis listens; None: the config names another.
        endpoints: where the buffers listen.
        launch: the incarnation of this start, for the processes that act for it.
    """

    state: State
    job: str
    restart: int
    address: str
    rendezvous: int
    redis_url: str | None
    endpoints: tuple[str, ...]
    launch: str

    @property
    def is_final(self) -> bool:
        """Whether this run has no further start."""
        return self.state in ("done", "failed")

    @property
    def settings(self) -> list[str]:
        """What every process of the run is told beyond its config."""
        own = [] if self.redis_url is None else [f"redis.url={self.redis_url}"]
        return [*own, f"transport.endpoints=[{', '.join(self.endpoints)}]", f"broadcast.host={self.address}"]

    def ended(self, state: State) -> HeadNote:
        """The same start, over."""
        return replace(self, state=state)

    def is_over_by(self, newest: HeadNote | None) -> bool:
        """Whether the newest note says that this start has ended; no note says nothing."""
        return newest is not None and not (newest.state == "up" and self.same_start(newest))

    def takes_over(self, before: HeadNote | None) -> bool:
        """Whether whoever worked for the start `before` may go by this note: its end for good, or another start."""
        return self.is_final or not self.same_start(before)

    def same_start(self, other: HeadNote | None) -> bool:
        """Whether `other` is of this very start."""
        return other is not None and other.launch == self.launch


def note_file(run: Path) -> Path:
    """Of a run's folder."""
    return slurm_folder(run) / "head.json"


def write_note(run: Path, note: HeadNote) -> None:
    """Replace the note."""
    note_file(run).parent.mkdir(parents=True, exist_ok=True)
    with private_files():
        write_whole(note_file(run), json.dumps(asdict(note)) + "\n")


def remove_note(run: Path) -> None:
    """Before a run is submitted again: the end of an earlier job is not the end of this one."""
    note_file(run).unlink(missing_ok=True)


def read_note(run: Path) -> HeadNote | None:
    """None: there is none, or it can't be read."""
    try:
        found: dict[str, Any] = parse_json(note_file(run).read_bytes())
        return HeadNote(**{**found, "endpoints": tuple(found["endpoints"])})
    except (OSError, JsonError, TypeError, KeyError):
        return None


def wait_for_note(
    run: Path,
    suits: Callable[[HeadNote], bool],
    seconds: float,
    pause: Callable[[float], None] = time.sleep,
) -> HeadNote:
    """The first note that is up and `suits`, or that is final.

    Raises:
        DeadlineExceeded: none came within `seconds`.
    """
    end, say_at = time.monotonic() + seconds, time.monotonic() + _SAY_SECONDS
    while True:
        note = read_note(run)
        if note is not None and (note.is_final or note.state == "up") and suits(note):
            return note
        now = time.monotonic()
        if now >= end:
            state = "there is none" if note is None else f"it says {note.state!r}, of job {note.job}"
            raise DeadlineExceeded(
                f"no head of this run came up within {seconds:.0f} s ({note_file(run)}: {state}): look at"
                " `squeue` for the run's own job, and submit it again if it has ended"
            )
        if now >= say_at:
            say_at = now + _SAY_SECONDS
            log.info("waiting_for_head", seconds_left=round(end - now), file=str(note_file(run)))
        pause(1.0)
