"""Round trips, and whatever bytes come in: a valid object or a WireError, never anything else."""

from __future__ import annotations

import dataclasses
import string
from contextlib import suppress
from itertools import pairwise

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.common.records.trajectory import (
    InvalidTrajectory,
    Prompt,
    Segment,
    Trajectory,
    TrajectoryLimits,
    VersionSpan,
    validate,
)
from vcppo.common.records.wire import (
    WireError,
    checksum,
    decode_prompt,
    decode_trajectory,
    encode_prompt,
    encode_trajectory,
)

NAMES = st.text(string.ascii_letters + string.digits + "-@.µ", min_size=1, max_size=30)


def a_trajectory(num_response: int = 6, **changes: object) -> Trajectory:
    fields: dict[str, object] = {
        "id": "rl-0@g.0",
        "prompt_id": "rl-0",
        "group_id": "rl-0",
        "sample_index": 0,
        "task": "chain_arithmetic",
        "prompt_token_ids": np.arange(4, dtype=np.int32),
        "response_token_ids": np.arange(num_response, dtype=np.int32),
        "action_mask": np.ones(num_response, bool),
        "behaviour_log_probs": -np.ones(num_response, np.float32),
        "version_spans": (VersionSpan(3, num_response),),
        "finish_reason": "stop",
        "reward": 1.0,
        "outcome": "correct",
        "generator_id": "g",
        "issue_version": 3,
        "timings": {"generate": 0.5},
    }
    return Trajectory(**(fields | changes))  # type: ignore[arg-type]


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    num_prompt, num_response = draw(st.integers(1, 20)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    cuts = sorted({0, num_response, *draw(st.lists(st.integers(1, num_response), max_size=3))})
    mask = rng.random(num_response) < 0.7
    mask[draw(st.integers(0, num_response - 1))] = True
    return Segment(
        prompt_token_ids=rng.integers(0, 2**31, num_prompt, dtype=np.int32),
        response_token_ids=rng.integers(0, 2**31, num_response, dtype=np.int32),
        action_mask=mask,
        behaviour_log_probs=np.where(mask, -rng.exponential(2.0, num_response), 0).astype(np.float32),
        version_spans=tuple(VersionSpan(draw(st.integers(0, 9)), b - a) for a, b in pairwise(cuts)),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    own = draw(segments())
    turns = int(np.diff(own.action_mask, prepend=False, append=False).sum()) // 2
    by_turn = draw(st.none() | st.lists(st.floats(-1e6, 1e6), min_size=turns, max_size=turns))
    return Trajectory(
        id=draw(NAMES),
        prompt_id=draw(NAMES),
        group_id=draw(NAMES),
        sample_index=draw(st.integers(0, 2**40)),
        task=draw(NAMES),
        **own._asdict(),
        reward=draw(st.floats(-1e6, 1e6)),
        segments=tuple(draw(st.lists(segments(), max_size=3))),
        outcome=draw(st.sampled_from(["correct", "wrong", "unparsable", "timeout", "crash"])),
        generator_id=draw(NAMES),
        issue_version=draw(st.integers(0, 2**40)),
        timings=draw(st.dictionaries(NAMES, st.floats(0, 1e6), max_size=4)),
        components=draw(st.dictionaries(NAMES, st.floats(-1e6, 1e6), max_size=4)),
        turn_rewards=tuple(by_turn or ()),
    )


def assert_same_array(left: np.ndarray, right: np.ndarray, name: str) -> None:
    assert left.dtype == right.dtype, name
    np.testing.assert_array_equal(left, right, err_msg=name)


def assert_same(left: object, right: object) -> None:
    for field in dataclasses.fields(left):  # type: ignore[arg-type]
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert_same_array(a, b, field.name)
        elif field.name == "segments":
            for one, other in zip(a, b, strict=True):
                for name, value in one._asdict().items():
                    if isinstance(value, np.ndarray):
                        assert_same_array(value, getattr(other, name), name)
                    else:
                        assert value == getattr(other, name), name
        else:
            assert a == b, field.name
            assert type(a) is type(b), field.name


@given(trajectories())
def test_a_trajectory_survives_the_wire(trajectory: Trajectory) -> None:
    assert_same(decode_trajectory(encode_trajectory(trajectory)), trajectory)


def test_decoded_arrays_are_read_only_views_of_the_message() -> None:
    data = encode_trajectory(a_trajectory(1000))
    decoded = decode_trajectory(memoryview(data))
    whole = np.frombuffer(data, np.uint8)
    for array in (decoded.response_token_ids, decoded.behaviour_log_probs, decoded.action_mask):
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable
        assert array.ctypes.data % array.itemsize == 0


VALUES = NAMES | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none()


@settings(max_examples=50)
@given(st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=3), max_size=3), st.integers(-(2**63), 2**63 - 1))
def test_a_prompt_survives_the_wire(problem: dict[str, object], seed: int) -> None:
    prompt = Prompt("p", "g", 1, "t", np.arange(7, dtype=np.int32), problem, seed, 4, "value_pretraining", 100)
    assert_same(decode_prompt(encode_prompt(prompt)), prompt)


