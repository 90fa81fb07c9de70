"""The targets by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib

from tests.fuzz.rig.harness import Harness

# name -> cases of a long run; a minute or a few each on one core
LONG_RUNS = {
    "wire": 1_000_000,
    "frames": 500_000,
    "config": 10_000,
    "dataset": 50_000,
    "verifiers": 500_000,
    "records": 100_000,
}
NAMES = tuple(LONG_RUNS)


def load(name: str) -> Harness:
    harness: Harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    return harness
