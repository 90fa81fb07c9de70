"""Are two answers the same? Both in normal form; the first is the reference.

Text goes first (`text.key`), then exact arithmetic (`values`), structure (`structure`), and values of
expressions last (`symbols`). What none of them can read is the same only if the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction

from vcppo.common.tasks.maths import symbols
from vcppo.common.tasks.maths.scalars import is_arithmetic, same_scalars
from vcppo.common.tasks.maths.structure import (
    NUM_SIDES,
    Group,
    Matrix,
    Relation,
    as_interval,
    group_of,
    is_name,
    matrix_of,
    plus_minus,
    relation_of,
    union_of,
)
from vcppo.common.tasks.maths.text import key

_MAX_NESTING = 6
_MAX_PARTS = 200
_MAX_STRUCTURED = 4000
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]|\.\d*,)")
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)\Z")
_HEDGE = re.compile(
    r"^(?:\\text\{\s*)?(?:about|approximately|around|roughly|exactly|only|\\approx|~)(?![A-Za-z])\s*\}?\s*",
    re.IGNORECASE,
)
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*(?:\\text\{\s*)?([ap])\.?\s*m\.?\s*\}?\Z", re.IGNORECASE)
_CHOICE = re.compile(r"(?:\\text\{\s*)?\(?\s*(?:\\text\{\s*)?\(?\s*([A-Ja-j])\s*\)?\s*\}?\s*\)?\s*\}?\Z")


def same_answer(reference: str, given: str, nesting: int = 0) -> bool:
    """Would a person take `given` for the answer `reference`?"""
    if key(reference) == key(given):
        return bool(key(reference))
    if nesting > _MAX_NESTING or max(len(reference), len(given)) > _MAX_STRUCTURED:
        return False
    return any(_same(a, b, nesting) for a in _readings(reference) for b in _readings(given, reference))


def _readings(text: str, reference: str | None = None) -> Iterator[str]:
    """1,234 is a number, (3,125) a point: both are tried. 3,14 is a decimal where the reference has a point."""
    text = _HEDGE.sub("", text)
    without = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    yield without
    if without != text:
        yield text
    if reference is not None and (match := _DECIMAL_COMMA.match(text)) and re.fullmatch(r"-?\d*\.\d+", reference):
        yield f"{match[1]}.{match[2]}"


def _same(reference: str, given: str, nesting: int) -> bool:
    choice = _CHOICE.match(reference)
    if choice and (other := _CHOICE.match(given)):
        return choice[1].lower() == other[1].lower()
    if (time := _time(reference)) is not None or _time(given) is not None:
        return time == _time(given)
    wanted_pair, given_pair = plus_minus(reference), plus_minus(given)
    if len(wanted_pair) > 1 or len(given_pair) > 1:
        return _same_pairs(wanted_pair, given_pair, nesting)
    verdict = _same_relations(reference, given, nesting)
    if verdict is not None:
        return verdict
    verdict = _same_structures(reference, given, nesting)
    if verdict is not None:
        return verdict
    return same_scalars(reference, given)


def _same_pairs(reference: list[str], given: list[str], nesting: int) -> bool:
    wanted = reference if len(reference) > 1 else _parts(reference[0])
    said = given if len(given) > 1 else _parts(given[0])
    # In "x = 1 ± √2" the name stands in front of both values.
    return _match(_without_names(wanted), _without_names(said), nesting, ordered=False)


def _parts(text: str) -> Sequence[str]:
    group = group_of(_after_name(text))
    return group.parts if group is not None and group.kind in ("list", "{") else [text]


def _without_names(parts: Sequence[str]) -> list[str]:
    return [_after_name(part) for part in parts]


def _after_name(text: str) -> str:
    r"""``5`` of ``x = 5``, ``[1,2]`` of ``x \in [1,2]``."""
    relation = relation_of(text)
    if relation is None or any(operator not in ("=", r"\approx", r"\in") for operator in relation.operators):
        return text
    return relation.sides[-1] if is_name(relation.sides[0]) and len(relation.sides) == NUM_SIDES else text


# --- relations ---------------------------------------------------------------------------------------------------


def _same_relations(reference: str, given: str, nesting: int) -> bool | None:
    """None: neither is a relation, so something else decides."""
    wanted, said = _one_relation(reference), _one_relation(given)
    if wanted is None and said is None:
        return None
    if wanted is not None and said is not None:
        return _both_relations(wanted, said, nesting)
    if wanted is not None:
        bare = _stripped(wanted)
        if bare is None:
            interval = as_interval(wanted)
            return interval is not None and same_answer(interval, given, nesting + 1)
        return same_answer(bare, given, nesting + 1)
    assert said is not None
    interval = as_interval(said)
    if interval is not None:
        return same_answer(reference, interval, nesting + 1)
    if all(operator in ("=", r"\approx", r"\in") for operator in said.operators):
        exact = said.sides[: said.operators.index(r"\approx") + 1] if r"\approx" in said.operators else said.sides
        if is_name(said.sides[0]) and len(exact) == 1:
            exact = said.sides[:NUM_SIDES]
        return same_answer(reference, exact[-1], nesting + 1)
    return False


def _one_relation(text: str) -> Relation | None:
    """Of a text that is one relation; "x = 1, y = 2" is a list of them."""
    group = group_of(text)
    return None if group is not None else relation_of(text)


def _stripped(relation: Relation) -> str | None:
    """What a reference such as ``x = 5`` or ``A = \\frac{1}{2}bh = 6`` asks for; None: the relation itself."""
    if is_name(relation.sides[0]) and all(operator in ("=", r"\in", r"\approx") for operator in relation.operators):
        return relation.sides[-1]
    return None


def _both_relations(wanted: Relation, said: Relation, nesting: int) -> bool:
    bare, given_bare = _stripped(wanted), _stripped(said)
    if bare is not None and given_bare is not None and key(wanted.sides[0]) == key(said.sides[0]):
        return same_answer(bare, given_bare, nesting + 1)
    interval, given_interval = as_interval(wanted), as_interval(said)
    if interval is not None and given_interval is not None:
        names = [next(side for side in each.sides if is_name(side)) for each in (wanted, said)]
        return key(names[0]) == key(names[1]) and same_answer(interval, given_interval, nesting + 1)
    return _proportional(wanted, said)


def _proportional(wanted: Relation, said: Relation) -> bool:
    """``2x + 4y = 6`` is ``x + 2y = 3``: the difference of the sides is a constant times the other's."""
    if len(wanted.sides) != NUM_SIDES or len(said.sides) != NUM_SIDES:
        return False
    flip = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    operator, other = wanted.operators[0], said.operators[0]
    if other != operator and other != flip.get(operator):
        return False
    found = symbols.values([f"({relation.sides[0]})-({relation.sides[1]})" for relation in (wanted, said)])
    if found is None or len(found[0]) < NUM_SIDES:
        return False
    pairs = [(f, g) for (f, f_im), (g, g_im) in zip(*found, strict=True) if f_im == 0 == g_im]
    if len(pairs) < NUM_SIDES or any((f == 0) != (g == 0) for f, g in pairs) or not any(f for f, _ in pairs):
        return False
    f0, g0 = next((f, g) for f, g in pairs if f)
    if not all(symbols.is_same_number((f * g0, Fraction(0)), (g * f0, Fraction(0))) for f, g in pairs):
        return False
    if operator in ("=", r"\ne"):
        return True
    return bool(f0 / g0 > 0) == (operator == other)


