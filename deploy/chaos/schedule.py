"""Which fault comes when: a pure function of the seed.

Faults are dealt like cards: a deck holds each kind once, shuffled; when it is used up the next is shuffled. So every
kind comes up equally often, in an order nobody chose. What a fault hits is drawn as a number in [0, 1) and becomes a
process only when it strikes, among those that are up.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, TypeVar

T = TypeVar("T")

ROLES = ("generator", "buffer", "learner", "redis")


class Kind(StrEnum):
    """Every fault there is. A value's first word is what is done, the rest what it is done to."""

    KILL_GENERATOR = "kill generator"
    KILL_BUFFER = "kill buffer"
    KILL_LEARNER = "kill learner"
    KILL_REDIS = "kill redis"
    TERMINATE_GENERATOR = "terminate generator"
    TERMINATE_BUFFER = "terminate buffer"
    TERMINATE_LEARNER = "terminate learner"
    TERMINATE_REDIS = "terminate redis"
    FREEZE_GENERATOR = "freeze generator"
    FREEZE_BUFFER = "freeze buffer"
    FREEZE_LEARNER = "freeze learner"
    FREEZE_REDIS = "freeze redis"
    CUT_BUFFER = "cut buffer-link"
    CUT_REDIS = "cut redis-link"
    BLOCK_BUFFER = "block buffer-link"
    BLOCK_REDIS = "block redis-link"
    FILL_SPOOL = "fill spool"
    ADD_GENERATOR = "add generator"
    REMOVE_GENERATOR = "remove generator"
    FREEZE_LAUNCHER = "freeze launcher"
    KILL_VERIFIER = "kill verifier"
    KILL_GUARDIAN = "kill guardian"
    FREEZE_VERIFIER = "freeze verifier"
    HANG_VERIFIER = "hang verifier"
    CORRUPT_PAYLOAD = "corrupt payload"
    GARBLE_CLAIMED = "garble claimed"
    BESIEGE_BUFFER = "besiege buffer"
    BESIEGE_GENERATOR = "besiege generator"
    FILL_DISK = "fill disk"
    EXHAUST_FILES = "exhaust files"
    REPLAY_TRAJECTORIES = "replay trajectories"

    @property
    def action(self) -> str:
        """What is done, a key of `MEANING`."""
        return self.value.split()[0]

    @property
    def target(self) -> str:
        """What it is done to: a role (``generator``), a link (``redis-link``) or the spool."""
        return self.value.split()[1]


MEANING = {
    "kill": "SIGKILL",
    "terminate": "SIGTERM",
    "freeze": "SIGSTOP for longer than every deadline that watches it, then SIGCONT",
    "cut": "connections are reset and new ones refused for a while",
    "block": "connections stay open and carry nothing for longer than the deadlines",
    "fill": "spool: buffers stand still until it is full; disk: the learner's files can't grow",
    "exhaust": "the learner can open no more files",
    "add": "one more generator joins",
    "remove": "a generator is asked to leave and is not started again",
    "hang": "a response makes its verifier start a child that hides, and never answer",
    "corrupt": "a bit of a trajectory that waits in the store changes",
    "garble": "a claimed trajectory becomes garbage, and the learner dies before it commits",
    "besiege": "garbage, false messages and false calls at its port, with the run's own keys",
    "replay": "what is buffered already is sent once more",
}

ALONE = frozenset({Kind.FREEZE_LAUNCHER, Kind.KILL_VERIFIER, Kind.KILL_GUARDIAN, Kind.FREEZE_VERIFIER})
ALONE |= frozenset({Kind.HANG_VERIFIER, Kind.CORRUPT_PAYLOAD, Kind.GARBLE_CLAIMED})
ALONE |= frozenset({Kind.FILL_DISK, Kind.EXHAUST_FILES})
"""Kinds that wait for the one before, and that the next one waits for: another would hide what they must show."""


class Fault(NamedTuple):
    """One card.

    Attributes:
        number: from 1.
        kind: what is done to whom.
        gap_seconds: quiet time before it strikes.
        draw: in [0, 1): which of the possible targets it hits.
        stretch: how much longer than the deadline a freeze or block lasts, >= 1.
        overlaps: it does not wait until the run has got over the one before.
    """

    number: int
    kind: Kind
    gap_seconds: float
    draw: float
    stretch: float
    overlaps: bool

    def pick(self, candidates: Sequence[T]) -> T:
        """The candidate that was drawn. ValueError when there is none."""
        if not candidates:
            raise ValueError(f"{self.kind}: nothing to hit")
        return candidates[int(self.draw * len(candidates))]


MAX_GAP_SECONDS = 5.0
MAX_STRETCH = 1.3
OVERLAP_SHARE = 0.15


def schedule(seed: int, kinds: Collection[Kind] = tuple(Kind)) -> Iterator[Fault]:
    """Faults without end; the same for the same seed and kinds."""
    rng = random.Random(f"chaos {seed}")
    wanted = [kind for kind in Kind if kind in kinds]
    if not wanted:
        raise ValueError("chaos needs at least one kind of fault")
    number = 0
    while True:
        deck = list(wanted)
        rng.shuffle(deck)
        for kind in deck:
            number += 1
            yield Fault(
                number,
                kind,
                gap_seconds=round(rng.uniform(0.0, MAX_GAP_SECONDS), 3),
                draw=rng.random(),
                stretch=round(rng.uniform(1.05, MAX_STRETCH), 3),
                overlaps=rng.random() < OVERLAP_SHARE and kind not in ALONE,
            )


def kinds_text() -> str:
    """Every kind of fault and what it means, for `--help`."""
    words = list(dict.fromkeys(kind.action for kind in Kind))
    lines = []
    for word in words:
        targets = ", ".join(kind.target for kind in Kind if kind.action == word)
        lines.append(f"  {word + ' ' + targets:<48} {MEANING[word]}")
    return "\n".join(lines)