def test_a_problem_that_is_not_json_is_refused_by_name() -> None:
    prompt = Prompt("p", "g", 1, "t", np.arange(7, dtype=np.int32), {"f": object()}, 0, 4, "rl", 100)
    with pytest.raises(WireError, match=r"^problem: "):
        encode_prompt(prompt)


NOT_FINITE = np.array([-1, -1, -1, -1, -1, np.nan], np.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("response_token_ids", np.array([1, 2, -3, 4, 5, 6], np.int32)),
        ("response_token_ids", np.arange(6, dtype=np.int64)),
        ("response_token_ids", np.zeros((6, 1), np.int32)),
        ("prompt_token_ids", np.zeros(0, np.int32)),
        ("prompt_token_ids", np.array([-1], np.int32)),
        ("action_mask", np.zeros(6, bool)),
        ("action_mask", np.ones(5, bool)),
        ("behaviour_log_probs", NOT_FINITE),
        ("behaviour_log_probs", -np.array([1, 1, 1, 1, 1, np.inf], np.float32)),
        ("behaviour_log_probs", np.full(6, 0.1, np.float32)),
        ("behaviour_log_probs", -np.ones(7, np.float32)),
        ("version_spans", (VersionSpan(0, 5),)),
        ("version_spans", (VersionSpan(0, 7), VersionSpan(1, -1))),
        ("version_spans", (VersionSpan(-1, 6),)),
        ("version_spans", ()),
        ("reward", float("nan")),
        ("timings", {"generate": float("inf")}),
        ("components", {"format": float("nan")}),
        ("components", {"format": 1e7}),
        ("components", {f"c{i}": 0.0 for i in range(49)}),
        ("turn_rewards", (float("nan"),)),
        ("turn_rewards", (1e7,)),
        ("turn_rewards", (0.5, 0.5)),  # for one turn
    ],
)
def test_what_can_not_be_trained_on_is_refused_by_name(field: str, value: object) -> None:
    broken = a_trajectory(**{field: value})
    with pytest.raises(InvalidTrajectory, match=f"^{field}: "):
        validate(broken)
    with pytest.raises(WireError, match=f"^{field}: "):
        decode_trajectory(encode_trajectory(broken))


def summed(data: bytes) -> bytes:
    """As a sender with a right sum would send it."""
    return data + checksum(data)


def of_schema_1(message: bytes) -> bytes:
    """As version 1 wrote it: no sum."""
    return message[:3] + b"1" + message[4:-8]


def test_messages_of_schema_1_are_read() -> None:
    """Spools and stores of an older version hold them."""
    trajectory = a_trajectory()
    assert_same(decode_trajectory(of_schema_1(encode_trajectory(trajectory))), trajectory)
    prompt = Prompt("p", "g", 1, "t", np.arange(7, dtype=np.int32), {"a": 1}, 5, 4, "rl", 100)
    assert_same(decode_prompt(of_schema_1(encode_prompt(prompt))), prompt)