# --- lists, tuples, sets, intervals, matrices --------------------------------------------------------------------


def _same_structures(reference: str, given: str, nesting: int) -> bool | None:
    """None: neither has parts, so values decide."""
    matrix, given_matrix = matrix_of(reference), matrix_of(given)
    if matrix is not None or given_matrix is not None:
        return _same_matrices(matrix or group_of(reference), given_matrix or group_of(given), nesting)
    unions = union_of(reference), union_of(given)
    if len(unions[0]) > 1 or len(unions[1]) > 1:
        return _match(_set_parts(reference), _set_parts(given), nesting, ordered=False)
    wanted, said = group_of(reference), group_of(given)
    if wanted is None and said is None:
        return None
    if wanted is not None and len(wanted.parts) == 1 and wanted.kind != "list":
        return same_answer(wanted.parts[0], given, nesting + 1)
    if said is not None and len(said.parts) == 1 and said.kind != "list":
        return same_answer(reference, said.parts[0], nesting + 1)
    if wanted is None or said is None:
        # A number with a note behind a comma is one answer; anything else with parts is not.
        return None if wanted is None and said is not None and is_arithmetic(given) else False
    return _same_groups(wanted, said, nesting)


def _set_parts(text: str) -> list[str]:
    """Parts of a union, or of a list of intervals or inequalities ("x < 1 or x > 2")."""
    parts = union_of(text)
    if len(parts) == 1 and (group := group_of(text)) is not None and group.kind == "list":
        parts = list(group.parts)
    found = []
    for part in parts:
        relation = relation_of(part)
        interval = as_interval(relation) if relation is not None else None
        found.append(interval or _after_name(part))
    return found


