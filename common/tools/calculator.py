"""Tool `calculator`: arithmetic on numbers. The text is parsed and walked over, never run.

Numbers are bounded, so no expression of the policy's takes long: an integer has at most `MAX_BITS` bits.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from vcppo.common.text.yaml_text import one_line
from vcppo.common.tools.tool import Tool, ToolError

MAX_EXPRESSION = 500
"""Characters."""
MAX_BITS = 2048
_MAX_ARGUMENTS = 50
_MAX_PLACES = 300  # Python takes ten to that power
Number = int | float

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
    }
)
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = MappingProxyType(
    {ast.UAdd: operator.pos, ast.USub: operator.neg}
)


def _rounded(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > _MAX_PLACES:
        raise ToolError(f"round takes up to {_MAX_PLACES} places")
    return round(value, digits)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{"abs": abs, "min": min, "max": max, "round": _rounded, "floor": math.floor, "ceil": math.ceil},
        **{"sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log10": math.log10, "log2": math.log2},
        **{"sin": math.sin, "cos": math.cos, "tan": math.tan, "asin": math.asin, "acos": math.acos},
        **{"atan": math.atan, "gcd": math.gcd},
    }
)
_CONSTANTS: Mapping[str, float] = MappingProxyType({"pi": math.pi, "e": math.e})
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**"})


class Calculator(Tool):
    """See the module's text."""

    name = "calculator"
    description = (
        "Works out an arithmetic expression with + - * / // % **, parentheses, pi, e and the functions "
        f"{', '.join(_FUNCTIONS)}."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "for example (17 + 4) * 3"}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    blocks = False

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The value of ``expression``."""
        return calculate(arguments["expression"])


def calculate(expression: str) -> str:
    """The value of an expression as text; a whole number to its last digit.

    Raises:
        ToolError: it has no value, is no arithmetic, or is too large.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ToolError(f"an expression of {len(expression):,} characters: at most {MAX_EXPRESSION}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's advice about somebody else's text
            tree = ast.parse(expression.translate(_SIGNS).strip(), mode="eval")
        return _shown(_value(tree.body))
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ToolError(f"{one_line(expression, 80)!r} is no arithmetic expression") from error
    except ZeroDivisionError as error:
        raise ToolError("division by zero") from error
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ToolError(f"it has no value: {one_line(error, 100)}") from error


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant):
        return _checked(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _checked(_UNARY[type(node.op)](_value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            _refuse_large_power(left, right)
        return _checked(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        if function is not None and len(node.args) <= _MAX_ARGUMENTS:
            return _checked(function(*(_value(argument) for argument in node.args)))
    raise ToolError("only numbers, + - * / // % **, parentheses and the functions of its description are allowed")


def _refuse_large_power(base: Number, exponent: Number) -> None:
    if not isinstance(base, int) or not isinstance(exponent, int) or abs(base) <= 1:
        return
    if base.bit_length() * abs(exponent) > 2 * MAX_BITS:
        raise ToolError(f"a power that is too large: a number has at most {MAX_BITS} bits")


def _checked(value: object) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ToolError(f"a {type(value).__name__} is no number here")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ToolError(f"a number that is too large: at most {MAX_BITS} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError("the value is not finite")
    return value


def _shown(value: Number) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return str(value) if isinstance(value, int) else f"{value:.15g}"
