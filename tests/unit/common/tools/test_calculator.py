"""The calculator: right values, and no text of the policy's takes long, grows large or does anything else."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.tools.calculator import MAX_BITS, MAX_EXPRESSION, calculate
from vcppo.common.tools.tool import ToolError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("473*829", "392117"),
        ("2 + 3 * 4", "14"),
        ("(2 + 3) × 4", "20"),
        ("7 / 2", "3.5"),
        ("6 / 2", "3"),
        ("-7 // 2", "-4"),
        ("2^10", "1024"),
        ("2**-1", "0.5"),
        ("1**100000", "1"),
        ("sqrt(2)", "1.4142135623731"),
        ("round(2.567, 1)", "2.6"),
        ("max(1, 2, 3) - min(4, 5)", "-1"),
        ("sin(pi / 2)", "1"),
        ("0.1 + 0.2", "0.3"),
        ("10**30", "1" + "0" * 30),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert math.isclose(float(calculate(expression)), float(value), rel_tol=1e-12)
    if "." not in value:
        assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "no arithmetic expression"),
        ("2 +", "no arithmetic expression"),
        ("(" * 300, "no arithmetic expression"),
        ("1\0", "no value|no arithmetic"),
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("9" * 400 + "*1", None),
        ("9**9**9", "too large"),
        ("2**99999999999", "too large"),
        ("10.0**400", "no value|not finite"),
        ("1e308 * 10", "not finite"),
        ("(-8) ** 0.5", "no number"),
        ("sqrt(-1)", "no value"),
        ("'a' * 3", "no number"),
        ("True", "no number"),
        ("x", "only numbers"),
        ("__import__('os').system('true')", "only numbers"),
        ("().__class__", "only numbers"),
        ("[1, 2]", "only numbers"),
        ("max(*[1])", "only numbers"),
        ("round(1, ndigits=2)", "only numbers"),
        ("(lambda: 1)()", "only numbers"),
        ("1 < 2", "only numbers"),
        ("1" * (MAX_EXPRESSION + 1), "characters"),
        ("round(1.5, 10**300)", "places"),
        ("round(15, -10**9)", "places"),
        ("round(1.5, 0.5)", "places"),
        ("max()", "no value"),
    ],
)
def test_what_has_no_value_is_told(expression: str, said: str | None) -> None:
    if said is None:
        assert calculate(expression) == "9" * 400
        return
    with pytest.raises(ToolError, match=said):
        calculate(expression)


SYMBOLS = [
    "9",
    "99999",
    "1e300",
    "**",
    "^",
    "*",
    "/",
    "//",
    "%",
    "-",
    "(",
    ")",
    ",",
    "round",
    "exp",
    "gcd",
    "floor",
    "e",
    ".",
]


@given(st.lists(st.one_of(st.sampled_from(SYMBOLS), st.text(max_size=2)), max_size=20).map("".join))
def test_whatever_the_text_it_ends_soon_with_a_short_answer(expression: str) -> None:
    began = time.process_time()
    try:
        said = calculate(expression)
    except ToolError as error:
        said = str(error)
    assert 0 < len(said) <= MAX_BITS
    assert time.process_time() - began < 5
