"""`vcppo ui`: serves the pages until it is interrupted."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from vcppo.common.errors import EXIT_OK

Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]
TOKEN_VARIABLE = "VCPPO_UI_TOKEN"  # noqa: S105  (the variable's name)
DEFAULT_PORT = 8117
_ANY = ("0.0.0.0", "::")  # noqa: S104  (compared with, not bound to)


def add_ui(add: Add) -> None:
    """The command."""
    command = add("ui", _ui, "pages of runs in a browser: curves, samples token by token, the critic, logs",
                  "vcppo ui                         the runs under runs/, on this machine\n"
                  "vcppo ui runs/quick              of another folder; of a run, that run alone\n"
                  "vcppo ui --host 0.0.0.0          for other machines: prints an address with a token in it\n"
                  f"{TOKEN_VARIABLE}=… vcppo ui --host 0.0.0.0    the same with a token of your own")  # fmt: skip
    command.add_argument(
        "folder", nargs="?", default="runs", metavar="FOLDER", help="of runs, or of one; default: runs"
    )
    command.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default 127.0.0.1; beyond: a token")
    command.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N", help=f"default {DEFAULT_PORT}; 0: any")


def _ui(arguments: argparse.Namespace) -> int:
    import uvicorn

    from vcppo.deploy.run.run_config import RunError
    from vcppo.deploy.ui.app import make_app
    from vcppo.deploy.ui.guard import is_loopback

    root = Path(arguments.folder)
    if not root.is_dir():
        raise RunError(
            f"{root}: no such folder: `vcppo demo` makes runs/demo; or name the folder that your runs are in"
        )
    token = None if is_loopback(arguments.host) else os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(24)
    listening = _listening(arguments.host, arguments.port)
    port = listening.getsockname()[1]
    host = "localhost" if arguments.host in _ANY else arguments.host
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"http://{shown}:{port}/{'' if token is None else f'?token={token}'}\n")
    sys.stdout.flush()
    server = uvicorn.Server(uvicorn.Config(make_app(root, token), log_level="warning", timeout_graceful_shutdown=2))
    server.run(sockets=[listening])
    return EXIT_OK


def port_to_take(port: int) -> int:
    """This one of the loopback, or 0, any, where somebody has it."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return 0
    return port


def _listening(host: str, port: int) -> socket.socket:
    from vcppo.deploy.run.run_config import RunError

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise RunError(
            f"--host {host} --port {port}: can't be listened on ({error.strerror}): choose another --port"
        ) from error