def _same_groups(wanted: Group, said: Group, nesting: int) -> bool:
    if wanted.kind == said.kind and wanted.closing == said.closing:
        ordered = wanted.kind not in ("list", "{")
    elif wanted.kind == "list":
        ordered = said.kind != "{"
    elif said.kind == "list":
        if wanted.kind in "([" and wanted.kind + wanted.closing != "()" and len(wanted.parts) == NUM_SIDES:
            return False  # an interval needs its brackets
        ordered = wanted.kind != "{"
    elif {wanted.kind, said.kind} == {"(", "<"}:
        ordered = True
    else:
        return False
    wanted_parts, said_parts = wanted.parts, said.parts
    if any(_has_relation(part) for part in wanted_parts) != any(_has_relation(part) for part in said_parts):
        wanted_parts, said_parts = tuple(_without_names(wanted_parts)), tuple(_without_names(said_parts))
        ordered = (
            ordered or len({key(name) for name in _names(wanted)}) > 1 or len({key(name) for name in _names(said)}) > 1
        )
    return _match(wanted_parts, said_parts, nesting, ordered=ordered)


def _has_relation(part: str) -> bool:
    return relation_of(part) is not None


def _names(group: Group) -> list[str]:
    relations = [relation_of(part) for part in group.parts]
    return [relation.sides[0] for relation in relations if relation is not None]


def _same_matrices(wanted: Matrix | Group | None, said: Matrix | Group | None, nesting: int) -> bool:
    rows = [_rows(each) for each in (wanted, said)]
    if rows[0] is None or rows[1] is None or [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return False
    pairs = [(a, b) for left, right in zip(rows[0], rows[1], strict=True) for a, b in zip(left, right, strict=True)]
    return len(pairs) <= _MAX_PARTS and all(same_answer(a, b, nesting + 1) for a, b in pairs)


def _rows(value: Matrix | Group | None) -> Sequence[Sequence[str]] | None:
    """Rows of a matrix; a tuple is a column."""
    if isinstance(value, Matrix):
        is_row = len(value.rows) == 1
        return [[entry] for entry in value.rows[0]] if is_row else value.rows
    if value is None or value.kind not in ("(", "<", "["):
        return None
    inner = [group_of(part) for part in value.parts]
    if all(each is not None and each.kind == "[" for each in inner):
        return [each.parts for each in inner if each is not None]
    return [[part] for part in value.parts]


def _match(wanted: Sequence[str], said: Sequence[str], nesting: int, *, ordered: bool) -> bool:
    """Each part has a partner of its own."""
    if len(wanted) != len(said) or len(wanted) > _MAX_PARTS:
        return False
    if ordered:
        return all(same_answer(a, b, nesting + 1) for a, b in zip(wanted, said, strict=True))
    left = list(said)
    for part in wanted:
        partner = next((at for at, other in enumerate(left) if same_answer(part, other, nesting + 1)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def _time(text: str) -> tuple[int, int, str] | None:
    """Hour, minute and half of the day of ``3:30 p.m.``."""
    match = _TIME.match(text)
    return None if match is None else (int(match[1]), int(match[2] or 0), match[3].lower())
