"""A help text answers at once: it loads nothing but the standard library and the modules that declare commands.

Times are for docs/performance.md; what keeps them is that nothing is imported, and that a test can hold.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import cast

import pytest

from tests.paths import ROOT
from vcppo.deploy import cli
from vcppo.deploy.samples.run_samples import _SORTS
from vcppo.deploy.samples.sample_choices import SORTS

_SCRIPT = """
import sys
before = set(sys.modules)  # what site and an editable install's finder have loaded, whatever we do
from vcppo.deploy.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print("EXIT", code)
print("LOADED", *sorted(loaded - set(sys.stdlib_module_names) - {"vcppo"}))
print("OURS", *sorted(name for name in sys.modules if name.startswith("vcppo.")))
"""


def _commands() -> list[str]:
    (subparsers,) = (each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction))
    return sorted(cast("dict[str, argparse.ArgumentParser]", subparsers.choices))


def _ran(*words: str) -> tuple[str, dict[str, list[str]]]:
    """What `vcppo WORDS` writes in an interpreter of its own, and what it had loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    found = {name: rest.split() for name, _, rest in (line.partition(" ") for line in lines[-3:])}
    return "\n".join(lines[:-3]) + done.stderr, found


@pytest.mark.parametrize("command", ["", *_commands()])
def test_a_help_text_loads_no_library(command: str) -> None:
    text, found = _ran(*command.split(), "--help")
    assert text.startswith(f"usage: vcppo {command}".rstrip()), text
    assert found["EXIT"] == ["0"]
    assert found["LOADED"] == []
    assert [name for name in found["OURS"] if name.startswith("vcppo.common.config")] == []


def test_a_mistyped_option_is_answered_as_fast() -> None:
    text, found = _ran("up", "-c", "my.yaml", "--wach")
    assert "unrecognized arguments: --wach" in text
    assert (found["EXIT"], found["LOADED"]) == (["2"], [])


def test_a_command_that_works_does_load_them() -> None:
    """So the tests above can fail: the same program, when it is to do something, has loaded the config."""
    _, found = _ran("config", "lambda")
    assert {"pydantic", "structlog"} <= set(found["LOADED"])


def test_samples_can_be_sorted_by_what_its_help_lists() -> None:
    assert tuple(_SORTS) == SORTS
