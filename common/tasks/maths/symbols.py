"""Values of expressions with roots, constants and variables: math-verify reads them, numbers decide.

Two expressions are equal if they are at every one of a few points, to 50 digits. That needs no simplification, which is
what takes for ever in computer algebra; what can't be read or evaluated in bounded time is not looked at (`is_tame`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

_MAX_LENGTH = 400
_MAX_DEPTH = 9
_MAX_EXPONENT = 1000
_DIGITS = 50
_WORKING_DIGITS = 80
_MAX_BITS = 20_000
_TINY = Fraction(1, 10**40)
_LEAST = Fraction(1, 10**5)
_MIN_POINTS = 3
# Values for the variables in order of their names. No relation between them; both signs, as |x| and x differ in one.
_POINTS = [
    [Fraction(n, d) for n, d in row]
    for row in (
        ((173, 97), (311, 113), (83, 59), (457, 211), (137, 89), (101, 71)),
        ((-191, 103), (229, 79), (-67, 61), (353, 191), (-149, 83), (107, 73)),
        ((41, 157), (-53, 131), (29, 127), (-37, 181), (43, 139), (-31, 151)),
        ((-59, 167), (-47, 149), (-71, 173), (-61, 193), (-73, 179), (-79, 197)),
        ((293, 31), (263, 37), (307, 41), (271, 43), (283, 47), (331, 53)),
    )
]
_UNTAME = re.compile(
    r"\\(?:sum|prod|int|iint|lim|limsup|liminf|bigcup|bigcap|begin)(?![A-Za-z])|!!|\d{4,}\s*!|[)}\]]\s*!|:"
)
_POWER_OF_POWER = re.compile(r"\^\s*\{[^{}]*\d\s*\^|\^\s*\{[^{}]*!|\^\s*\{[^{}]*\^\s*\{[^{}]*\^")
_LARGE_COUNT = re.compile(r"\\binom|!")
_EXPONENT = re.compile(r"\^\s*\{?\s*[-+(]*\s*(\d+)")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min", "gcd", "lcm", "mod", "det")
)
_FUNCTIONS |= {"arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "deg", "arg"}


def is_tame(text: str) -> bool:
    """Can it be read and evaluated in bounded time? No towers of powers, no large factorials, no endless sums."""
    if len(text) > _MAX_LENGTH or _UNTAME.search(text) or _POWER_OF_POWER.search(text):
        return False
    if _LARGE_COUNT.search(text) and re.search(r"\d{5}", text):
        return False
    if any(len(digits) > 4 or int(digits) > _MAX_EXPONENT for digits in _EXPONENT.findall(text)):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "({[") - (character in ")}]")
        deepest = max(deepest, depth)
    return deepest <= _MAX_DEPTH


def is_prose(text: str) -> bool:
    """Does it have words that are no functions? Letters would be read as a product, in which order does not count."""
    if re.fullmatch(r"[A-Z]{3,}", text):
        return True  # points or letters in an order
    inside = re.findall(r"\\text\{([^{}]*)\}", text)
    outside = re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = [word for part in inside for word in re.findall(r"[A-Za-z]{2,}", part)]
    words += [word for word in _WORD.findall(outside) if not word.isupper()]
    return any(word.lower() not in _FUNCTIONS for word in words)


def values(texts: Sequence[str]) -> list[list[tuple[Fraction, Fraction]]] | None:
    """Real and imaginary part of each text at the same points; None if one of them can't be read or evaluated.

    Points where any of them has no value are left out; without variables there is one point.
    """
    if not all(is_tame(text) and not is_prose(text) for text in texts):
        return None
    parsed = [_parse(text) for text in texts]
    if any(each is None for each in parsed):
        return None
    names = sorted({symbol.name for each in parsed for symbol in each.free_symbols} - {"i"})
    if len(names) > len(_POINTS[0]):
        return None
    found: list[list[tuple[Fraction, Fraction]]] = [[] for _ in texts]
    for point in _POINTS if names else _POINTS[:1]:
        at_point = [_evaluate(each, dict(zip(names, point, strict=False))) for each in parsed]
        if all(value is not None for value in at_point):
            for row, value in zip(found, at_point, strict=True):
                row.append(value)  # type: ignore[arg-type]
    return found if len(found[0]) >= (_MIN_POINTS if names else 1) else None


def is_same_number(a: tuple[Fraction, Fraction], b: tuple[Fraction, Fraction]) -> bool:
    """Equal to 40 digits, real and imaginary part alike. What cancels out leaves less than 1e-45 of 80 digits."""
    size = max(*(abs(part) for part in (*a, *b)), _LEAST)
    return all(abs(x - y) <= size * _TINY for x, y in zip(a, b, strict=True))


@lru_cache(maxsize=256)
def _parse(text: str) -> Any:
    """A SymPy expression, or None. Every option of math-verify is set here: its defaults decide rewards."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse
    from sympy import Expr

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # without its own time-outs it warns in every child
    reading = LatexExtractionConfig(
        try_extract_without_anchor=True,
        boxed_match_priority=-1,  # boxes are found by maths.text.boxes; theirs joins neighbours
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=False,  # theirs takes the t of 5t for a unit
            malformed_operators=True,
            nits=False,
            boxed="none",
            equations=False,
        ),
    )
    plain = re.sub(r"\\text\{\s*([A-Za-z])\s*\}", r"\1", text)
    found = parse(
        f"${plain}$",
        extraction_config=[reading],  # no bare numbers out of the middle of what could not be read
        fallback_mode="no_fallback",  # no strings
        extraction_mode="first_match",
        parsing_timeout=None,  # theirs is an alarm; the verifier's process is killed at its deadline
        raise_on_error=False,
    )
    return found[0] if found and isinstance(found[0], Expr) else None


def _evaluate(expression: Any, point: dict[str, Fraction]) -> tuple[Fraction, Fraction] | None:
    from sympy import Float, I

    # Floats, not rationals: (1 + x)^4096 of a rational takes a thousand digits.
    at = {
        symbol: I
        if symbol.name == "i"
        else Float(point[symbol.name].numerator, _WORKING_DIGITS) / point[symbol.name].denominator
        for symbol in expression.free_symbols
    }
    try:
        real, imaginary = (
            _fraction(Float(part, _DIGITS)) for part in expression.subs(at).evalf(_DIGITS).as_real_imag()
        )
    except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError, RecursionError):
        return None  # no value there: infinite, undefined, or nothing that SymPy can evaluate
    return None if real is None or imaginary is None else (real, imaginary)


def _fraction(value: Any) -> Fraction | None:
    """Of a SymPy Float; None: infinite, or of too many digits to write out."""
    sign, mantissa, exponent, num_bits = value._mpf_
    if abs(exponent) + num_bits > _MAX_BITS or (not mantissa and exponent):
        return None
    found: Fraction = (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent
    return found
