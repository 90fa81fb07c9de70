"""The pages of a run while another command works: served by a process of its own, opened in a browser where one is.

waits for    the server's first line, its address, at most `_START_SECONDS`
unblocked by that line, or the server's end; either way the command goes on
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import structlog
from rich.console import Console

from vcppo.common.user_modules import SAFE_PATH
from vcppo.deploy.ui.ui_command import DEFAULT_PORT, port_to_take

log = structlog.get_logger(__name__)

_START_SECONDS, _STOP_SECONDS = 60.0, 10.0


@contextmanager
def pages_beside(run: Path, console: Console) -> Iterator[None]:
    """Serve the pages of `run` and of the runs beside it; say where, and open them.

    What goes wrong costs the pages, never the command.
    """
    served = _start(run.parent)
    address = "" if served is None else _address(served)
    try:
        if address:
            page = f"{address}run?run={quote(run.name)}"
            console.print(f"       [bold]pages[/] {page}  [bright_black]until the demo ends[/]", highlight=False)
            threading.Thread(target=_open, args=(page,), name="browser", daemon=True).start()
        else:
            console.print(f"       no pages: `vcppo ui {run.parent}` says why", highlight=False, markup=False)
        yield
    finally:
        if served is not None:
            _stop(served)


def _start(folder: Path) -> subprocess.Popen[str] | None:
    """The server, whose life is tied to ours."""
    words = ["vcppo.deploy.cli", "ui", str(folder), "--port", str(port_to_take(DEFAULT_PORT))]
    trampoline = [sys.executable, "-m", "vcppo.deploy.processes.child", "--parent", str(os.getpid()), "--niceness", "5"]
    try:
        return subprocess.Popen(
            [*trampoline, "--", sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **SAFE_PATH, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        log.warning("pages_not_served", error=str(error))
        return None


def _address(served: subprocess.Popen[str]) -> str:
    """Its first line; empty when it ends, or is silent for too long."""
    assert served.stdout is not None
    ready, _, _ = select.select([served.stdout], [], [], _START_SECONDS)
    return served.stdout.readline().strip() if ready else ""


def _open(page: str) -> None:
    """A browser, where this machine has one and a screen. A text browser would take the terminal away from us."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return
    try:
        webbrowser.open(page)
    except (OSError, webbrowser.Error) as error:
        log.info("browser_not_opened", error=str(error))


def _stop(served: subprocess.Popen[str]) -> None:
    served.terminate()
    try:
        served.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        served.kill()
        served.wait()
    assert served.stdout is not None
    served.stdout.close()
