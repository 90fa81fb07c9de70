"""Single values: a number or expression with its unit, percent sign and base."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from vcppo.common.tasks.maths import symbols
from vcppo.common.tasks.maths.text import key
from vcppo.common.tasks.maths.values import Unit, Unreadable, agrees, exact_value, literal, unit_of

_UNIT_PIECE = re.compile(
    r"(?P<space>\s*)(?P<piece>\\text\{[^{}]*\}|(?<![\\A-Za-z])[A-Za-z]+\.?|/)(?P<power>\s*\^\{[23]\})?\s*\Z"
)
_PERCENT = re.compile(
    r"\s*(?:%|\\text\{\s*(?:%|percent|per cent|percentage)\s*(?:points?)?\s*\}"
    r"|(?<![A-Za-z])(?:per\s?cent|percentage points?))\s*\Z",
    re.IGNORECASE,
)
_BASE = re.compile(r"(?P<body>[0-9A-Fa-f.]+)\s*_\s*\{(?:\\text\{)?(?P<base>\d+|two|eight|ten|sixteen)\}?\}\Z")
_BASE_WORDS = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16"}
_MODULUS = re.compile(r"\s*(?:\\pmod\s*\{?([^{}]*?)\}?|\(\s*(?:\\b?mod|\\text\{\s*mod\s*\}|mod)\s*([^()]*)\))\Z")
_RATIO = re.compile(r"\d{1,30}(?:\.\d{1,30})?(?:\s*:\s*\d{1,30}(?:\.\d{1,30})?)+\Z")
_MIN_WORD = 3
_MAX_UNIT_WORDS = 6
_FUNCTION_WORDS = frozenset(("sin", "cos", "tan", "log", "mod", "sqrt"))


class Scalar(NamedTuple):
    """One value with what hangs on it."""

    body: str
    unit: Unit | None
    is_percent: bool
    base: str | None
    modulus: str | None


def same_scalars(reference: str, given: str) -> bool:
    """Are two single values equal? A unit, percent sign, base or modulus that one side leaves out does not count."""
    if _RATIO.match(reference) and _RATIO.match(given):
        return _same_ratios(*([Fraction(part.strip()) for part in text.split(":")] for text in (reference, given)))
    wanted, said = _scalar(reference), _scalar(given)
    if _differ(wanted.base, said.base) or _differ(wanted.modulus, said.modulus):
        return False
    factor = Fraction(1)
    if wanted.unit is not None and said.unit is not None:
        if wanted.unit.dimensions != said.unit.dimensions:
            return False
        factor = said.unit.factor / wanted.unit.factor
    if wanted.is_percent == said.is_percent:
        return _same_values(wanted.body, said.body, factor)
    if wanted.unit is not None or said.unit is not None:
        return False
    percent, other = (wanted, said) if wanted.is_percent else (said, wanted)
    # 50% is 0.5, and it is 50 where percent were asked for; 0.5% is not 0.5.
    return _same_values(other.body, percent.body, Fraction(1, 100)) or (
        not _is_below_one(other.body) and _same_values(other.body, percent.body, Fraction(1))
    )


def is_arithmetic(text: str) -> bool:
    """Is its value known exactly?"""
    try:
        exact_value(text)
    except Unreadable:
        return False
    return True


def _scalar(text: str) -> Scalar:
    """Takes unit, percent sign and base off, as far as they are there."""
    text, is_percent, base, modulus = text.strip(), False, None, None
    if match := _MODULUS.search(text):
        text, modulus = text[: match.start()].strip(), (match[1] or match[2]).strip()
    if match := _PERCENT.search(text):
        text, is_percent = text[: match.start()], True
    if match := _BASE.match(text):
        text, base = match["body"], _BASE_WORDS.get(match["base"], match["base"])
    text, unit = _without_unit(text)
    if _RATIO.match(text) and text.count(":") == 1:
        top, bottom = text.split(":")
        text = rf"\frac{{{top.strip()}}}{{{bottom.strip()}}}"
    return Scalar(text.strip(), unit, is_percent, base, modulus)


def _differ(first: str | None, second: str | None) -> bool:
    return first is not None and second is not None and first != second


def _without_unit(text: str) -> tuple[str, Unit | None]:
    r"""Value and unit, the longest tail that is one: ``5 cm``, ``5\text{ apples}``, ``60 km/h``, not ``5x``."""
    best: tuple[str, Unit | None] = (text, None)
    body = text
    for _ in range(_MAX_UNIT_WORDS):
        match = _UNIT_PIECE.search(body)
        if match is None:
            break
        body = body[: match.start()]
        tail = text[len(body) :]
        if re.search(r"\d", body) and _is_unit(body, tail):
            best = (body.strip(), unit_of(tail))
    return best


def _is_unit(body: str, tail: str) -> bool:
    if tail.lstrip().startswith("\\text"):
        return True
    if not re.search(r"[\d)}.]\Z", body):  # letters behind a letter
        return False
    is_apart = tail != tail.lstrip()
    words = re.findall(r"[A-Za-z]+", tail.replace("\\text", " "))
    if not words or words[0].lower() in _FUNCTION_WORDS:
        return False
    if unit_of(tail) is not None:
        return is_apart or len(words[0]) > 1
    return is_apart and len(words[0]) >= _MIN_WORD


def _same_ratios(reference: list[Fraction], given: list[Fraction]) -> bool:
    """6:8 is 3:4."""
    pairs = list(zip(reference, given, strict=False))
    return len(reference) == len(given) and all(a * pairs[0][1] == b * pairs[0][0] for a, b in pairs)


def _is_below_one(body: str) -> bool:
    try:
        return abs(exact_value(body)) < 1
    except Unreadable:
        return False


def _same_values(reference: str, given: str, factor: Fraction) -> bool:
    """Is `reference` equal to `factor` times `given`?"""
    wanted, said = _exact(reference), _exact(given)
    if wanted is not None and said is not None:
        if wanted == said * factor:
            return True
        return _rounded(reference, given, wanted, said, factor)
    if key(reference) == key(given):
        return factor == 1 and bool(key(reference))
    found = symbols.values([reference, given])
    if found is None:
        return False
    scaled = [(real * factor, imaginary * factor) for real, imaginary in found[1]]
    if all(symbols.is_same_number(a, b) for a, b in zip(found[0], scaled, strict=True)):
        return True
    (a, a_im), (b, b_im) = found[0][0], found[1][0]
    is_number = len(found[0]) == 1 and a_im == 0 == b_im
    return is_number and _rounded(reference, given, a, b, factor)


def _exact(text: str) -> Fraction | None:
    found = literal(text)
    if found is not None:
        return found.value
    try:
        return exact_value(text)
    except Unreadable:
        return None


def _rounded(reference: str, given: str, wanted: Fraction, said: Fraction, factor: Fraction) -> bool:
    """Does one of the two show the other's digits?"""
    decimals = literal(reference), literal(given)
    if decimals[0] is not None and agrees(decimals[0], said * factor):
        return True
    if decimals[1] is None:
        return False
    scaled = decimals[1]._replace(value=decimals[1].value * factor, last_place=decimals[1].last_place * factor)
    return agrees(scaled, wanted)