def test_a_message_without_components_is_that_of_before() -> None:
    """Old messages are read, and whoever doesn't know the field reads all that do without it."""
    plain, graded = encode_trajectory(a_trajectory()), encode_trajectory(a_trajectory(components={"format": 1.0}))
    assert plain == with_header() and b"components" not in plain
    assert graded == with_header(components={"format": 1.0})
    assert decode_trajectory(plain).components == {}
    with pytest.raises(WireError, match=r"^components: field missing or unknown"):  # schema 1 never had it
        decode_trajectory(of_schema_1(graded))


TWO_TURNS = np.array([True, True, False, False, True, True])


@pytest.mark.parametrize(("reason", "fitting"), [("stop", [2]), ("length", [1, 2])])
def test_there_is_a_reward_for_each_turn_that_was_answered(reason: str, fitting: list[int]) -> None:
    """A response that was cut may end with a turn that nobody answered."""
    for count in range(1, 4):
        found = a_trajectory(action_mask=TWO_TURNS, finish_reason=reason, turn_rewards=(0.5,) * count)
        if count in fitting:
            assert_same(decode_trajectory(encode_trajectory(found)), found)
        else:
            with pytest.raises(WireError, match=f"^turn_rewards: {count} of them for the 2 turns of action_mask"):
                decode_trajectory(encode_trajectory(found))


def test_a_message_without_rewards_of_turns_is_that_of_before() -> None:
    plain = encode_trajectory(a_trajectory(action_mask=TWO_TURNS))
    of_turns = encode_trajectory(a_trajectory(action_mask=TWO_TURNS, turn_rewards=(0.25, 0.75)))
    assert b"turn_rewards" not in plain and decode_trajectory(plain).turn_rewards == ()
    assert decode_trajectory(of_turns).turn_rewards == (0.25, 0.75)
    with pytest.raises(WireError, match=r"^turn_rewards: field missing or unknown"):  # schema 1 never had it
        decode_trajectory(of_schema_1(of_turns))


@pytest.mark.parametrize("value", [[], "1.0", {"a": 1.0}, ["1.0"], [True], [[1.0]], [0.0] * 5000])
def test_rewards_of_turns_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(WireError, match=r"^turn_rewards: "):
        decode_trajectory(with_header(turn_rewards=value))


def a_segment(**changes: object) -> Segment:
    """Of an odd length: what stands behind it in the message must not move to an odd address."""
    return Segment(
        np.arange(3, dtype=np.int32), np.arange(5, dtype=np.int32), np.ones(5, bool), -np.ones(5, np.float32),
        (VersionSpan(1, 2), VersionSpan(4, 3)), "length",
    )._replace(**changes)  # type: ignore[arg-type]  # fmt: skip


def test_a_message_without_segments_is_that_of_before() -> None:
    plain, several = encode_trajectory(a_trajectory()), encode_trajectory(a_trajectory(segments=(a_segment(),)))
    assert plain == with_header() and b"segments" not in plain and decode_trajectory(plain).segments == ()
    with pytest.raises(WireError, match=r"^segments: field missing or unknown"):  # schema 1 never had it
        decode_trajectory(of_schema_1(several))


