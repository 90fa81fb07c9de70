"""A response token by token, coloured by one of its numbers. Pure.

A colour is a class of the style sheet, since the pages allow no style in their markup: ``b-10`` to ``b10`` from red
over nothing to green, ``u0`` to ``u10`` from nothing to orange, ``v0`` to ``v5`` one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from vcppo.common.telemetry.log_render import printable
from vcppo.deploy.samples.token_view import belief, numbers_text, undecided

ColourBy = Literal["value", "advantage", "mismatch", "log-prob", "entropy", "version", "turn"]
COLOURS: tuple[ColourBy, ...] = get_args(ColourBy)
MEANINGS: dict[ColourBy, str] = {
    "value": "what the critic believed before the token: red, it goes wrong; green, it goes right",
    "advantage": "red: the token was trained to be less likely; green: more likely",
    "mismatch": "the learner's log-prob less that of sampling: red, lower; green, higher",
    "log-prob": "the redder, the less likely the token was when it was sampled",
    "entropy": "the more orange, the more undecided the policy was at this place, before it chose the token",
    "version": "one colour a policy version",
    "turn": "one colour a turn of the policy",
}
_STEPS = 10
_NUM_KINDS = 6


_SCALE = [f"b{step}" for step in range(-_STEPS, _STEPS + 1, 2)]
SCALES: dict[ColourBy, tuple[str, str, list[str]]] = {
    "value": ("it goes wrong", "it goes right", _SCALE),
    "advantage": ("less likely", "more likely", _SCALE),
    "mismatch": ("lower", "higher", _SCALE),
    "log-prob": ("unlikely", "likely", _SCALE[: len(_SCALE) // 2 + 1]),
    "entropy": ("sure", "undecided", [f"u{step}" for step in range(0, _STEPS + 1)]),
}
"""What the two ends of the colours mean, and the classes from one to the other."""


class ColouredToken(NamedTuple):
    """One token of the page; `numbers` is what is said of it, `kind` the classes of its colour and what it is."""

    text: str
    kind: str
    numbers: str
    is_turning: bool = False


def coloured(
    tokens: Mapping[str, Sequence[Any]], by: ColourBy, least: float, greatest: float, turning: int | None
) -> list[ColouredToken]:
    """Every token of a response.

    Args:
        tokens: the columns of `vcppo.common.records.sample_table.TOKEN_COLUMNS`.
        least, greatest: rewards of the run, the ends of the colours of values.
        turning: the token that moved the value most.
    """
    classes = _classes(tokens, by, least, greatest)
    found = []
    for number, piece in enumerate(tokens["tokens"]):
        is_action = tokens["turn"][number] is not None
        kinds = [classes[number]] if is_action else ["environment"]
        if number == turning:
            kinds.append("turning")
        found.append(ColouredToken(printable(piece), " ".join(kinds), numbers_text(number, tokens), number == turning))
    return found


def mismatches(tokens: Mapping[str, Sequence[Any]]) -> list[float | None]:
    """Learner's log-prob less that of sampling, token by token."""
    both = zip(tokens["old_log_probs"], tokens["behaviour_log_probs"], strict=True)
    return [None if old is None or behaviour is None else old - behaviour for old, behaviour in both]


def _classes(tokens: Mapping[str, Sequence[Any]], by: ColourBy, least: float, greatest: float) -> list[str]:
    match by:
        case "value":
            return _scaled(tokens["values"], lambda value: belief(value, least, greatest))
        case "advantage":
            return _by_largest(tokens["advantages"])
        case "mismatch":
            return _by_largest(mismatches(tokens))
        case "log-prob":
            return _scaled(tokens["behaviour_log_probs"], lambda log_prob: max(-1.0, log_prob / 3))
        case "entropy":
            return [f"u{round(_STEPS * (share or 0.0))}" for share in undecided(tokens["entropy"])]
        case "version":
            names = {version: i for i, version in enumerate(sorted(set(tokens["versions"])))}
            return [f"v{names[version] % _NUM_KINDS}" for version in tokens["versions"]]
        case "turn":
            return ["b0" if turn is None else f"v{turn % _NUM_KINDS}" for turn in tokens["turn"]]


def _by_largest(numbers: Sequence[float | None]) -> list[str]:
    largest = max((abs(number) for number in numbers if number is not None), default=0.0) or 1.0
    return _scaled(numbers, lambda number: number / largest)


def _scaled(numbers: Sequence[float | None], scale: Callable[[float], float]) -> list[str]:
    """Nearest of the steps from -1 to 1."""
    return ["b0" if number is None else f"b{round(_STEPS * min(1.0, max(-1.0, scale(number))))}" for number in numbers]
