"""A tool of the user's own: a function with type hints, or a class of `Tool`, named ``module:name``."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, validate_call

from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.user_functions import user_function
from vcppo.common.text.yaml_text import one_line
from vcppo.common.tools.tool import Tool


class FunctionTool(Tool):
    """Calls a function with the arguments by name; its schema is made of the type hints, and its text of the docstring.

    Raises:
        TaskError: a function whose arguments have no JSON schema.
    """

    def __init__(self, function: Any, where: str) -> None:
        self.name, self.description = function.__name__, inspect.getdoc(function) or function.__name__
        self.blocks = not inspect.iscoroutinefunction(function)
        remedy = "give each argument a type hint that JSON can hold"
        try:
            self.parameters = TypeAdapter(function).json_schema()
            self._call: Callable[..., Awaitable[str] | str] = validate_call(function)  # makes of JSON what hints say
        except (PydanticUserError, NameError) as error:
            raise TaskError(f"{where}: {self.name} has no JSON schema ({one_line(error, 200)}): {remedy}") from error
        if self.parameters.get("type") != "object":
            raise TaskError(f"{where}: {self.name} takes arguments without names, which no model can give: {remedy}")

    def call(self, arguments: Mapping[str, Any]) -> Awaitable[str] | str:
        """What the function says."""
        return self._call(**arguments)


def own_tool(name: str, options: Mapping[str, Any], where: str) -> Tool:
    """The tool that ``module:name`` names: a class is made with `options`.

    Raises:
        TaskError: no such thing, or options that it does not take.
    """
    found: Any = user_function(name, f"{where}.use")
    if inspect.isclass(found):
        if not issubclass(found, Tool):
            raise TaskError(f"{where}.use = {name!r} is no subclass of vcppo.Tool")
        try:
            inspect.signature(found).bind(**options)
        except TypeError as error:
            raise TaskError(f"{where}: the options do not fit {name}: {error}") from error
        return found(**options)
    if options:
        raise TaskError(f"{where}: a function takes no options: take {', '.join(options)} out, or write a class")
    return FunctionTool(found, where)