def test_arrays_of_segments_are_aligned_views_of_the_message() -> None:
    data = encode_trajectory(a_trajectory(7, segments=(a_segment(), a_segment())))
    found = decode_trajectory(memoryview(data))
    whole = np.frombuffer(data, np.uint8)
    for each in found.conversations:
        for array in (each.prompt_token_ids, each.response_token_ids, each.behaviour_log_probs, each.action_mask):
            assert np.shares_memory(array, whole) and array.ctypes.data % array.itemsize == 0
    assert (found.oldest_version, found.newest_version, found.num_actions, found.longest_response) == (1, 4, 17, 7)
    assert (found.num_tokens, found.segments[0].num_tokens) == (11, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_token_ids", np.array([-1, 2, 3], np.int32)),
        ("response_token_ids", np.array([1, 2, -3, 4, 5], np.int32)),
        ("response_token_ids", np.arange(5, dtype=np.int64)),
        ("action_mask", np.zeros(5, bool)),
        ("action_mask", np.ones(4, bool)),
        ("behaviour_log_probs", np.full(5, np.nan, np.float32)),
        ("version_spans", (VersionSpan(0, 4),)),
        ("version_spans", ()),
    ],
)
def test_a_segment_is_held_to_what_a_trajectory_is(field: str, value: object) -> None:
    broken = a_trajectory(segments=(a_segment(), a_segment(**{field: value})))
    with pytest.raises(InvalidTrajectory, match=rf"^segments\[1\]\.{field}: "):
        validate(broken)
    with pytest.raises(WireError, match=rf"^segments\[1\]\.{field}: "):
        decode_trajectory(encode_trajectory(broken))


def test_more_segments_or_longer_ones_than_the_limits_are_refused() -> None:
    data = encode_trajectory(a_trajectory(segments=(a_segment(), a_segment())))
    assert len(decode_trajectory(data, TrajectoryLimits(max_segments=3, max_tokens=10)).segments) == 2
    with pytest.raises(WireError, match=r"^segments: no list of 1 to 1 conversations beside"):
        decode_trajectory(data, TrajectoryLimits(max_segments=2))
    longer = encode_trajectory(a_trajectory(2, segments=(a_segment(),)))
    with pytest.raises(WireError, match=r"^segments\[0\]\.num_response: 5 is no integer from 1 to 4$"):
        decode_trajectory(longer, TrajectoryLimits(max_tokens=7))
    with pytest.raises(InvalidTrajectory, match=r"^segments: 3 of them, at most 2$"):
        validate(a_trajectory(segments=(a_segment(), a_segment())), TrajectoryLimits(max_segments=2))


@pytest.mark.parametrize(
    "value",
    [
        [], "x", {"a": 1}, [1], [[]], [[4, 6, "stop"]], [[4, 6, "eos", [3, 6]]], [[0, 6, "stop", [3, 6]]],
        [[4, 6, "stop", [3]]], [[4, 6, "stop", [3, 6]]], [[4, 2**40, "stop", [3, 6]]], [[4, 6, "stop", [3, 6], 1]],
        [None], [[4, 6, "stop", [3, 6]]] * 2000,
    ],
)  # fmt: skip
def test_hostile_segments_are_refused(value: object) -> None:
    """The one that is well made promises arrays that the message does not have."""
    with pytest.raises(WireError, match=r"^(segments|num_response)"):
        decode_trajectory(with_header(segments=value))


@pytest.mark.parametrize("segments", [(), (a_segment(),)], ids=["plain", "segments"])
def test_every_flipped_bit_is_seen(segments: tuple[Segment, ...]) -> None:
    whole = encode_trajectory(a_trajectory(segments=segments))
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            decode_trajectory(bytes(damaged))


def test_a_damaged_prompt_is_seen_by_its_sum() -> None:
    damaged = bytearray(encode_prompt(Prompt("p", "g", 1, "t", np.arange(7, dtype=np.int32), {}, 5, 4, "rl", 100)))
    damaged[-9] ^= 1  # in a token
    with pytest.raises(WireError, match=r"^checksum: [0-9a-f]{16} is not that of the \d+ bytes before: damaged$"):
        decode_prompt(bytes(damaged))


