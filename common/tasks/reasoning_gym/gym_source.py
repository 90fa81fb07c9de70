"""One data set of the library reasoning_gym as endless problems of two splits.

The library makes an entry from a seed and an index: item i of a data set with seed s is drawn from s + i. Here problem
number n of a split is looked for among `_TRIES` entries that no other number has:

    block b = n // 64             one data set object, of seed  split · 2³¹ + (offset + b) · 4096, offset by the seed
    entries from (n % 64) · 64    the first of 64 whose text belongs to the split

So seeds of the splits lie apart, no seed is used twice in 33 million problems, and the split that a text belongs to is
a property of the text alone: whatever a small space repeats, no held-out problem is trained on.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import random
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from vcppo.common.tasks.interface import Split, TaskError
from vcppo.common.text.yaml_text import one_line

_SEED_BITS = 31  # of a split; some data sets take 32 bits at most
_BLOCK = 64  # problems
_TRIES = 64  # entries a problem: one in 4 texts is held out, so all of them fail once in 10⁸ problems
_BLOCKS = (1 << _SEED_BITS) // (_BLOCK * _TRIES)
_HELD_OUT_SHARE = 4  # one text in so many
_OURS = ("seed", "size")
_REFUSED = {
    "composite": "list its parts in task.options.datasets",
    "codeio": "it runs programs that a model wrote to make its problems, and they come out differently each time",
}
# They go through sets of text, whose order is another in each process.
_BY_HASH = {"intermediate_integration", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"}
_RUNS_ANSWERS = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(\w*answer")


class Drawn(NamedTuple):
    """An entry, and where it comes from.

    Attributes:
        seed: of the data set object.
        place: of the entry in it, its index.
        entry: the library's own: question, answer (None where there are several), metadata.
    """

    seed: int
    place: int
    entry: dict[str, Any]


class GymSource:
    """Entries of one data set, by number and split.

    Args:
        name: in the library.
        config: fields of its config, without seed and size.
        allow_eval: take data sets whose scorer runs the answer as Python.

    Raises:
        TaskError: the library is not installed, has no such data set, or refuses the config.
    """

    def __init__(self, name: str, config: Mapping[str, object], *, allow_eval: bool) -> None:
        self.name = name
        self._config = dict(config)
        self._dataset = lru_cache(maxsize=8)(self._make)
        kinds = _library().factory.DATASETS
        if name in _REFUSED:
            raise TaskError(f"task.options.datasets: {name} can't be used: {_REFUSED[name]}")
        if name not in kinds:
            known = ", ".join(sorted(kinds.keys() - _REFUSED.keys()))
            raise TaskError(f"task.options.datasets: reasoning_gym has no data set {name!r}; it has {known}")
        if name in _BY_HASH and sys.flags.hash_randomization:
            raise TaskError(
                f"task.options.datasets: {name} makes other problems in each process, because it goes by Python's "
                "hashes of text: start vcppo with PYTHONHASHSEED=0 in the environment, or leave it out"
            )
        kind, config_kind = kinds[name]
        self._check_config({field.name for field in dataclasses.fields(config_kind)})
        if not allow_eval and _RUNS_ANSWERS.search(inspect.getsource(inspect.getmodule(kind) or kind)):
            raise TaskError(
                f"task.options.datasets: the scorer of {name} runs what the policy answers as Python, outside of any "
                "sandbox: choose another data set, or accept that by task.options.allow_eval=true"
            )
        self._dataset(0)

    def draw(self, split: Split, seed: int, number: int) -> Drawn:
        """Problem `number` of the split: a pure function of the three."""
        block, place = divmod(number, _BLOCK)
        base = self._seed(split, seed, block)
        for index in range(place * _TRIES, (place + 1) * _TRIES):
            entry = self.entry(base, index)
            if is_in(split, entry["question"]):
                return Drawn(base, index, entry)
        raise TaskError(
            f"task.options.datasets: {self.name} has no {split} problem among {_TRIES}: it has too few different ones; "
            "widen its config or leave it out"
        )

    def entry(self, seed: int, index: int) -> dict[str, Any]:
        """Entry `index` of the data set with this seed."""
        state = random.getstate()
        random.seed(seed + index)  # some data sets draw from the global generator beside their own
        try:
            found: dict[str, Any] = self._dataset(seed)[index]
        except Exception as error:
            said = one_line(f"{type(error).__name__}: {error}", 200)
            raise TaskError(
                f"task.options.datasets: {self.name} can't make an entry (seed {seed}, index {index}): {said}; change "
                "its config or leave it out"
            ) from error
        finally:
            random.setstate(state)
        return found

    def score(self, text: str, seed: int, index: int) -> float:
        """The library's own score of an answer, 0 to 1; 0 where its scorer can't read it.

        Raises:
            TaskError: the scorer gave no finite number.
        """
        entry = self.entry(seed, index)
        try:
            score = float(self._dataset(seed).score_answer(text, entry))
        except Exception:  # noqa: BLE001  (several scorers raise on text that is no answer of theirs)
            return 0.0
        if not math.isfinite(score):
            raise TaskError(f"the scorer of {self.name} gave {score}")
        return score

    def _check_config(self, fields: set[str]) -> None:
        for field in self._config:
            if field in _OURS:
                raise TaskError(f"task.options.datasets: {self.name}: {field} is vcppo's to set: leave it out")
            if field not in fields:
                known = ", ".join(sorted(fields - set(_OURS)))
                raise TaskError(f"task.options.datasets: {self.name} has no config field {field!r}; it has {known}")

    def _make(self, seed: int) -> Any:
        try:
            return _library().create_dataset(self.name, **self._config, seed=seed, size=_BLOCK * _TRIES)
        except Exception as error:
            said = one_line(f"{type(error).__name__}: {error}", 200)
            raise TaskError(f"task.options.datasets: {self.name} refuses its config {self._config}: {said}") from error

    def _seed(self, split: Split, seed: int, block: int) -> int:
        offset = int.from_bytes(blake2b(f"{self.name}:{seed}".encode(), digest_size=8).digest(), "big")
        first = 1 << _SEED_BITS if split == "held_out" else 0
        return first + (offset + block) % _BLOCKS * (_BLOCK * _TRIES)


def is_in(split: Split, question: str) -> bool:
    """Which problems are held out is a property of their text, so the splits never meet, whatever is drawn."""
    digest = blake2b(question.encode(errors="replace"), digest_size=4).digest()
    return (int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0) == (split == "held_out")


def _library() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise TaskError(
            f"task.name = 'reasoning_gym' needs an optional extra ({one_line(error)}): pip install vcppo[reasoning-gym]"
        ) from error
