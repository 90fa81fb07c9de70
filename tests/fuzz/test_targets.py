"""Every target for a few seconds: the same seeded cases each time, and whatever hypothesis comes up with."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.rig.harness import run
from tests.fuzz.rig.mutate import mutate_bytes
from tests.fuzz.targets import NAMES, load

# name -> cases; each a few seconds on one slow core
NUM_RUNS = {"wire": 20_000, "frames": 20_000, "config": 1000, "dataset": 1500, "verifiers": 20_000, "records": 2000,
            "store": 10_000, "checkpoints": 200, "endpoint": 10_000}  # fmt: skip
SEED = 0 if "CI" in os.environ else int.from_bytes(os.urandom(4), "little")  # a red CI means the change
MAX_GROWTH_MIB = 100  # of a process that has run other tests; what an input leaves behind shows in 20,000 of them


@pytest.mark.parametrize("name", NAMES)
def test_every_case_is_accepted_or_refused_by_name(name: str) -> None:
    harness = load(name)
    figures = run(harness, NUM_RUNS[name], SEED)
    assert figures.num_accepted >= NUM_RUNS[name] // 100, "hardly anything is valid: the target only sees the door"
    assert len(figures.refused) >= 3
    assert figures.grown_mib < MAX_GROWTH_MIB


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_valid(name: str) -> None:
    harness = load(name)
    assert [harness.one(data) for data in harness.seeds()].count("") >= 1


@pytest.mark.parametrize("name", NAMES)
def test_the_cases_are_a_function_of_the_seed(name: str) -> None:
    harness = load(name)
    assert [harness.draw(Random(7)) for _ in range(3)] == [harness.draw(Random(7)) for _ in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_hypothesis_finds(name: str) -> None:
    harness = load(name)
    seeds = harness.seeds()

    @settings(max_examples=min(200, NUM_RUNS[name] // 10))
    @given(
        st.sampled_from(seeds), st.binary(max_size=64), st.integers(0, 2**32), st.sampled_from(["cut", "put", "mutate"])
    )
    def every(seed: bytes, data: bytes, number: int, how: str) -> None:
        at = number % (len(seed) + 1)
        cases = {
            "cut": data,
            "put": seed[:at] + data + seed[at + len(data) :],
            "mutate": mutate_bytes(Random(number), seed),
        }
        harness.one(cases[how])

    every()
