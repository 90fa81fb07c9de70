"""Responses for the page of a run: a chosen few of its first and its last step, each token coloured by its value.

Text of a model may be anything: what is no character is written out as its escape, and the template escapes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import structlog

from vcppo.common.records.sample_table import SampleError
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.log_render import printable
from vcppo.deploy.samples.show import heading
from vcppo.deploy.samples.sources import Sample, samples_of_rl, steps_of

log = structlog.get_logger(__name__)

MAX_TOKENS = 1500
"""Of a response; what is beyond is left out in the middle."""
MAX_PROMPT = 4000
"""Characters of a prompt."""
LINE_WIDTH, LINE_HEIGHT = 600, 60
_REASONS: dict[str, Callable[[Sample], float]] = {
    "largest reward": lambda sample: sample.reward or 0.0,
    "smallest reward": lambda sample: -(sample.reward or 0.0),
    "largest |advantage|": lambda sample: sample.largest_advantage or 0.0,
    "largest mismatch of log-probs": lambda sample: sample.largest_mismatch or 0.0,
}


class Token(NamedTuple):
    """One token on the page.

    Attributes:
        colour: -1 (surely wrong) to 1 (surely right); None where nobody believed anything.
        numbers: what is shown when it is pointed at.
        kind: ``action``, ``turning`` (here the value moved most), ``environment`` or ``left_out``.
    """

    text: str
    colour: float | None
    numbers: str
    kind: str


@dataclass(frozen=True)
class Response:
    """One response on the page; `line` are the points of its values for an SVG of `LINE_WIDTH` by `LINE_HEIGHT`."""

    why: str
    heading: str
    prompt: str
    tokens: Sequence[Token]
    line: str
    turning: str


def read_responses(folder: RunFolder, least: float, greatest: float) -> list[Response]:
    """Of the first and the last step that were kept, those with the extremes; none when there are none.

    Args:
        least, greatest: rewards of a run, the ends of the colours.
    """
    steps = list(steps_of(folder))
    try:
        return [
            _response(f"step {step}: {why}", sample, least, greatest)
            for step in dict.fromkeys(steps[:1] + steps[-1:])
            for why, sample in extremes(list(samples_of_rl(folder, step, step)))
        ]
    except (SampleError, OSError) as error:
        log.warning("responses_not_shown", error=str(error))
        return []


def extremes(samples: Sequence[Sample]) -> Iterator[tuple[str, Sample]]:
    """Each sample that is the extreme of something, once, with all it is the extreme of."""
    found: dict[str, tuple[list[str], Sample]] = {}
    for why, number in _REASONS.items():
        if samples:
            best = max(samples, key=number)
            found.setdefault(best.id, ([], best))[0].append(why)
    for reasons, sample in found.values():
        yield ", ".join(reasons), sample


def _response(why: str, sample: Sample, least: float, greatest: float) -> Response:
    assert sample.tokens is not None  # of RL
    known = sample.tokens()
    values: list[float | None] = known["values"]
    turning = turning_point(values)
    tokens = [_token(number, known, turning, least, greatest) for number in range(len(values))]
    if len(tokens) > MAX_TOKENS:
        half = MAX_TOKENS // 2
        gap = Token(f" … {len(tokens) - 2 * half:,} tokens left out … ", None, "", "left_out")
        tokens = [*tokens[:half], gap, *tokens[-half:]]
    prompt = printable(str(sample.prompt))
    return Response(
        why=why,
        heading=printable(heading(sample)),
        prompt=prompt if len(prompt) <= MAX_PROMPT else f"… {prompt[-MAX_PROMPT:]}",
        tokens=tokens,
        line=value_line(values, least, greatest),
        turning=_turning_text(turning, known),
    )


def turning_point(values: Sequence[float | None]) -> int | None:
    """The token that moved the value most: V after it differs most from V before it. None without two values."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    moves = [(abs(after - before), number) for (number, before), (_, after) in pairwise(known)]
    return max(moves, key=lambda move: move[0])[1] if moves else None


def _turning_text(turning: int | None, known: dict[str, list[Any]]) -> str:
    if turning is None:
        return ""
    after = next(value for value in known["values"][turning + 1 :] if value is not None)
    piece = printable(known["tokens"][turning])
    return f"The value moved most at token {turning}, {piece!r}: {known['values'][turning]:+.2f} → {after:+.2f}."


def _token(number: int, known: dict[str, list[Any]], turning: int | None, least: float, greatest: float) -> Token:
    text, value = printable(known["tokens"][number]), known["values"][number]
    behaviour, old = known["behaviour_log_probs"][number], known["old_log_probs"][number]
    if behaviour is None:
        return Token(text, None, f"token {number}, said by the environment", "environment")
    said = [f"token {number}", f"version {known['versions'][number]}", f"log-prob {behaviour:.3f}"]
    said += [f"mismatch {old - behaviour:+.4f}", f"advantage {known['advantages'][number]:+.3f}"]
    if value is None:
        return Token(text, None, ", ".join(said), "action")
    colour = 2 * (value - least) / (greatest - least) - 1 if greatest > least else 0.0
    said.insert(1, f"value {value:+.3f}")
    return Token(text, min(1.0, max(-1.0, colour)), ", ".join(said), "turning" if number == turning else "action")


def value_line(values: Sequence[float | None], least: float, greatest: float) -> str:
    """Points of a polyline, the largest reward at the top; empty without a critic."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    if len(known) < 2 or greatest <= least:
        return ""
    last = max(1, len(values) - 1)
    step = max(1, len(known) // LINE_WIDTH)
    heights = [min(1.0, max(0.0, (value - least) / (greatest - least))) for _, value in known]
    return " ".join(
        f"{LINE_WIDTH * number / last:.1f},{LINE_HEIGHT * (1 - height):.1f}"
        for (number, _), height in list(zip(known, heights, strict=True))[::step]
    )
