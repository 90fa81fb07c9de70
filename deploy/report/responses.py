"""Responses for the page of a run: a chosen few of its first and its last step, each token coloured by its value.

Text of a model may be anything: what is no character is written out as its escape, and the template escapes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from vcppo.common.records.sample_table import SampleError
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.log_render import printable
from vcppo.deploy.samples.show import heading
from vcppo.deploy.samples.sources import Sample, samples_of_rl, steps_of
from vcppo.deploy.samples.token_view import belief, numbers_text, turning_point, turning_text, undecided, value_line

log = structlog.get_logger(__name__)

MAX_TOKENS = 1500
"""Of a response; what is beyond is left out in the middle."""
MAX_PROMPT = 4000
"""Characters of a prompt."""
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
        undecided: 0 to 1, how undecided the policy was; None where that is not known.
        kind: ``action``, ``turning`` (here the value moved most), ``environment`` or ``left_out``.
    """

    text: str
    colour: float | None
    undecided: float | None
    numbers: str
    kind: str


@dataclass(frozen=True)
class Response:
    """One response on the page; `line` are the points of its values, see `vcppo.deploy.samples.token_view`."""

    why: str
    heading: str
    prompt: str
    tokens: Sequence[Token]
    line: str
    turning: str

    @property
    def has_entropy(self) -> bool:
        """Whether it is known of any token."""
        return any(token.undecided is not None for token in self.tokens)


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
    doubts = undecided(known["entropy"])
    tokens = [_token(number, known, doubts[number], turning, least, greatest) for number in range(len(values))]
    if len(tokens) > MAX_TOKENS:
        half = MAX_TOKENS // 2
        gap = Token(f" … {len(tokens) - 2 * half:,} tokens left out … ", None, None, "", "left_out")
        tokens = [*tokens[:half], gap, *tokens[-half:]]
    prompt = printable(str(sample.prompt))
    return Response(
        why=why,
        heading=printable(heading(sample)),
        prompt=prompt if len(prompt) <= MAX_PROMPT else f"… {prompt[-MAX_PROMPT:]}",
        tokens=tokens,
        line=value_line(values, least, greatest),
        turning=turning_text(known, turning),
    )


def _token(
    number: int, known: dict[str, list[Any]], doubt: float | None, turning: int | None, least: float, greatest: float
) -> Token:
    text, value = printable(known["tokens"][number]), known["values"][number]
    if known["turn"][number] is None:
        return Token(text, None, None, numbers_text(number, known), "environment")
    said = numbers_text(number, known)
    if value is None:
        return Token(text, None, doubt, said, "action")
    return Token(text, belief(value, least, greatest), doubt, said, "turning" if number == turning else "action")
