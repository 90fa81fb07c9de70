"""Functions of the user's that built-in tasks call: named ``module:function`` in the options, found where tasks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import TaskError, Verdict
from vcppo.common.tasks.prompts.columns import as_json, value_of
from vcppo.common.tasks.rows import Row
from vcppo.common.user_modules import IMPORTABLE, import_named


def user_function(name: str, option: str) -> Callable[..., Any]:
    """The function ``module:function``; TaskError begins with `option`."""
    module_name, colon, function_name = name.partition(":")
    if not colon or not module_name or not function_name:
        raise TaskError(f"{option} = {name!r} is not of the form module:function")
    try:
        found = import_named(name)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"{option} = {name!r} can't be imported: {error}; {IMPORTABLE}") from error
    if not callable(found):
        raise TaskError(f"{option} = {name!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


class OwnVerifier:
    """``task.options.verifier``: a function (answer, response, finish_reason) → `Verdict`.

    Args:
        name: ``module:function``.
        columns: fields of a row that the function gets as its answer, by name.

    Raises:
        TaskError: no such function.
    """

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self._name = name
        self._columns = columns
        self._judge = user_function(name, "task.options.verifier")

    def answer_of(self, row: Row) -> dict[str, object]:
        """Column → value; TaskError names the row where one is missing or no JSON."""
        found: dict[str, object] = {column: value_of(row, column, "answer_columns") for column in self._columns}
        for column, value in found.items():
            as_json(value, f"{row.place}: {column!r}")
        return found

    def verify(self, answer: Mapping[str, object], final: str, finish_reason: FinishReason) -> Verdict:
        """The function's verdict on the judged part of a response."""
        found = self._judge(dict(answer), final, finish_reason)
        if not isinstance(found, Verdict):
            raise TaskError(f"task.options.verifier = {self._name!r} gave a {type(found).__name__}, not a Verdict")
        return found
