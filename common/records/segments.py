"""A rollout of several conversations as several trajectories. Pure."""

from __future__ import annotations

from dataclasses import replace

from vcppo.common.records.ids import make_segment_id
from vcppo.common.records.trajectory import Segment, Trajectory


def split(rollout: Trajectory) -> list[Trajectory]:
    """One trajectory of each conversation: first its own, then those of its segments. None of them has segments.

    A segment's has the rollout's reward on its last action, an id of its own, and no timings: they are the rollout's.
    """
    if not rollout.segments:
        return [rollout]
    segments = (_of_segment(rollout, number, segment) for number, segment in enumerate(rollout.segments, 1))
    return [replace(rollout, segments=()), *segments]


def _of_segment(rollout: Trajectory, number: int, segment: Segment) -> Trajectory:
    return replace(
        rollout,
        **segment._asdict(),
        id=make_segment_id(rollout.id, number),
        timings={},
        turn_rewards=(),
        segments=(),
    )
