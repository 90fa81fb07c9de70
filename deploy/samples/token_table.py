"""A response token by token in the terminal: what the critic believed, and what the learner made of it."""

from __future__ import annotations

from typing import Any

from vcppo.common.telemetry.log_render import printable

_BAR = 12
_HEADING = (
    f"{'token':>5}  {'value':>7} {'':{_BAR}}  {'advantage':>9}  {'log-prob':>8}  {'entropy':>7}  {'mismatch':>8}"
    f"  {'version':>7}  text"
)


def token_table(tokens: dict[str, list[Any]]) -> str:
    """A line a token, the value also as a bar from the least to the largest of the response.

    The value is what was believed before the token: the next line's shows what the token made of it.
    """
    known = [value for value in tokens["values"] if value is not None]
    least, largest = (min(known), max(known)) if known else (0.0, 0.0)
    lines = [_HEADING]
    for number, piece in enumerate(tokens["tokens"]):
        value, behaviour = tokens["values"][number], tokens["behaviour_log_probs"][number]
        old = tokens["old_log_probs"][number]
        mismatch = None if old is None or behaviour is None else old - behaviour
        said = printable(piece).replace("\n", "⏎")
        if behaviour is None:
            said += "   (said by the environment)"
        lines.append(
            f"{number:>5}  {_number(value, 7, 3)} {_bar(value, least, largest)}"
            f"  {_number(tokens['advantages'][number], 9, 3)}  {_number(behaviour, 8, 3)}"
            f"  {_number(tokens['entropy'][number], 7, 3)}  {_number(mismatch, 8, 4)}"
            f"  {tokens['versions'][number]:>7}  {said}"
        )
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'·' if value is None else f'{value:+.{digits}f}':>{width}}"


def _bar(value: float | None, least: float, largest: float) -> str:
    if value is None or largest <= least:
        return " " * _BAR
    return ("█" * round(_BAR * (value - least) / (largest - least))).ljust(_BAR)
