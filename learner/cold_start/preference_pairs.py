"""Pairs of responses of which the first is better, for a Bradley-Terry reward model. No torch.

Two kinds. *Right against wrong*: both complete. *Longer against shorter*: two parts of one response; it is what makes
a reward model score unfinished text low, and with it the bias a critic inherits from one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vcppo.common.errors import VcppoError
from vcppo.common.records.segments import split
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.tasks import Task, encode_prompt
from vcppo.common.tasks.asking import demonstrations_of
from vcppo.learner.batching.demonstrations import as_trajectory

Int32Array = NDArray[np.int32]


class Pair(NamedTuple):
    """Two responses to one prompt; `complete` says of each (better, worse) whether it is whole."""

    better: Trajectory
    worse: Trajectory
    complete: tuple[bool, bool]


class Prefixes(NamedTuple):
    """Pairs of the second kind: their share, and whether the longer part is always the complete response."""

    fraction: float
    complete: bool = False


class PairSource(Protocol):
    """Where pairs come from."""

    def draw(self, seed: int, count: int) -> list[Pair]:
        """`count` pairs; the same seed gives the same."""


class DemonstrationPairs:
    """The task's demonstrations: right against one digit changed, and longer against shorter.

    Args:
        style: of the demonstrations, see `Task.demonstrations`.
        prefixes: how often pairs are of the second kind, and which.
    """

    def __init__(self, task: Task, tokenizer: Any, style: Mapping[str, object], prefixes: Prefixes) -> None:
        self._task, self._tokenizer, self._style, self._prefixes = task, tokenizer, style, prefixes

    def draw(self, seed: int, count: int) -> list[Pair]:
        """`count` pairs, the same for the same seed."""
        rng = random.Random(seed)
        pairs = []
        for demonstration in demonstrations_of(self._task, seed, count, self._style):
            prompt = encode_prompt(self._tokenizer, demonstration.prompt)
            right = self._encode(demonstration.response)
            if rng.random() < self._prefixes.fraction:
                pairs.append(longer_against_shorter(prompt, right, rng, complete=self._prefixes.complete))
            else:
                wrong = self._encode(one_digit_changed(demonstration.response, rng))
                pairs.append(Pair(as_trajectory(prompt, right), as_trajectory(prompt, wrong), (True, True)))
        return pairs

    def _encode(self, response: str) -> Int32Array:
        ids = self._tokenizer(response, add_special_tokens=False)["input_ids"]
        return np.asarray([*ids, self._tokenizer.eos_token_id], np.int32)


class RolloutPairs:
    """The policy's own responses: correct against wrong for one prompt, and longer against shorter.

    Raises:
        VcppoError: no prompt has both a correct and another response.
    """

    def __init__(self, rollouts: Sequence[Trajectory], prefixes: Prefixes) -> None:
        groups: dict[str, tuple[list[Trajectory], list[Trajectory]]] = defaultdict(lambda: ([], []))
        for each in sorted(rollouts, key=lambda t: (t.group_id, t.sample_index)):
            ended_last, *_ = split(each)  # of several conversations one: a pair is of two
            groups[each.group_id][each.outcome != "correct"].append(ended_last)
        self._mixed = [group for group in groups.values() if all(group)]
        self._all = [each for group in groups.values() for side in group for each in side]
        self._prefixes = prefixes
        if not self._mixed:
            raise VcppoError(
                f"reward_model.rollouts: none of its {len(groups)} prompts has both a correct and a wrong response: "
                "give a file with more responses a prompt, or leave it out to take demonstrations"
            )

    def draw(self, seed: int, count: int) -> list[Pair]:
        """`count` pairs with replacement, the same for the same seed."""
        rng = random.Random(seed)
        pairs = []
        for _ in range(count):
            if rng.random() < self._prefixes.fraction:
                each = rng.choice(self._all)
                prompt, response = each.prompt_token_ids, each.response_token_ids
                pairs.append(longer_against_shorter(prompt, response, rng, complete=self._prefixes.complete))
            else:
                right, wrong = (rng.choice(side) for side in rng.choice(self._mixed))
                pairs.append(Pair(right, wrong, (True, True)))
        return pairs


def longer_against_shorter(prompt: Int32Array, response: Int32Array, rng: random.Random, *, complete: bool) -> Pair:
    """Two different lengths from 1 to all of `response` ``[T]`` (T at least 2); with `complete` the longer is all.

    Raises:
        VcppoError: a response of one token.
    """
    length = len(response)
    if length < 2:
        raise VcppoError(
            "reward_model: a response of one token has no shorter part: set reward_model.prefix_fraction=0"
        )
    short, long = sorted(rng.sample(range(1, length + 1), 2))
    if complete:
        short, long = rng.randrange(1, length), length
    return Pair(
        as_trajectory(prompt, response[:long]), as_trajectory(prompt, response[:short]), (long == length, False)
    )


def one_digit_changed(text: str, rng: random.Random) -> str:
    """`text` with one of its digits made another one. Raises VcppoError where there is none."""
    places = [i for i, symbol in enumerate(text) if symbol in "0123456789"]
    if not places:
        raise VcppoError(
            "reward_model: a demonstration of this task holds no digit to change into a wrong one: "
            "set reward_model.rollouts to a recorded trajectory file, or reward_model.prefix_fraction=1"
        )
    place = rng.choice(places)
    other = rng.choice([digit for digit in "0123456789" if digit != text[place]])
    return text[:place] + other + text[place + 1 :]
