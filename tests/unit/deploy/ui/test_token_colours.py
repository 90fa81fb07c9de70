"""Which colour a token has, and what is said of it."""

from __future__ import annotations

import pytest

from vcppo.deploy.ui.token_colours import COLOURS, MEANINGS, coloured

TOKENS: dict[str, list[object]] = {
    "tokens": ["a", "\x1b[31m", "said", "z"],
    "turn": [0, 0, None, 1],
    "versions": [3, 3, 3, 4],
    "behaviour_log_probs": [-0.3, -9.0, None, 0.0],
    "old_log_probs": [-0.2, -9.2, None, 0.0],
    "values": [-1.0, 0.5, None, 3.0],
    "advantages": [0.5, -2.0, None, 1.0],
    "entropy": [0.0, 1.0, None, 2.0],
}


@pytest.mark.parametrize(
    ("by", "kinds"),
    [
        ("value", ["b-10", "b5", "environment", "b10"]),  # of rewards from -1 to 1; what is beyond is at the end
        ("advantage", ["b2", "b-10", "environment", "b5"]),
        ("mismatch", ["b5", "b-10", "environment", "b0"]),
        ("log-prob", ["b-1", "b-10", "environment", "b0"]),
        ("entropy", ["u0", "u5", "environment", "u10"]),
        ("version", ["v0", "v0", "environment", "v1"]),
        ("turn", ["v0", "v0", "environment", "v1"]),
    ],
)
def test_colours(by: str, kinds: list[str]) -> None:
    found = coloured(TOKENS, by, -1.0, 1.0, turning=None)  # type: ignore[arg-type]
    assert [token.kind for token in found] == kinds


def test_every_way_to_colour_has_a_meaning() -> None:
    assert set(MEANINGS) == set(COLOURS)


def test_what_is_said_of_a_token_and_what_it_looks_like() -> None:
    first, second, said, last = coloured(TOKENS, "value", -1.0, 1.0, turning=1)
    assert first.numbers == (
        "token 0 · value -1.000 · advantage +0.500 · log-prob -0.300 · entropy 0.000 · mismatch +0.1000 · version 3"
    )
    assert second.kind == "b5 turning" and second.text == "\\x1b[31m"
    assert said.numbers == "token 2 · said by the environment" and "turning" not in last.kind


def test_without_a_critic_nothing_is_believed() -> None:
    found = coloured(TOKENS | {"values": [None] * 4}, "value", -1.0, 1.0, turning=None)
    assert [token.kind for token in found] == ["b0", "b0", "environment", "b0"] and "value" not in found[0].numbers


def test_a_response_that_was_never_in_doubt_has_no_strong_colour() -> None:
    """Full colour stands for a toss-up at least: the largest of the response alone would paint noise."""
    found = coloured(TOKENS | {"entropy": [0.0, 0.03, None, 0.07]}, "entropy", -1.0, 1.0, turning=None)
    assert [token.kind for token in found] == ["u0", "u0", "environment", "u1"]


def test_samples_of_a_run_without_entropy_have_none() -> None:
    found = coloured(TOKENS | {"entropy": [None] * 4}, "entropy", -1.0, 1.0, turning=None)
    assert [token.kind for token in found] == ["u0", "u0", "environment", "u0"] and "entropy" not in found[0].numbers
