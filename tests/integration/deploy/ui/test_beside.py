"""Pages beside another command: a real server while it works, a browser where there is one, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.rig.fake_run import make_run

BESIDE = """
import sys
from pathlib import Path
from rich.console import Console
from vcppo.deploy.ui.beside import pages_beside
with pages_beside(Path(sys.argv[1]), Console(width=200)):
    sys.stdout.flush()
    if sys.stdin.read() == "fail":
        raise SystemExit(3)
"""


def beside(run: Path, **environment: str) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    return subprocess.Popen(
        [sys.executable, "-c", BESIDE, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=plain | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
    )  # fmt: skip


def line_of(command: subprocess.Popen[str]) -> str:
    assert command.stdout is not None
    return command.stdout.readline().strip()


def end(command: subprocess.Popen[str], word: str = "") -> int:
    command.communicate(word, timeout=60)
    return command.returncode


def fetched(address: str) -> str:
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  (our own, on the loopback)
        return str(answer.read().decode())


@pytest.mark.parametrize(("word", "code"), [("", 0), ("fail", 3)])
def test_pages_are_there_as_long_as_the_command(tmp_path: Path, word: str, code: int) -> None:
    folder = make_run(tmp_path, "first")
    command = beside(folder.path)
    said = line_of(command)
    assert said.startswith("pages http://127.0.0.1:") and "/run?run=first" in said, said
    address = said.split()[1]
    assert "30 of 30" in fetched(address)
    assert end(command, word) == code
    with pytest.raises(urllib.error.URLError):
        fetched(address)


def test_a_browser_is_opened_where_there_is_one_and_a_screen(tmp_path: Path) -> None:
    folder, note = make_run(tmp_path / "runs", "first"), tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {note}.new && mv {note}.new {note}\n')
    browser.chmod(0o755)
    command = beside(folder.path, DISPLAY=":0", BROWSER=str(browser))
    address = line_of(command).split()[1]
    deadline = time.monotonic() + 30
    while not note.exists():
        assert time.monotonic() < deadline, "the browser was not started"
        time.sleep(0.05)
    assert note.read_text().strip() == address and end(command) == 0
    note.unlink()
    command = beside(folder.path, BROWSER=str(browser))  # no screen: w3m would take the terminal
    assert "pages" in line_of(command) and end(command) == 0 and not note.exists()


def test_a_port_that_is_taken_costs_nothing(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "first")
    first = beside(folder.path)
    addresses = {line_of(first).split()[1]}
    second = beside(folder.path)  # where the first has the usual port
    addresses.add(line_of(second).split()[1])
    assert len(addresses) == 2 and all("30 of 30" in fetched(address) for address in addresses)
    assert end(first) == end(second) == 0


def test_pages_that_do_not_come_up_cost_the_command_nothing(tmp_path: Path) -> None:
    command = beside(tmp_path / "none" / "first")  # no such folder
    assert line_of(command).startswith("no pages") and end(command) == 0
