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
    "store": 1_000_000,
    "checkpoints": 20_000,
    "endpoint": 200_000,
}
NAMES = tuple(LONG_RUNS)

# name -> (inputs, inputs of one process) of the hostile hour: ten million in all; the last two go through real sockets
HOUR = {
    "wire": (1_500_000, 50_000),
    "frames": (1_200_000, 50_000),
    "verifiers": (3_400_000, 100_000),
    "store": (3_600_000, 100_000),
    "records": (100_000, 10_000),
    "checkpoints": (20_000, 2_000),
    "dataset": (60_000, 5_000),
    "config": (10_000, 1_000),
    "endpoint": (200_000, 50_000),
    "buffer": (60_000, 30_000),
    "control": (100_000, 50_000),
}


def load(name: str) -> Harness:
    harness: Harness = importlib.import_module(f"tests.fuzz.{name}").HARNESS
    return harness
