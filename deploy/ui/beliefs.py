"""What a step's critic believed, over its samples: by place, against what came, and where it changed its mind. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_PLACES = 10
NUM_BINS = 10
_MISJUDGED_BY = 0.5
_AROUND = 12
"""Tokens shown before and after one that changed the critic's mind."""


class Believed(NamedTuple):
    """One response: `values` of its actions in turn, and what became of it."""

    id: str
    outcome: str
    reward: float
    values: np.ndarray
    places: np.ndarray
    """Of each action among the tokens of the response."""
    pieces: Sequence[str]
    """Of all tokens."""


class ByPlace(NamedTuple):
    """Mean value in each tenth of the response, None where no action is; of how many responses."""

    means: list[float | None]
    num_responses: int


class Bin(NamedTuple):
    """Tokens whose value was from `least` to `greatest`: what they said on average, and what came."""

    least: float
    greatest: float
    predicted: float
    realised: float
    num_tokens: int
    num_responses: int


class Turn(NamedTuple):
    """A token that moved the value from `before` to `after`; `lead` and `trail` are the text around it."""

    id: str
    outcome: str
    reward: float
    token: int
    text: str
    before: float
    after: float
    lead: str
    trail: str

    @property
    def size(self) -> float:
        """How far the value moved."""
        return abs(self.after - self.before)


class Misjudged(NamedTuple):
    """A response of which the critic believed `believed` at its end, and `reward` came; `turn` is where it changed its
    mind most, None in a response of one token."""

    id: str
    outcome: str
    reward: float
    believed: float
    turn: Turn | None


def by_place(responses: Sequence[Believed]) -> dict[str, ByPlace]:
    """Of right responses and of the others; each response counts alike."""
    kinds = {
        "right": [each for each in responses if each.outcome == "correct"],
        "not right": [each for each in responses if each.outcome != "correct"],
    }
    return {name: ByPlace(_means(some), len(some)) for name, some in kinds.items()}


def _means(responses: Sequence[Believed]) -> list[float | None]:
    tenths: list[list[float]] = [[] for _ in range(NUM_PLACES)]
    for each in responses:
        length = len(each.values)
        numbers = np.minimum(NUM_PLACES - 1, np.arange(length) * NUM_PLACES // max(1, length))
        for tenth in range(NUM_PLACES):
            if (here := each.values[numbers == tenth]).size:
                tenths[tenth].append(float(here.mean()))
    return [float(np.mean(means)) if means else None for means in tenths]


def calibration(responses: Sequence[Believed], least: float, greatest: float) -> list[Bin]:
    """Tokens by what was believed before them, in ten equal parts of the rewards; what is beyond is in the end parts.

    A calibrated critic's `realised` is its `predicted` in every part. Tokens of one response share its outcome, so it
    is the number of responses that says how sure a part is.
    """
    if not responses or greatest <= least:
        return []
    values = np.concatenate([each.values for each in responses])
    owner = np.repeat(np.arange(len(responses)), [len(each.values) for each in responses])
    rewards = np.array([each.reward for each in responses])[owner]
    edges = np.linspace(least, greatest, NUM_BINS + 1)
    of = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, NUM_BINS - 1)
    return [
        Bin(
            float(edges[number]), float(edges[number + 1]), float(values[here].mean()), float(rewards[here].mean()),
            int(here.sum()), len(np.unique(owner[here])),
        )
        for number in range(NUM_BINS)
        if (here := of == number).any()
    ]  # fmt: skip


def changed_minds(responses: Sequence[Believed], count: int) -> list[Turn]:
    """The tokens that moved the value most, one a response, the largest move first."""
    found = [turn for each in responses if (turn := _turn(each)) is not None]
    return sorted(found, key=lambda turn: -turn.size)[:count]


def is_misjudged(believed: float, reward: float, least: float, greatest: float) -> bool:
    """Whether what was believed at the end is further from what came than half of the rewards' range."""
    return abs(believed - reward) > _MISJUDGED_BY * (greatest - least)


def misjudged(responses: Sequence[Believed], least: float, greatest: float, count: int) -> list[Misjudged]:
    """Those whose last value is furthest from what came, the furthest first; `least` and `greatest`: the rewards."""
    known = [
        each
        for each in responses
        if len(each.values) and is_misjudged(float(each.values[-1]), each.reward, least, greatest)
    ]
    worst = sorted(known, key=lambda each: -abs(float(each.values[-1]) - each.reward))[:count]
    return [Misjudged(each.id, each.outcome, each.reward, float(each.values[-1]), _turn(each)) for each in worst]


def _turn(each: Believed) -> Turn | None:
    """Where it changed its mind most; None of less than two values."""
    if len(each.values) < 2:
        return None
    best = int(np.abs(np.diff(each.values)).argmax())
    token = int(each.places[best])
    lead = "".join(each.pieces[max(0, token - _AROUND) : token])
    trail = "".join(each.pieces[token + 1 : token + 1 + _AROUND])
    before, after = float(each.values[best]), float(each.values[best + 1])
    return Turn(each.id, each.outcome, each.reward, token, each.pieces[token], before, after, lead, trail)
