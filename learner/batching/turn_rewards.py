"""Where rewards stand: each turn's on its last action, the rest of a response's on its very last. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vcppo.common.records.trajectory import Trajectory

Float32Array = NDArray[np.float32]


class PlacedRewards(NamedTuple):
    """Of S responses with A actions.

    Attributes:
        earlier: ``[A]`` the rewards of all turns but the last, each on the last action of its turn; 0 elsewhere.
        last: ``[S]`` what is left of each response's reward: its last turn's, and what its length and other parts add.
    """

    earlier: Float32Array
    last: Float32Array


def place_rewards(trajectories: Sequence[Trajectory], action_cu_seqlens: NDArray[np.int64]) -> PlacedRewards:
    """The two add up to each response's reward, whatever its turns got."""
    earlier = np.zeros(int(action_cu_seqlens[-1]), np.float32)
    last = np.zeros(len(trajectories), np.float32)
    for i, trajectory in enumerate(trajectories):
        last[i] = trajectory.reward
        if not trajectory.turn_rewards:
            continue
        places = np.flatnonzero(trajectory.action_mask)
        ends = np.flatnonzero(np.diff(places) != 1)  # of all turns but the last
        before = trajectory.turn_rewards[: len(ends)]
        earlier[action_cu_seqlens[i] + ends] = before
        last[i] = math.fsum((trajectory.reward, *(-reward for reward in before)))
    return PlacedRewards(earlier, last)


def mean_by_turn(trajectories: Sequence[Trajectory]) -> list[float]:
    """Mean reward of the first turn, the second …, each over the responses that have it; empty where none has any."""
    rows = [trajectory.turn_rewards for trajectory in trajectories]
    columns = ([row[k] for row in rows if len(row) > k] for k in range(max(map(len, rows), default=0)))
    return [math.fsum(column) / len(column) for column in columns]
