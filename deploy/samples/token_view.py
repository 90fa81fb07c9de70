"""What pages say of a response's tokens: the report's and those of `vcppo ui`. Pure.

`tokens` are the columns of `vcppo.common.records.sample_table.TOKEN_COLUMNS`; `least` and `greatest` are the rewards of
a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vcppo.common.telemetry.log_render import printable

LINE_WIDTH, LINE_HEIGHT = 600, 60
Tokens = Mapping[str, Sequence[Any]]


def turning_point(values: Sequence[float | None]) -> int | None:
    """The token that moved the value most: V after it differs most from V before it. None without two values."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    moves = [(abs(after - before), number) for (number, before), (_, after) in pairwise(known)]
    return max(moves, key=lambda move: move[0])[1] if moves else None


def turning_text(tokens: Tokens, turning: int | None) -> str:
    """What that token did; empty where there is none."""
    if turning is None:
        return ""
    before, piece = tokens["values"][turning], printable(tokens["tokens"][turning])
    after = next(value for value in tokens["values"][turning + 1 :] if value is not None)
    return f"The critic changed its mind most at token {turning}, {piece!r}: {before:+.2f} → {after:+.2f}"


def numbers_text(number: int, tokens: Tokens) -> str:
    """All that is known of a token, in a line."""
    behaviour, old, value = (tokens[name][number] for name in ("behaviour_log_probs", "old_log_probs", "values"))
    if behaviour is None:
        return f"token {number} · said by the environment"
    parts = [f"token {number}"]
    if value is not None:
        parts.append(f"value {value:+.3f}")
    parts += [f"advantage {tokens['advantages'][number]:+.3f}", f"log-prob {behaviour:.3f}"]
    if (entropy := tokens["entropy"][number]) is not None:
        parts.append(f"entropy {entropy:.3f}")
    parts += [f"mismatch {old - behaviour:+.4f}", f"version {tokens['versions'][number]}"]
    return " · ".join(parts)


def belief(value: float, least: float, greatest: float) -> float:
    """A value from -1, the least reward or below, to 1, the greatest or above."""
    half, middle = (greatest - least) / 2 or 1.0, (greatest + least) / 2
    return min(1.0, max(-1.0, (value - middle) / half))


def undecided(entropy: Sequence[float | None]) -> list[float | None]:
    """Entropies, nats, from 0 to 1: the largest of the response, or ln 2 (two ways, equally likely) if that is more."""
    most = max([math.log(2), *(each for each in entropy if each is not None)])
    return [None if each is None else min(1.0, max(0.0, each / most)) for each in entropy]


def value_line(values: Sequence[float | None], least: float, greatest: float) -> str:
    """Points of an SVG's polyline, the largest reward at the top; empty without a critic."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    if len(known) < 2 or greatest <= least:
        return ""
    last = max(1, len(values) - 1)
    step = max(1, len(known) // LINE_WIDTH)
    return " ".join(
        f"{LINE_WIDTH * number / last:.1f},{LINE_HEIGHT * (1 - belief(value, least, greatest)) / 2:.1f}"
        for number, value in known[::step]
    )
