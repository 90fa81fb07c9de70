"""Exact values of answers that are plain arithmetic, and the units behind a number.

Everything is a `Fraction`: integers are compared exactly at any size. A decimal stands for the digits it shows: it
agrees with another value only if all its digits do, and there are at least six (0.333333 is one third, 0.33 is not).
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import comb, factorial
from typing import NamedTuple

_MAX_BITS = 100_000
_MAX_DEPTH = 40
_MAX_LENGTH = 4000
_MAX_FACTORIAL = 3000
_MIN_DIGITS = 6
_MIN_SIGNIFICANT = 3

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4}(?![\d.]))?)|(?P<command>\\(?:frac|binom|cdot|times|div))(?![A-Za-z])"
    r"|(?P<sign>[-+/^!(){}\[\]]))"
)
_REPEATING = re.compile(
    r"(?P<sign>[-+]?)(?P<whole>\d*)\.(?P<once>\d*)"
    r"(?:\\overline\{(?P<again>\d+)\}|\\dot\{(?P<dot>\d)\}|\((?P<round>\d+)\)|\\bar\{(?P<bar>\d+)\})\Z"
)
_DECIMAL = re.compile(r"[-+]?(?:\d+\.(?P<after>\d+)|\.(?P<only>\d+))(?P<dots>\.\.\.)?\Z")
_SCIENTIFIC = re.compile(
    r"(?P<digits>[-+]?\d+\.\d+)\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{\s*(?P<power>[-+]?\d{1,4})\s*\}\Z"
)
_MIXED = re.compile(r"(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)\Z")


class Unreadable(Exception):
    """The text is no arithmetic, or arithmetic too large to do."""


class Literal(NamedTuple):
    """A decimal as it was written: how fine its last digit is, and how many significant digits it shows."""

    value: Fraction
    last_place: Fraction
    num_decimals: int
    num_significant: int


def exact_value(text: str) -> Fraction:
    r"""Value of numbers, + - * / ^ ! ``\frac`` ``\binom``, mixed numbers, repeating decimals. See `Unreadable`."""
    text = text.strip()
    if len(text) > _MAX_LENGTH:
        raise Unreadable(f"{len(text)} characters")
    if match := _REPEATING.match(text):
        return _repeating(match)
    if match := _MIXED.match(text):
        sign, whole, top, bottom = match.groups()
        if int(bottom) == 0:
            raise Unreadable("division by zero")
        value = int(whole) + Fraction(int(top), int(bottom))
        return -value if sign else value
    reader = _Reader(text)
    value = reader.sum(0)
    reader.end()
    return value


def literal(text: str) -> Literal | None:
    r"""`text` as a decimal with a fractional part: ``-0.50``, ``6.02\times10^{23}``, ``0.333...``. None: it is none."""
    text = text.strip()
    if len(text) > _MAX_LENGTH:
        return None
    scale = Fraction(1)
    if match := _SCIENTIFIC.match(text):
        text, scale = match["digits"], Fraction(10) ** int(match["power"])
    decimal = _DECIMAL.match(text)
    if decimal is None:
        return None
    after = decimal["after"] or decimal["only"]
    digits = text.removesuffix("...")
    significant = len(digits.lstrip("+-").replace(".", "").lstrip("0"))
    return Literal(Fraction(digits) * scale, scale / 10 ** len(after), len(after), significant)


def agrees(decimal: Literal, value: Fraction) -> bool:
    """Is `decimal` the value `value`, rounded or cut off, with at least six decimals or significant digits?"""
    if decimal.num_significant < _MIN_SIGNIFICANT or max(decimal.num_decimals, decimal.num_significant) < _MIN_DIGITS:
        return False
    is_cut_off = 0 <= abs(value) - abs(decimal.value) < decimal.last_place and (value < 0) == (decimal.value < 0)
    return is_cut_off or abs(decimal.value - value) <= decimal.last_place / 2


class Unit(NamedTuple):
    """What is measured, e.g. ``(("length", 2),)``, and one of it in the base unit."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction


# Singular names: dimension and size in the dimension's base unit.
_TABLE = """
length: mm millimeter millimetre 0.001; cm centimeter centimetre 0.01; dm decimeter 0.1; m meter metre 1
length: km kilometer kilometre 1000; in inch inche 0.0254; ft foot feet 0.3048; yd yard 0.9144; mi mile 1609.344
time: ms millisecond 0.001; s sec second 1; min minute 60; h hr hour 3600; day 86400; wk week 604800
month: month 1; yr year 12; decade 120; century 1200
mass: mg milligram 0.001; g gm gram 1; kg kilogram 1000; oz ounce 28.349523125; lb pound 453.59237
volume: ml milliliter millilitre 0.001; l liter litre 1; gal gallon 3.785411784; qt quart 0.946352946
volume: pint 0.473176473; cup 0.2365882365
angle: degree deg 1
radian: rad radian 1
dollar: dollar usd buck 1; cent 0.01
euro: eur euro 1
sterling: gbp 1
yen: jpy yen 1
rupee: rupee 1; paise 0.01
power: w watt 1; kw kilowatt 1000
voltage: v volt 1
energy: j joule 1; kj kilojoule 1000
force: n newton 1
frequency: hz hertz 1; khz 1000; mhz 1000000
"""
_UNITS = {
    name: (line.partition(":")[0], Fraction(member.split()[-1]))
    for line in _TABLE.strip().splitlines()
    for member in line.partition(":")[2].split(";")
    for name in member.split()[:-1]
}
_ABBREVIATIONS = {
    "mph": "mile per hour",
    "kmh": "km per hour",
    "kmph": "km per hour",
    "kph": "km per hour",
    "fps": "foot per second",
}
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}


