r"""How an answer is put together: lists, tuples, sets, intervals, matrices, relations.

Works on text in normal form (`text.normal_form`). Splitting looks at the top level only, so parts are answers again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_OPEN_CLOSE = re.compile(
    r"\\\{|\\\}|\\langle(?![A-Za-z])|\\rangle(?![A-Za-z])|\\begin\{\w+\}|\\end\{\w+\}|\\[A-Za-z]+|\\.|[()\[\]{}]"
)
_OPENING = ("(", "[", "{", r"\{", r"\langle")
_CLOSING = (")", "]", "}", r"\}", r"\rangle")
_JOINED = re.compile(
    r",?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|vee|land|wedge)(?![A-Za-z]))\s*,?"
)
_MATRIX = re.compile(
    r"\s*[(\[]?\s*\\begin\{(?P<kind>[pbBv]?matrix|array)\}(?P<body>.*)\\end\{(?P=kind)\}\s*[)\]]?\s*\Z", re.DOTALL
)
_RELATION = re.compile(
    r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|\\approx(?![A-Za-z])|\\in(?![A-Za-z])|(?<![<>!])=|[<>]"
)
_NAME = re.compile(
    r"\s*(?:\\text\{[^{}]*\}"
    r"|\\(?:angle|triangle|overline|alpha|beta|gamma|delta|theta|phi|lambda|mu|sigma|omega|ell)\b"
    r"|\\frac\{d[A-Za-z]*\}\{d[A-Za-z]+\}"
    r"|[A-Za-z]\w?|\\?[A-Za-z]{1,3}(?=\())"
    r"(?:[\s{}A-Za-z_'0-9]|\\text\{[^{}]*\}|\([A-Za-z0-9, ]*\))*\Z"
)
NUM_SIDES = 2


class Group(NamedTuple):
    """Parts and what is around them.

    Attributes:
        kind: ``list`` (no brackets), ``(``, ``[``, ``{`` (a set) or ``<``.
        closing: ``)``, ``]``, ``}``, ``>``; empty for a list.
    """

    kind: str
    closing: str
    parts: tuple[str, ...]


class Matrix(NamedTuple):
    """Rows of entries."""

    rows: tuple[tuple[str, ...], ...]


class Relation(NamedTuple):
    """``sides[0] operators[0] sides[1] …``."""

    sides: tuple[str, ...]
    operators: tuple[str, ...]


def split_top(text: str, separators: str) -> list[str]:
    """Parts between separators (single characters) that stand outside all brackets."""
    cuts = [at for at, depth in _depths(text) if depth == 0 and text[at] in separators]
    parts, start = [], 0
    for cut in cuts:
        parts.append(text[start:cut].strip())
        start = cut + 1
    return [*parts, text[start:].strip()]


def group_of(text: str) -> Group | None:
    """The text as several parts, or as brackets around parts; None: it is one thing without brackets."""
    text = text.strip()
    joined = _replace_top(text, _JOINED, ",")
    parts = [part for part in split_top(joined, ",;") if part]
    if len(parts) > 1:
        return Group("list", "", tuple(parts))
    opening, inside, closing = _brackets(text)
    if not opening:
        return None
    if opening == "{" and re.search(r"(?<!\\)[|:]", inside):
        return None  # a set by its property
    inner = _replace_top(inside, _JOINED, ",") if opening == "{" else inside
    return Group(opening, closing, tuple(part for part in split_top(inner, ",;") if part))


def union_of(text: str) -> list[str]:
    """Parts of a union (or what a chain of "or" between brackets means)."""
    return [part.strip() for part in _split_command(text, r"\cup")]


def matrix_of(text: str) -> Matrix | None:
    r"""Entries of a ``matrix``, ``pmatrix``, ``bmatrix`` or ``array``; None if the text is none."""
    match = _MATRIX.match(text)
    if match is None or match["kind"] == "vmatrix" or "\\begin" in match["body"]:
        return None
    body = re.sub(r"\A\s*\{[lcr| ]*\}", "", match["body"]) if match["kind"] == "array" else match["body"]
    rows = [row.strip() for row in re.split(r"\\\\(?:\[[^\]]*\])?", body)]
    return Matrix(tuple(tuple(entry.strip() for entry in row.split("&")) for row in rows if row))


def relation_of(text: str) -> Relation | None:
    """Sides and operators of a chain; None if there is no operator at the top level."""
    depth_at = dict(_depths(text))
    found = [match for match in _RELATION.finditer(text) if depth_at.get(match.start(), 1) == 0]
    if not found:
        return None
    edges = [0, *(edge for match in found for edge in match.span()), len(text)]
    sides = tuple(text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 2))
    return Relation(sides, tuple(match[0] for match in found))


def is_name(text: str) -> bool:
    """Is it a name for something: ``x``, ``f(x)``, ``AB``, ``a_{1}``, ``\\angle ABC``, ``\\text{Area}``?"""
    return bool(text) and len(text) <= 60 and _NAME.match(text) is not None


def plus_minus(text: str) -> list[str]:
    r"""Both values of a text with one kind of ``\pm``; the text alone if it has none."""
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return [text]
    upper = re.sub(r"\\pm(?![A-Za-z])", "+", re.sub(r"\\mp(?![A-Za-z])", "-", text))
    lower = re.sub(r"\\pm(?![A-Za-z])", "-", re.sub(r"\\mp(?![A-Za-z])", "+", text))
    return [upper, lower]


def as_interval(relation: Relation) -> str | None:
    r"""``a < x \le b`` as ``(a,b]``, ``x > a`` as ``(a,\infty)``, ``x \ne a`` as two; None: it is no bound."""
    bounds = {"<": (")", "("), r"\le": ("]", "["), ">": ("(", ")"), r"\ge": ("[", "]")}
    sides, operators = relation.sides, relation.operators
    if operators == (r"\ne",) and is_name(sides[0]):
        return rf"(-\infty,{sides[1]})\cup({sides[1]},\infty)"
    if any(operator not in bounds for operator in operators):
        return None
    if len(sides) == NUM_SIDES:
        left, right = sides
        if is_name(left):
            less = operators[0] in ("<", r"\le")
            bracket = bounds[operators[0]][0]
            return rf"(-\infty,{right}{bracket}" if less else rf"{bracket}{right},\infty)"
        if is_name(right):
            flipped = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}[operators[0]]
            return as_interval(Relation((right, left), (flipped,)))
        return None
    if len(sides) == NUM_SIDES + 1 and is_name(sides[1]):
        first, second = operators
        if {first, second} <= {"<", r"\le"}:
            return f"{bounds[first][1]}{sides[0]},{sides[2]}{bounds[second][0]}"
        if {first, second} <= {">", r"\ge"}:
            return f"{bounds[second][0]}{sides[2]},{sides[0]}{bounds[first][1]}"
    return None


def _brackets(text: str) -> tuple[str, str, str]:
    """Opening bracket, content, closing bracket if one pair is around all of the text; else empty."""
    shapes = {"(": "(", "[": "[", r"\{": "{", r"\langle": "<"}
    ends = {")": ")", "]": "]", r"\}": "}", r"\rangle": ">"}
    opening = next((each for each in shapes if text.startswith(each)), None)
    closing = next((each for each in ends if text.endswith(each)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return "", text, ""
    depth, last = 0, len(text) - len(closing)
    for match in _OPEN_CLOSE.finditer(text):
        depth += (match[0] in _OPENING) - (match[0] in _CLOSING)
        if depth == 0 and match.start() < last:
            return "", text, ""
    if depth != 0:
        return "", text, ""
    kind, end = shapes[opening], ends[closing]
    if (kind == "{") != (end == "}") or (kind == "<") != (end == ">"):
        return "", text, ""
    return kind, text[len(opening) : last].strip(), end


def _depths(text: str) -> Iterator[tuple[int, int]]:
    """Each character's place and how many brackets are open there. Characters of commands are not given."""
    depth, at = 0, 0
    for match in _OPEN_CLOSE.finditer(text):
        yield from ((place, depth) for place in range(at, match.start()))
        token = match[0]
        if token in _OPENING or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith("\\end"):
            depth = max(0, depth - 1)
        else:
            yield match.start(), depth
        at = match.end()
    yield from ((place, depth) for place in range(at, len(text)))


def _replace_top(text: str, pattern: re.Pattern[str], replacement: str) -> str:
    depth_at = dict(_depths(text))
    return pattern.sub(lambda match: replacement if depth_at.get(match.start(), 1) == 0 else match[0], text)


def _split_command(text: str, command: str) -> list[str]:
    depth_at = dict(_depths(text))
    pattern = re.compile(re.escape(command) + r"(?![A-Za-z])")
    parts, start = [], 0
    for match in pattern.finditer(text):
        if depth_at.get(match.start(), 1) == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]
