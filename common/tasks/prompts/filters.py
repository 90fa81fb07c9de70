"""Which rows are used: by the value of a column, and by a function of the user's. What is left out is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.prompts.columns import value_of
from vcppo.common.tasks.rows import Row
from vcppo.common.tasks.user_functions import user_function
from vcppo.common.text.yaml_text import one_line

_BOUNDS = {"min", "max"}


class RowFilters:
    """``task.options.keep_where`` and ``keep``; a row has to pass all of them.

    Attributes:
        left_out: how many rows each filter left out, by its name in the options; a row counts for the first of them.

    Raises:
        TaskError: a filter that nothing can pass, or none.
    """

    def __init__(self, keep_where: Mapping[str, object], keep: str | None) -> None:
        self.left_out: Counter[str] = Counter()
        self._columns = {column: _test(column, wanted) for column, wanted in keep_where.items()}
        self._keep = None if keep is None else user_function(keep, "task.options.keep")
        self._keep_name = keep

    def keeps(self, row: Row) -> bool:
        """Whether the row is asked; else it is counted.

        Raises:
            TaskError: no such column, a value that can't be compared, or the user's function failed.
        """
        for column, fits in self._columns.items():
            if not fits(value_of(row, column, "keep_where"), row.place):
                self.left_out[f"keep_where.{column}"] += 1
                return False
        if self._keep is not None and not self._kept(row):
            self.left_out[f"keep {self._keep_name}"] += 1
            return False
        return True

    def _kept(self, row: Row) -> bool:
        assert self._keep is not None
        try:
            found = self._keep(dict(row.values))
        except Exception as error:
            said = one_line(f"{type(error).__name__}: {error}", 120)
            raise TaskError(f"{row.place}: task.options.keep = {self._keep_name!r} raised {said}: mend it") from error
        if not isinstance(found, bool):
            kind = type(found).__name__
            raise TaskError(f"{row.place}: task.options.keep = {self._keep_name!r} gave {kind}, not True or False")
        return found


def _test(column: str, wanted: object) -> Callable[[Any, str], bool]:
    """What says of (value, place of the row) whether the value fits."""
    option = f"task.options.keep_where.{column}"
    if isinstance(wanted, Mapping):
        return _range(column, wanted, option)
    allowed = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not allowed or any(isinstance(each, dict | list) for each in allowed):
        raise TaskError(f"{option} = {wanted!r}: give a value, a list of values, or {{min: …, max: …}}")
    # True is no 1: a column of numbers and one of booleans are told apart.
    return lambda value, _: (
        any(type(value) is type(each) and value == each for each in allowed)
        or any(_is_number(value) and _is_number(each) and value == each for each in allowed)
    )


def _range(column: str, wanted: Mapping[str, Any], option: str) -> Callable[[Any, str], bool]:
    if not wanted or not wanted.keys() <= _BOUNDS or not all(map(_is_number, wanted.values())):
        raise TaskError(f"{option} = {dict(wanted)!r}: give numbers as {{min: …, max: …}}, or one of the two")
    low, high = wanted.get("min", float("-inf")), wanted.get("max", float("inf"))
    if low > high:
        raise TaskError(f"{option}: min = {low} is more than max = {high}: no row can pass")

    def within(value: Any, place: str) -> bool:
        if value is None:
            return False
        if not _is_number(value):
            raise TaskError(
                f"{place}: {column!r} is {type(value).__name__}, and {option} compares numbers: mend the row"
            )
        return bool(low <= value <= high)

    return within


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