def unit_of(text: str) -> Unit | None:
    """The unit that `text` names (``square miles``, ``km/h``, ``cm^{2}``); None: none that can be compared."""
    words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).replace("\\", " ").lower()
    words = re.sub(r"\^\s*\{?([23])\}?", lambda m: " squared " if m[1] == "2" else " cubed ", words)
    words = re.sub(r"/|\ban?\b(?=\s+\w)", " per ", words).replace(".", "")
    for short, long in _ABBREVIATIONS.items():
        words = re.sub(rf"\b{short}\b", long, words)
    dimensions: dict[str, int] = {}
    factor, direction, power = Fraction(1), 1, 1
    last: tuple[str, Fraction] | None = None
    for word in words.split():
        known = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
        if word == "per":
            direction = -1
        elif word in ("square", "sq", "cubic", "cu"):
            power = _POWERS[word]
        elif word in _POWERS and last is not None:  # squared, cubed: one power is counted already
            dimensions[last[0]] += direction * (_POWERS[word] - 1)
            factor *= last[1] ** (direction * (_POWERS[word] - 1))
        elif known is not None:
            last = known
            dimensions[last[0]] = dimensions.get(last[0], 0) + direction * power
            factor *= last[1] ** (direction * power)
            power = 1
        else:
            return None
    return Unit(tuple(sorted(dimensions.items())), factor) if dimensions else None


def _repeating(match: re.Match[str]) -> Fraction:
    once, again = match["once"], match["again"] or match["dot"] or match["round"] or match["bar"]
    base = Fraction(int((match["whole"] or "0") + once), 10 ** len(once))
    value = base + Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(once))
    return -value if match["sign"] == "-" else value


class _Reader:
    """Recursive descent over one text. Bounded in depth and in the size of what it computes."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if text[at:].strip():
                    raise Unreadable(f"{text[at : at + 10]!r}")
                break
            self._tokens.append(match[0].strip())
            at = match.end()
        self._at = 0

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise Unreadable(self._tokens[self._at])

    def sum(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        value = self._product(depth)
        while self._peek() in ("+", "-"):
            sign = 1 if self._next() == "+" else -1
            value = _bounded(value + sign * self._product(depth))
        return value

    def _product(self, depth: int) -> Fraction:
        value = self._factor(depth)
        while (token := self._peek()) in ("\\cdot", "\\times", "\\div", "/", "(", "\\frac", "\\binom"):
            if token in ("\\cdot", "\\times", "\\div", "/"):
                self._next()
            other = self._factor(depth)
            if token in ("\\div", "/"):
                if other == 0:
                    raise Unreadable("division by zero")
                value = _bounded(value / other)
            else:
                value = _bounded(value * other)
        return value

    def _factor(self, depth: int) -> Fraction:
        if depth > _MAX_DEPTH:
            raise Unreadable("nested too deeply")
        if self._peek() in ("-", "+"):
            sign = -1 if self._next() == "-" else 1
            return sign * self._factor(depth + 1)
        start = self._peek()
        value = self._atom(depth)
        if start.isdecimal() and self._peek() == "\\frac":  # a mixed number
            part = self._atom(depth)
            return value + part
        while self._peek() == "!":
            self._next()
            if value.denominator != 1 or not 0 <= value <= _MAX_FACTORIAL:
                raise Unreadable("factorial")
            value = Fraction(factorial(int(value)))
        if self._peek() == "^":
            self._next()
            value = _power(value, self._factor(depth + 1))
        return value

    def _atom(self, depth: int) -> Fraction:
        token = self._next()
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token)
        if token == "\\frac":
            top, bottom = self._group(depth), self._group(depth)
            if bottom == 0:
                raise Unreadable("division by zero")
            return top / bottom
        if token == "\\binom":
            n, k = self._group(depth), self._group(depth)
            if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= _MAX_FACTORIAL:
                raise Unreadable("binomial")
            return Fraction(comb(int(n), int(k)))
        closing = {"(": ")", "{": "}", "[": "]"}.get(token)
        if closing is None:
            raise Unreadable(token)
        value = self.sum(depth + 1)
        if self._next() != closing:
            raise Unreadable("bracket")
        return value

    def _group(self, depth: int) -> Fraction:
        if self._peek() != "{":
            raise Unreadable("no brace")
        return self._atom(depth + 1)

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise Unreadable("ends early")
        self._at += 1
        return self._tokens[self._at - 1]


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        raise Unreadable("power")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) > _MAX_BITS or bits * abs(exponent) > _MAX_BITS:
        raise Unreadable("a power too large")
    return base ** int(exponent)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise Unreadable("too large")
    return value
