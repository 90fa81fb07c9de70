"""Which sequences stay in vLLM between turns: never more than fit, and the one that has waited longest goes first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.generator.vllm_engine.kept_turns import KeptTurns, Turns, may_keep


def waiting(name: str, num_tokens: int) -> Turns:
    return Turns(name, name, list(range(num_tokens)), 1)


def test_a_sequence_goes_on_only_behind_all_of_its_tokens() -> None:
    turns = Turns("a", "a-1", [1, 2, 3], 1)
    assert turns.begins([1, 2, 3, 4]) and turns.begins([1, 2, 3])
    assert not turns.begins([1, 2]) and not turns.begins([1, 2, 4, 4]) and not Turns().begins([1])
    turns.clear()
    assert turns.request_id == turns.internal_id == "" and turns.token_ids == [] and turns.num_sampled == 0


def test_who_has_waited_longest_goes_first() -> None:
    kept = KeptTurns(num_blocks=10, block_size=32, max_sequences=8)
    first, second, third = waiting("first", 64), waiting("second", 65), waiting("third", 96)
    assert [kept.keep(each) for each in (first, second, third)] == [[], [], []]
    assert list(kept.kept.values()) == [2, 3, 3]
    assert kept.begin("new", 64) == []
    assert kept.begin("newer", 33) == [first]
    kept.take(third)
    kept.end("new")
    assert kept.keep(first) == [] and list(kept.kept) == [second, first]
    assert kept.begin("long", 10_000) == [second, first]
    assert kept.keep(third) == [third]


def test_places_are_counted_as_well_as_memory() -> None:
    kept = KeptTurns(num_blocks=100, block_size=32, max_sequences=2)
    first, second = waiting("first", 1), waiting("second", 1)
    assert kept.begin("a", 1) == [] and kept.keep(first) == []
    assert kept.keep(second) == [first]
    assert kept.begin("b", 1) == [second]


def test_without_a_cache_of_its_own_no_sequence_waits() -> None:
    kept = KeptTurns(0, 1, 0)
    assert not kept.fits(1)
    assert kept.begin("a", 5) == [] and dict(kept.in_flight) == {"a": 5}


STEPS = st.lists(
    st.tuples(st.sampled_from(["turn", "plain", "end", "keep", "leave"]), st.integers(0, 30), st.integers(1, 200))
)


@given(steps=STEPS, blocks=st.integers(0, 30), most=st.integers(1, 6))
def test_all_that_waits_fits_beside_all_that_runs_at_its_longest(
    steps: list[tuple[str, int, int]], blocks: int, most: int
) -> None:
    kept = KeptTurns(blocks, 16, most)
    alive: dict[str, Turns] = {}
    for number, (what, which, tokens) in enumerate(steps):
        running, resting = list(kept.in_flight), list(kept.kept)
        gone: list[Turns] = []
        if what == "plain" or (what == "turn" and kept.fits(tokens)):
            gone = kept.begin(str(number), tokens)
            if what == "turn":  # with all that may run beside it, it has room for its longest: it can end
                assert sum(kept.in_flight.values()) <= blocks
        elif what in ("end", "keep") and running:
            name = running[which % len(running)]
            kept.end(name)
            if what == "keep":
                alive[name] = waiting(name, tokens)
                gone = kept.keep(alive[name])
        elif what == "leave" and resting:
            kept.take(resting[which % len(resting)])
        before = [*resting, *([alive[name]] if what == "keep" and running else [])]
        assert gone == before[: len(gone)]  # the oldest, and in order
        if kept.kept:
            assert sum(kept.kept.values()) + sum(kept.in_flight.values()) <= blocks
            assert len(kept.kept) + len(kept.in_flight) <= most


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"num_gpu_blocks": 0}, False),
        ({"is_hybrid": True}, False),
        ({"is_attention_free": True}, False),
        ({"speculative_config": object()}, False),
        ({"async_scheduling": True}, False),
    ],
)
def test_only_plain_engines_keep_sequences(change: dict[str, Any], expected: bool) -> None:
    found = {"num_gpu_blocks": 8, "is_hybrid": False, "is_attention_free": False, "speculative_config": None}
    found |= {"async_scheduling": False} | change
    part = SimpleNamespace(**found)
    config = SimpleNamespace(
        model_config=part, cache_config=part, scheduler_config=part, speculative_config=part.speculative_config
    )
    assert may_keep(config) is expected
