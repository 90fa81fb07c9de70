"""The first token in which two vocabularies differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.model_folder.vocabulary import first_difference

PLAIN = {"<pad>": 0, "a": 1, "b": 2}
vocabularies = st.dictionaries(st.text(max_size=2), st.integers(0, 5), max_size=6)


@pytest.mark.parametrize(
    ("critic", "expected"),
    [
        ({"<pad>": 0, "a": 2, "b": 1}, "token 1 is 'a' of the policy and 'b' of the critic"),
        ({**PLAIN, "c": 3}, "token 3 is none of the policy and 'c' of the critic"),
        ({"<pad>": 0, "a": 1}, "token 2 is 'b' of the policy and none of the critic"),
        ({"<pad>": 0, "a": 1, "B": 2, "b": 2}, "only one of them has 'B' as token 2"),
    ],
)
def test_the_lowest_number_is_named(critic: dict[str, int], expected: str) -> None:
    assert first_difference(PLAIN, critic) == expected


@given(vocabularies, vocabularies)
def test_a_difference_is_named_exactly_where_there_is_one(one: dict[str, int], other: dict[str, int]) -> None:
    assert (first_difference(one, other) is None) == (one == other)
