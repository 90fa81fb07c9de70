"""Have the test questions been trained on? Shared word n-grams between two sets of texts.

A test question is contaminated if it shares a run of n words with a training question (13, as in GPT-3's appendix C);
one shorter than n words, if all of it occurs in one. Case, punctuation, spacing and Unicode's forms don't count. Runs
which most test questions have in common (an instruction, a form) are theirs, not the training data's, and are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vcppo.common.text.question_text import question_key

NGRAM = 13
_WORD = re.compile(r"\w+")
_COMMON = 0.5  # share of test questions from which on a run of words is a form
_MIN_FOR_COMMON = 4  # fewer test questions can't tell


class Overlap(NamedTuple):
    """A contaminated test question: its number, the training text it meets, the share of its n-grams, one of them."""

    test: int
    train: int
    share: float
    run: str


def find_overlaps(train: Iterable[str], test: Sequence[str], n: int = NGRAM) -> list[Overlap]:
    """Contaminated test questions, the most contaminated first; of each, the training text that shares most with it.

    Memory is of the test set's n-grams only; `train` is walked once. ValueError unless n >= 1.
    """
    if n < 1:
        raise ValueError(f"n-grams of {n} words: n must be at least 1")
    runs = _index(test, n)
    sizes = Counter(number for numbers in runs.values() for number in numbers)
    shortest = min((len(run) for run in runs), default=n)
    best: dict[int, tuple[int, int, tuple[str, ...]]] = {}
    for number, text in enumerate(train):
        words = _words(text)
        found: dict[int, list[tuple[str, ...]]] = {}
        for length in range(shortest, n + 1):
            for run in set(_ngrams(words, length)):
                for question in runs.get(run, ()):
                    found.setdefault(question, []).append(run)
        for question, shared in found.items():
            if len(shared) > best.get(question, (0,))[0]:
                best[question] = (len(shared), number, min(shared))
    overlaps = [Overlap(q, number, count / sizes[q], " ".join(run)) for q, (count, number, run) in best.items()]
    return sorted(overlaps, key=lambda overlap: (-overlap.share, overlap.test))


def _index(test: Sequence[str], n: int) -> dict[tuple[str, ...], set[int]]:
    """Which test questions have a run of words; whole texts where they are shorter than n."""
    runs: dict[tuple[str, ...], set[int]] = {}
    for number, text in enumerate(test):
        words = _words(text)
        for run in _ngrams(words, n) if len(words) >= n else [tuple(words)] if words else []:
            runs.setdefault(run, set()).add(number)
    if len(test) < _MIN_FOR_COMMON:
        return runs
    return {run: numbers for run, numbers in runs.items() if len(numbers) <= _COMMON * len(test)}


def _words(text: str) -> list[str]:
    return _WORD.findall(question_key(text))


def _ngrams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
