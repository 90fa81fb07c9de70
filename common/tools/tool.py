"""What a tool is: a name, what it is for, a JSON schema of its arguments, and a call that gives text."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from vcppo.common.tasks.interface import TaskError
from vcppo.common.text.yaml_text import one_line

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_MAX_SHOWN = 300


class ToolError(Exception):
    """A call that came to nothing; the policy reads the text."""


class Tool(ABC):
    """One tool. `call` may be async: then a child has several under way.

    Attributes:
        name: as the policy calls it.
        description: what the policy reads about it.
        parameters: JSON schema of the arguments, an object's.
        blocks: whether its calls may take long without being async. None: they may when `call` is not async.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    blocks: bool | None = None

    @abstractmethod
    def call(self, arguments: Mapping[str, Any]) -> Awaitable[str] | str:
        """What the tool says to arguments that fit `parameters`.

        Raises:
            ToolError: the policy reads why. Any other exception is told as its type and text.
        """

    def open(self) -> None:  # noqa: B027  (optional: most tools have nothing to prepare)
        """Make it ready, in the child that will call it. Raises TaskError when it can't be used."""

    async def connect(self) -> None:  # noqa: B027  (optional, as above)
        """Connect to what it needs, in the event loop of the calls. Raises TaskError when it can't be used."""

    @property
    def keeps_its_child(self) -> bool:
        """Whether a call keeps all others in its child from going on."""
        return not inspect.iscoroutinefunction(self.call) if self.blocks is None else self.blocks

    def schema(self) -> dict[str, Any]:
        """As chat templates get it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class ArgumentCheck:
    """Of one tool's arguments, by its schema. References of the schema to other documents are not followed.

    Raises:
        TaskError: a tool without a usable name or schema.
    """

    def __init__(self, tool: Tool) -> None:
        where = f"task.options.tools: {one_line(repr(tool.name), 80)}"
        if not isinstance(tool.name, str) or not _NAME.fullmatch(tool.name):
            raise TaskError(f"{where} is no name of a tool: up to 64 letters, digits, '_', '.' and '-'")
        schema = tool.parameters
        if not isinstance(schema, Mapping) or schema.get("type") != "object":
            raise TaskError(
                f"{where} has no JSON schema of an object for its arguments: give "
                '{"type": "object", "properties": {…}, "required": […]}'
            )
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise TaskError(f"{where} has a schema that is none ({one_line(error.message)}): mend it") from error
        self._validator = Draft202012Validator(schema, registry=Registry())

    def fault_of(self, arguments: Mapping[str, Any]) -> str | None:
        """Why the arguments do not fit; None: they do."""
        try:
            error = best_match(self._validator.iter_errors(arguments))
        except (Unresolvable, RecursionError) as failure:
            return f"they can't be checked ({one_line(failure, _MAX_SHOWN)})"
        if error is None:
            return None
        place = ".".join(str(part) for part in error.absolute_path)
        return one_line(f"{place}: {error.message}" if place else error.message, _MAX_SHOWN)
