"""Groups that dynamic sampling left out of training: the record of one, and the account of them all. Pure; no I/O.

The account is one value in the store (`vcppo.common.store.facts.LEFT_OUT`), written in the same instant as the groups
are rejected. It names those of the steps that are not committed yet, so that a step done again after a crash has the
same figures, and sums up the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from vcppo.common.store.codec import reading

Kind = Literal["all_correct", "all_wrong", "same_reward"]
KINDS: tuple[Kind, ...] = ("all_correct", "all_wrong", "same_reward")


class LeftOut(NamedTuple):
    """A finished group without signal.

    Attributes:
        kind: ``same_reward``: some of it are correct, and the rewards are the same all the same.
        reason: in words, with the number of responses.
        num_samples, num_correct: its responses.
        num_tokens: of prompts and responses: what a learner would have trained.
        num_response: of the responses alone: what generators have made.
    """

    group_id: str
    kind: Kind
    reason: str
    num_samples: int
    num_correct: int
    num_tokens: int
    num_response: int


class Sums(NamedTuple):
    """Of groups left out of training."""

    groups: int = 0
    samples: int = 0
    correct: int = 0
    tokens: int = 0
    response_tokens: int = 0


@dataclass(frozen=True)
class Account:
    """All that was left out in a run.

    Attributes:
        steps: by step, its groups in the order they were left out; of steps that are not committed.
        totals: since the run began.
        newest: the last one, in words.
    """

    steps: Mapping[int, list[LeftOut]] = field(default_factory=dict)
    totals: Mapping[Kind, Sums] = field(default_factory=dict)
    newest: str = ""

    @classmethod
    def loads(cls, text: str | None) -> Account:
        """What `dumps` gave; None: an empty one. Raises VcppoError for anything else."""
        if text is None:
            return cls()
        with reading("account of groups without signal"):
            found = json.loads(text)
            return cls(
                {int(step): [LeftOut(*each) for each in groups] for step, groups in found["steps"].items()},
                {kind: Sums(*map(int, found["totals"][kind])) for kind in KINDS if kind in found["totals"]},
                str(found["newest"]),
            )

    def dumps(self) -> str:
        """As text for the store."""
        return json.dumps({"steps": self.steps, "totals": self.totals, "newest": self.newest})

    def adding(self, step: int, groups: Iterable[LeftOut], committed: int) -> Account:
        """This account with `groups` left out before `step`, and without the names of steps up to `committed`."""
        groups = list(groups)
        steps = {number: each for number, each in self.steps.items() if number > committed}
        steps[step] = [*steps.get(step, []), *groups]
        together = {
            kind: _plus(self.totals.get(kind, Sums()), sums_of(each for each in groups if each.kind == kind))
            for kind in KINDS
        }
        newest = f"{groups[-1].group_id}: {groups[-1].reason}" if groups else self.newest
        return Account(steps, {kind: sums for kind, sums in together.items() if sums.groups}, newest)

    @property
    def total(self) -> Sums:
        """Of all kinds."""
        found = Sums()
        for sums in self.totals.values():
            found = _plus(found, sums)
        return found


def sums_of(groups: Iterable[LeftOut]) -> Sums:
    """Of these."""
    found = Sums()
    for each in groups:
        found = _plus(found, Sums(1, each.num_samples, each.num_correct, each.num_tokens, each.num_response))
    return found


def _plus(one: Sums, other: Sums) -> Sums:
    return Sums(*(a + b for a, b in zip(one, other, strict=True)))
