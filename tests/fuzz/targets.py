"""The targets by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib

from tests.fuzz.harness import Harness

NAMES = ("wire", "frames", "config", "dataset", "verifiers", "records")


def load(name: str) -> Harness:
    harness: Harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    return harness