def with_header(**changes: object) -> bytes:
    """A message whose header was changed by somebody else's encoder."""
    data = encode_trajectory(a_trajectory())
    size = int.from_bytes(data[4:8], "little")
    header = msgpack.unpackb(data[8 : 8 + size]) | changes
    packed = msgpack.packb({key: value for key, value in header.items() if value is not ...})
    body = data[8 + size + -size % 8 : -8]
    return summed(data[:4] + len(packed).to_bytes(4, "little") + packed + b"\0" * (-len(packed) % 8) + body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 7),
        ("id", ""),
        ("id", "x" * 10_000),
        ("task", None),
        ("sample_index", -1),
        ("sample_index", True),
        ("num_prompt", 2**40),
        ("num_prompt", 0),
        ("num_response", 5),
        ("num_response", -1),
        ("num_response", 6.0),
        ("version_spans", [3, 5]),
        ("version_spans", [3]),
        ("version_spans", "36"),
        ("version_spans", [3, "6"]),
        ("version_spans", [[3, 6]]),
        ("version_spans", [0, 1] * 5000),
        ("finish_reason", "eos"),
        ("finish_reason", ["stop"]),
        ("outcome", "maybe"),
        ("reward", "1"),
        ("reward", float("inf")),
        ("issue_version", 2**64 - 1),
        ("issue_version", None),
        ("timings", [1]),
        ("timings", {"a": "b"}),
        ("timings", {str(i): 0.0 for i in range(40)}),
        ("components", None),
        ("components", [1.0]),
        ("components", {"format": "1"}),
        ("components", {"x" * 300: 1.0}),
        ("components", {"format": float("-inf")}),
        ("generator_id", ...),
        ("surplus", 1),
    ],
)
def test_a_hostile_header_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(WireError, match=f"^{field}: "):
        decode_trajectory(with_header(**{field: value}))


def test_a_mask_byte_that_is_no_bool_is_refused() -> None:
    data = bytearray(encode_trajectory(a_trajectory()))[:-8]
    data[-1] = 2
    with pytest.raises(WireError, match=r"^action_mask: "):
        decode_trajectory(summed(bytes(data)))


def test_a_longer_response_than_the_limit_is_refused() -> None:
    with pytest.raises(WireError, match=r"^num_response: "):
        decode_trajectory(encode_trajectory(a_trajectory(50)), TrajectoryLimits(max_tokens=49))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"vct1",
        b"vct2",
        b"vct2" + bytes(100),
        b"vct3" + bytes(100),
        b"vct1\xff\xff\xff\xff" + bytes(100),
        b"vct1\x05\0\0\0\xdf\xff\xff\xff\xff",  # a map of four thousand million entries
        b"vct1\x05\0\0\0\xc6\xff\xff\xff\xff",  # as many bytes
        b"vct1\x00\x40\0\0" + b"\x91" * 0x4000,  # lists in lists in lists
        b"vct1\x01\0\0\0\xc1",
        b"vct1\x02\0\0\0\x81\xa0",
        b"vct1\x03\0\0\0\x81\x90\x00",  # a list as a key
        b"vct1\x0a\0\0\0\xd7\xff" + bytes(8),  # a timestamp
    ],
)
def test_hostile_framing_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_trajectory(data)
    with pytest.raises(WireError):
        decode_prompt(b"vcp1" + data[4:])
    with pytest.raises(WireError):
        decode_trajectory(summed(b"vct2" + data[4:]))


def survive(data: bytes) -> None:
    for decode in (decode_trajectory, decode_prompt):
        with suppress(WireError):
            decode(data)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", b"vct1", b"vcp1", b"vct2"]), st.booleans())
def test_random_bytes_never_give_another_error(data: bytes, magic: bytes, sized: bool) -> None:
    message = magic + (len(data).to_bytes(4, "little") if sized else b"") + data
    survive(message)
    survive(summed(message))


def test_mutations_and_truncations_never_give_another_error() -> None:
    rng = np.random.default_rng(0)
    whole = encode_trajectory(a_trajectory())[:-8]
    header_end = 8 + int.from_bytes(whole[4:8], "little")
    for _ in range(10_000):
        message = bytearray(whole)
        for place in rng.integers(0, header_end, rng.integers(1, 5)):
            message[place] = rng.integers(256)
        survive(summed(bytes(message)))
    for length in range(len(whole)):
        survive(whole[:length])
        survive(summed(whole[:length]))
