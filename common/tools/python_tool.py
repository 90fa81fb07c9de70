"""Tool `python`: runs a program of the policy's in the sandbox (`vcppo.common.sandbox`) and says what it printed.

Each call is a program of its own: nothing is kept from one call to the next, there is no network and no installed
package.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import structlog
from pydantic import Field

from vcppo.common.sandbox import Isolation, Limits, Result, SandboxError, probe, run_program
from vcppo.common.sandbox.python_job import python_job
from vcppo.common.tasks.interface import TaskError, TaskOptions
from vcppo.common.tools.tool import Tool, ToolError

log = structlog.get_logger(__name__)


class PythonOptions(TaskOptions):
    """Options of `use: python`."""

    seconds: float = Field(default=2.0, gt=0)
    """Time of a program by the clock. Keep it below task.options.call_seconds."""

    memory_mib: int = Field(default=256, ge=16)
    """Address space of a program."""

    max_output_kib: int = Field(default=64, ge=1)
    """A program that prints more is ended."""

    require_isolation: bool = True
    """Refuse to start where the sandbox can't keep its promises; false: only say so in the log."""


class PythonTool(Tool):
    """See the module's text. Not async: the sandbox forks, which a process with threads had better not do."""

    name = "python"
    description = (
        "Runs a Python 3 program (standard library only) and returns what it prints. Nothing is kept between calls."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the whole program; print what you want to see"}},
        "required": ["code"],
        "additionalProperties": False,
    }

    def __init__(self, options: PythonOptions) -> None:
        self._options = options
        self._limits = Limits(
            cpu_seconds=options.seconds,
            wall_seconds=options.seconds,
            memory_bytes=options.memory_mib * 2**20,
            output_bytes=options.max_output_kib * 2**10,
        )

    def open(self) -> None:
        """Finds out what the sandbox can do here, and refuses if it is too little."""
        isolation = self._isolation
        log.info("sandbox", isolation=isolation.describe())
        if isolation.missing and self._options.require_isolation:
            raise TaskError(
                f"programs can't be run safely here: {isolation.describe()}. Allow one of the layers (user namespaces; "
                "a kernel with Landlock), or set require_isolation: false for `use: python` if they can be trusted"
            )

    def call(self, arguments: Mapping[str, Any]) -> str:
        """What the program printed."""
        try:
            result = run_program(python_job(arguments["code"], self._limits), self._isolation.layers)
        except SandboxError as error:
            raise ToolError("the program could not be run") from error
        return _said(result, self._options)

    @cached_property
    def _isolation(self) -> Isolation:
        try:
            return probe(python_job("", Limits()))
        except SandboxError as error:
            raise TaskError(f"not even an empty program runs: {error}; leave `use: python` out") from error


def _said(result: Result, options: PythonOptions) -> str:
    printed = result.stdout.decode(errors="replace")
    if result.ending == "timeout":
        raise ToolError(f"the program took more than {options.seconds:g} s")
    if result.ending == "flood":
        raise ToolError(f"the program printed more than {options.max_output_kib} KiB")
    if result.ending == "signalled":
        raise ToolError(f"the program was ended by signal {-result.exit_code} (too much memory?)")
    if result.exit_code != 0:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ToolError(
            " ".join([f"exit code {result.exit_code}:", *last, *([f"printed: {printed}"] if printed else [])])
        )
    return printed
