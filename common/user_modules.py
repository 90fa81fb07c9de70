"""The folder a user starts in: their modules are found there, and never taken for anybody else's."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Environment of every Python child. A file beside the user's run.yaml that is called like a library (`redis.py`) is
then not imported in its place."""


def find_user_modules() -> None:
    """Let modules of the current folder be imported, after all that is installed. May be called again."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)


IMPORTABLE = "the module must be importable from the folder vcppo is started in, or installed"
"""What to do about a name that can't be imported."""


def import_named(name: str) -> Any:
    """What ``module:attribute`` names. Raises whatever importing the module does, or AttributeError."""
    module_name, _, attribute = name.partition(":")
    find_user_modules()
    return getattr(importlib.import_module(module_name), attribute)
