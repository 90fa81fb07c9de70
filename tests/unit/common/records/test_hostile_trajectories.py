"""What passed the wire and could not be trained on: each of these once ended the learner or the generators."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from tests.fuzz.wire import a_trajectory
from vcppo.common.records.trajectory import Prompt, TrajectoryLimits, VersionSpan
from vcppo.common.records.wire import WireError, decode_prompt, decode_trajectory, encode_prompt, encode_trajectory


@pytest.mark.parametrize("reward", [1e300, -1e39, 1e7])
def test_a_reward_that_overflows_float32_or_its_square_is_refused(reward: float) -> None:
    with pytest.raises(WireError, match=r"^reward: "):
        decode_trajectory(encode_trajectory(a_trajectory(reward=reward)))


@pytest.mark.parametrize("field", ["prompt_token_ids", "response_token_ids"])
def test_a_token_the_model_does_not_have_is_refused(field: str) -> None:
    num = {"prompt_token_ids": 4, "response_token_ids": 6}[field]
    data = encode_trajectory(a_trajectory(**{field: np.full(num, 41, np.int32)}))
    assert decode_trajectory(data, TrajectoryLimits(max_token_id=41)).num_tokens == 10
    with pytest.raises(WireError, match=f"^{field}: a token id is negative or above 40"):
        decode_trajectory(data, TrajectoryLimits(max_token_id=40))


def test_prompt_and_response_must_fit_together() -> None:
    """Each alone within generator.max_model_len, together twice that: too long for a micro-batch."""
    data = encode_trajectory(a_trajectory(60, 60, version_spans=(VersionSpan(0, 60),)))
    with pytest.raises(WireError, match=r"^num_response: "):
        decode_trajectory(data, TrajectoryLimits(max_tokens=100))
    assert decode_trajectory(data, TrajectoryLimits(max_tokens=120)).num_tokens == 120


def test_a_prompt_that_can_be_encoded_can_be_decoded() -> None:
    """The learner issues it, so a generator must be able to read it, or the learner must be told."""
    for size in range(2**20 - 400, 2**20, 20):
        prompt = Prompt("p", "g", 1, "t", np.arange(3, dtype=np.int32), {"a": "x" * size}, 0, 4, "rl", 100)
        try:
            data = encode_prompt(prompt)
        except WireError:
            return
        assert decode_prompt(data).answer == prompt.answer
    pytest.fail("no limit was met")


def test_a_key_in_an_error_can_not_talk_to_the_terminal() -> None:
    packed = msgpack.packb({"\x1b[2J\n\u202e": 1})
    with pytest.raises(WireError) as caught:
        decode_trajectory(b"vct1" + len(packed).to_bytes(4, "little") + packed + bytes(8))
    assert str(caught.value).isprintable()


def test_a_component_in_an_error_can_not_talk_to_the_terminal() -> None:
    with pytest.raises(WireError, match=r"^components: a.*2J = 10000000.0 is not finite, or beyond 1e\+06$") as caught:
        decode_trajectory(encode_trajectory(a_trajectory(components={"a\n\x1b[2J": 1e7})))
    assert str(caught.value).isprintable()


def test_lists_that_promise_more_than_there_is_take_no_memory() -> None:
    nested = b"\xdd\0\x0f\xff\xff" * 500
    with pytest.raises(WireError, match=r"header: .*max_array_len"):
        decode_trajectory(b"vct1" + len(nested).to_bytes(4, "little") + nested + bytes(1 << 20))
