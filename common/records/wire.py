"""The bytes of a trajectory and of a prompt: a small msgpack header, then raw little-endian arrays.

Layout of a message (offsets in bytes)::

    0   4  magic: b"vct2" (trajectory) or b"vcp2" (prompt); the digit is the schema version
    4   4  H, the header's size, uint32
    8   H  header: msgpack map, every key known, every value bounded
    8+H    zero padding to a multiple of 8, then the arrays, one after the other, 4-byte ones first
    end-8  xxh3 of all bytes before, uint64: made by the sender, looked at wherever the message is decoded

Encoding copies each array once; decoding copies nothing: arrays are read-only views of the message.
Whatever bytes come in, decoding returns a valid object or raises `WireError` naming the field.
No pickle, no code, no allocation larger than the message.

Schema 1 had no sum; spools and stores of an older version still hold such messages, so they are read and no more
written. A new field is a key of the header, a new array comes last and has its length there: give them the next
schema, and its keys a line in `_TRAJECTORY_KEYS`; what an older schema lacks gets its default in `decode_trajectory`.
A field that most messages do without is optional (`_OPTIONAL_TRAJECTORY_KEYS`): it is written only where it says
something, so that whoever does not know it reads all other messages.

A rollout of several conversations is one message. The arrays of 4 bytes an entry of all of them come first, one
conversation behind the other, then all their masks: so none of them begins at an odd address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast, get_args

import msgpack
import numpy as np
import xxhash

from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.records.trajectory import (
    DEFAULT_LIMITS,
    BoolArray,
    FinishReason,
    Float32Array,
    Int32Array,
    InvalidTrajectory,
    Outcome,
    Prompt,
    Purpose,
    Segment,
    Trajectory,
    TrajectoryLimits,
    VersionSpan,
    check_shapes,
    check_values,
)

WIRE_SCHEMA_VERSION = 2

_TRAJECTORY = b"vct"
_PROMPT = b"vcp"
_PREFIX_SIZE = 8
_SUM_SIZE = 8
_MAX_HEADER_BYTES = 1 << 20
_MAX_PROBLEM_BYTES = 1 << 20
_MAX_TIMINGS = 32
_MAX_LIST = 4 * DEFAULT_LIMITS.max_spans  # msgpack makes room for what a list declares, before there is any of it
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_FINISH_REASONS, _OUTCOMES, _PURPOSES = get_args(FinishReason), get_args(Outcome), get_args(Purpose)

_TRAJECTORY_KEYS_1 = {
    *("id", "prompt_id", "group_id", "sample_index", "task", "num_prompt", "num_response", "version_spans"),
    *("finish_reason", "reward", "outcome", "generator_id", "issue_version", "timings"),
}
_PROMPT_KEYS_1 = {
    *("id", "group_id", "sample_index", "task", "num_tokens"),
    *("problem", "seed", "issue_version", "purpose", "max_response_tokens"),
}
# The header's keys by the schema's digit.
_TRAJECTORY_KEYS = {b"1": _TRAJECTORY_KEYS_1, b"2": _TRAJECTORY_KEYS_1}
_PROMPT_KEYS = {b"1": _PROMPT_KEYS_1, b"2": _PROMPT_KEYS_1}
_OPTIONAL_TRAJECTORY_KEYS = {b"2": {"components", "turn_rewards", "segments"}}
_SEGMENT_FIELDS = ("num_prompt", "num_response", "finish_reason", "version_spans")

_LITTLE_ENDIAN = {np.dtype(kind): np.dtype(kind).newbyteorder("<") for kind in (np.int32, np.float32, np.bool_)}
_UNUSABLE = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)


class WireError(VcppoError):
    """Bytes that are no valid message; the text begins with the name of the offending field."""


Header = dict[str, object]
KeysBySchema = Mapping[bytes, set[str]]


def encode_trajectory(trajectory: Trajectory) -> bytes:
    """The message of `trajectory`. Raises `WireError` when arrays have wrong dtypes or lengths.

    Values are checked once, by the buffer that decodes it: not here again.
    """
    try:
        check_shapes(trajectory)
    except InvalidTrajectory as error:
        raise WireError(str(error)) from error
    t = trajectory
    header: Header = {
        "id": t.id,
        "prompt_id": t.prompt_id,
        "group_id": t.group_id,
        "sample_index": t.sample_index,
        "task": t.task,
        "num_prompt": len(t.prompt_token_ids),
        "num_response": len(t.response_token_ids),
        "version_spans": [number for span in t.version_spans for number in span],
        "finish_reason": t.finish_reason,
        "reward": float(t.reward),
        "outcome": t.outcome,
        "generator_id": t.generator_id,
        "issue_version": t.issue_version,
        "timings": t.timings,
    }
    if t.components:
        header["components"] = t.components
    if t.turn_rewards:
        header["turn_rewards"] = t.turn_rewards
    words, masks = [t.prompt_token_ids, t.response_token_ids, t.behaviour_log_probs], [t.action_mask]
    if t.segments:
        header["segments"] = [_segment_header(segment) for segment in t.segments]
        for each in t.segments:
            words += each.prompt_token_ids, each.response_token_ids, each.behaviour_log_probs
            masks.append(each.action_mask)
    return _join(_TRAJECTORY, header, (*words, *masks))


def decode_trajectory(data: bytes | memoryview, limits: TrajectoryLimits = DEFAULT_LIMITS) -> Trajectory:
    """The trajectory in `data`, its arrays read-only views of it. Raises `WireError`."""
    header, body = _split(data, _TRAJECTORY, _TRAJECTORY_KEYS, _OPTIONAL_TRAJECTORY_KEYS)
    segments = _segment_headers(header, limits) if "segments" in header else []
    own, *others = _arrays([_sizes(header, limits), *(each.sizes for each in segments)], body)
    trajectory = Trajectory(
        id=_string(header, "id", limits),
        prompt_id=_string(header, "prompt_id", limits),
        group_id=_string(header, "group_id", limits),
        sample_index=_integer(header, "sample_index", 0),
        task=_string(header, "task", limits),
        prompt_token_ids=own.prompt,
        response_token_ids=own.response,
        behaviour_log_probs=own.log_probs,
        action_mask=own.mask,
        version_spans=_spans(header, limits),
        finish_reason=cast(FinishReason, _choice(header, "finish_reason", _FINISH_REASONS)),
        reward=_number(header["reward"], "reward"),
        outcome=cast(Outcome, _choice(header, "outcome", _OUTCOMES)),
        generator_id=_string(header, "generator_id", limits),
        issue_version=_integer(header, "issue_version", 0),
        timings=_numbers(header, "timings", _MAX_TIMINGS, limits),
        components=_numbers(header, "components", limits.max_components, limits) if "components" in header else {},
        turn_rewards=_turn_rewards(header, limits) if "turn_rewards" in header else (),
        segments=tuple(map(_segment, segments, others)),
    )
    try:
        check_values(trajectory, limits)  # the shapes are right: they were made here
    except InvalidTrajectory as error:
        raise WireError(str(error)) from error
    return trajectory


class _Sizes(NamedTuple):
    """Tokens of a conversation."""

    num_prompt: int
    num_response: int


class _Arrays(NamedTuple):
    """Of a conversation, views of the message."""

    prompt: Int32Array
    response: Int32Array
    log_probs: Float32Array
    mask: BoolArray


class _SegmentHeader(NamedTuple):
    """What the header says of a segment."""

    sizes: _Sizes
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]


def _sizes(header: Header, limits: TrajectoryLimits) -> _Sizes:
    num_prompt = _integer(header, "num_prompt", 1, limits.max_tokens)
    return _Sizes(num_prompt, _integer(header, "num_response", 1, limits.max_tokens - num_prompt))


def _arrays(sizes: Sequence[_Sizes], body: memoryview) -> list[_Arrays]:
    """Of each conversation. Words come first, then the masks."""
    found, word, mask = list[_Arrays](), 0, 0
    for num_prompt, num_response in sizes:
        mask += 4 * num_prompt + 8 * num_response
    expected = mask + sum([each.num_response for each in sizes])
    if len(body) != expected:
        num_prompt, num_response = map(sum, zip(*sizes, strict=True))
        raise WireError(
            f"num_response: {num_prompt} prompt and {num_response} response tokens take {expected} bytes of arrays, "
            f"the message has {len(body)}"
        )
    for num_prompt, num_response in sizes:
        response = word + 4 * num_prompt
        log_probs = response + 4 * num_response
        found.append(
            _Arrays(
                np.frombuffer(body, "<i4", num_prompt, word),
                np.frombuffer(body, "<i4", num_response, response),
                np.frombuffer(body, "<f4", num_response, log_probs),
                np.frombuffer(body, np.bool_, num_response, mask),
            )
        )
        word, mask = log_probs + 4 * num_response, mask + num_response
    return found


def _segment_header(segment: Segment) -> list[object]:
    spans = [number for span in segment.version_spans for number in span]
    return [len(segment.prompt_token_ids), len(segment.response_token_ids), segment.finish_reason, spans]


def _segment_headers(header: Header, limits: TrajectoryLimits) -> list[_SegmentHeader]:
    """What `_segment_header` wrote of each."""
    found = header["segments"]
    if type(found) is not list or not 1 <= len(found) < limits.max_segments:
        raise WireError(f"segments: no list of 1 to {limits.max_segments - 1} conversations beside the trajectory's")
    segments = []
    for number, fields in enumerate(found):
        if type(fields) is not list or len(fields) != len(_SEGMENT_FIELDS):
            raise WireError(f"segments[{number}]: no list of {', '.join(_SEGMENT_FIELDS)}")
        part: Header = dict(zip(_SEGMENT_FIELDS, fields, strict=True))
        try:
            reason = cast(FinishReason, _choice(part, "finish_reason", _FINISH_REASONS))
            segments.append(_SegmentHeader(_sizes(part, limits), reason, _spans(part, limits)))
        except WireError as error:
            raise WireError(f"segments[{number}].{error}") from error
    return segments


def _segment(header: _SegmentHeader, arrays: _Arrays) -> Segment:
    return Segment(
        prompt_token_ids=arrays.prompt,
        response_token_ids=arrays.response,
        action_mask=arrays.mask,
        behaviour_log_probs=arrays.log_probs,
        version_spans=header.version_spans,
        finish_reason=header.finish_reason,
    )


def encode_prompt(prompt: Prompt) -> bytes:
    """The message of `prompt`. Raises `WireError` when its problem is not JSON-able or too large."""
    try:
        answer = json.dumps(prompt.answer, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise WireError(f"problem: not JSON-able: {error}") from error
    if len(answer) > _MAX_PROBLEM_BYTES:
        raise WireError(f"problem: {len(answer)} bytes of JSON, at most {_MAX_PROBLEM_BYTES}")
    token_ids = np.ascontiguousarray(prompt.token_ids, np.int32)
    header = {
        "id": prompt.id,
        "group_id": prompt.group_id,
        "sample_index": prompt.sample_index,
        "task": prompt.task,
        "num_tokens": len(token_ids),
        "problem": answer,
        "seed": prompt.seed,
        "issue_version": prompt.issue_version,
        "purpose": prompt.purpose,
        "max_response_tokens": prompt.max_response_tokens,
    }
    return _join(_PROMPT, header, (token_ids,))


def decode_prompt(data: bytes | memoryview, limits: TrajectoryLimits = DEFAULT_LIMITS) -> Prompt:
    """The prompt in `data`, its tokens a read-only view of it. Raises `WireError`."""
    header, body = _split(data, _PROMPT, _PROMPT_KEYS)
    num_tokens = _integer(header, "num_tokens", 1, limits.max_tokens)
    if len(body) != 4 * num_tokens:
        raise WireError(f"num_tokens: {num_tokens} tokens take {4 * num_tokens} bytes, the message has {len(body)}")
    token_ids = np.frombuffer(body, "<i4", num_tokens)
    if token_ids.min() < 0:
        raise WireError("token_ids: a token id is negative")
    return Prompt(
        id=_string(header, "id", limits),
        group_id=_string(header, "group_id", limits),
        sample_index=_integer(header, "sample_index", 0),
        task=_string(header, "task", limits),
        token_ids=token_ids,
        answer=_answer(header["problem"]),
        seed=_integer(header, "seed", _INT64_MIN),
        issue_version=_integer(header, "issue_version", 0),
        purpose=cast(Purpose, _choice(header, "purpose", _PURPOSES)),
        max_response_tokens=_integer(header, "max_response_tokens", 1),
    )


def checksum(*parts: bytes | memoryview) -> bytes:
    """The sum at the end of a message: 8 bytes, of all that stands before it."""
    hasher = xxhash.xxh3_64()
    for part in parts:
        hasher.update(part)
    return hasher.intdigest().to_bytes(_SUM_SIZE, "little")


def tokens_digest(token_ids: Int32Array) -> bytes:
    """8 bytes that tell one prompt's tokens ``[P]`` from another's."""
    return checksum(np.ascontiguousarray(token_ids, "<i4").data)


def _join(kind: bytes, header: Header, arrays: tuple[np.ndarray, ...]) -> bytes:
    """One message; each array is copied exactly once, here."""
    try:
        packed: bytes = msgpack.packb(header)
    except _UNUSABLE as error:
        raise WireError(f"header: can't be packed: {error}") from error
    if len(packed) > _MAX_HEADER_BYTES:  # it would be refused by whoever gets it
        raise WireError(f"header: {len(packed)} bytes, at most {_MAX_HEADER_BYTES}: names or the problem are too long")
    padding = b"\0" * (-len(packed) % 8)
    little_endian = [np.ascontiguousarray(array, _LITTLE_ENDIAN[array.dtype]).data for array in arrays]
    front = b"".join([kind, b"%d" % WIRE_SCHEMA_VERSION, len(packed).to_bytes(4, "little"), packed, padding])
    return b"".join([front, *little_endian, checksum(front, *little_endian)])


def _split(
    data: bytes | memoryview, kind: bytes, keys: KeysBySchema, optional: KeysBySchema = MappingProxyType({})
) -> tuple[Header, memoryview]:
    """The header, its keys checked, and a view of the arrays."""
    try:
        view = memoryview(data).cast("B")
    except TypeError as error:
        raise WireError(f"message: not contiguous bytes: {error}") from error
    schema = bytes(view[3:4])
    if view[:3] != kind or schema not in keys:
        raise WireError(
            f"message: begins with {bytes(view[:4])!r}, not {kind + b'%d' % WIRE_SCHEMA_VERSION!r}: "
            "other schema version or no message"
        )
    if schema != b"1":
        view, said = view[:-_SUM_SIZE], view[-_SUM_SIZE:]
        if checksum(view) != said:
            raise WireError(f"checksum: {bytes(said).hex()} is not that of the {len(view)} bytes before: damaged")
    size = int.from_bytes(view[4:_PREFIX_SIZE], "little")
    if size > _MAX_HEADER_BYTES or _PREFIX_SIZE + size > len(view):
        raise WireError(f"header: declared as {size} bytes in a message of {len(view)} (most: {_MAX_HEADER_BYTES})")
    header = _unpack_map(view[_PREFIX_SIZE : _PREFIX_SIZE + size])
    wrong = header.keys() ^ keys[schema]
    if wrong and (wrong := wrong - (optional.get(schema, set()) & header.keys())):
        different = sorted(ascii(key)[:40].strip("'") for key in wrong)[:5]
        raise WireError(f"{different[0]}: field missing or unknown (all such: {different})")
    return header, view[_PREFIX_SIZE + size + -size % 8 :]


def _unpack_map(view: memoryview) -> Header:
    try:
        header = msgpack.unpackb(view, max_bin_len=0, max_ext_len=0, max_map_len=64, max_array_len=_MAX_LIST)
    except _UNUSABLE as error:
        raise WireError(f"header: not msgpack: {type(error).__name__}: {str(error)[:200]}") from error
    if type(header) is not dict:
        raise WireError(f"header: a {type(header).__name__}, not a map")
    return header


def _integer(header: Header, name: str, least: int, most: int = _INT64_MAX) -> int:
    value = header[name]
    if type(value) is not int or not least <= value <= most:
        raise WireError(f"{name}: {_short(value)} is no integer from {least} to {most}")
    return value


def _string(header: Header, name: str, limits: TrajectoryLimits) -> str:
    value = header[name]
    if type(value) is not str or not 1 <= len(value) <= limits.max_string:
        raise WireError(f"{name}: {_short(value)} is no string of 1 to {limits.max_string} characters")
    return value


def _choice(header: Header, name: str, choices: tuple[str, ...]) -> str:
    value = header[name]
    if type(value) is not str or value not in choices:
        raise WireError(f"{name}: {_short(value)} is none of {', '.join(choices)}")
    return value


def _number(value: object, name: str) -> float:
    if type(value) is not float and type(value) is not int:
        raise WireError(f"{name}: {_short(value)} is no number")
    return float(value)


def _spans(header: Header, limits: TrajectoryLimits) -> tuple[VersionSpan, ...]:
    """Run-length policy versions; that the counts sum to T is checked by `check_values`."""
    flat = header["version_spans"]
    if type(flat) is not list or not 2 <= len(flat) <= 2 * limits.max_spans or len(flat) % 2:
        raise WireError(f"version_spans: no list of 1 to {limits.max_spans} (version, count) pairs")
    if not all(type(number) is int and 0 <= number < 2**62 for number in flat):
        raise WireError("version_spans: a version or count is no integer >= 0")
    return tuple(map(VersionSpan, flat[::2], flat[1::2]))


def _turn_rewards(header: Header, limits: TrajectoryLimits) -> tuple[float, ...]:
    """How many there must be is checked by `check_values`."""
    found = header["turn_rewards"]
    if type(found) is not list or not 1 <= len(found) <= limits.max_turns:
        raise WireError(f"turn_rewards: no list of 1 to {limits.max_turns} numbers")
    return tuple(_number(reward, "turn_rewards") for reward in found)


def _numbers(header: Header, field: str, most: int, limits: TrajectoryLimits) -> dict[str, float]:
    """A map of names to numbers."""
    found = header[field]
    if type(found) is not dict or len(found) > most:
        raise WireError(f"{field}: no map of at most {most} names")
    for name in found:
        if type(name) is not str or len(name) > limits.max_string:
            raise WireError(f"{field}: {_short(name)} is no name")
    return {name: _number(value, field) for name, value in found.items()}


def _answer(text: object) -> dict[str, object]:
    if type(text) is not str or len(text) > _MAX_PROBLEM_BYTES:
        raise WireError(f"problem: no string of at most {_MAX_PROBLEM_BYTES} characters")
    try:
        answer = parse_json(text)
    except JsonError as error:
        raise WireError(f"problem: {error}") from error
    if type(answer) is not dict:
        raise WireError("problem: no JSON object")
    return answer


def _short(value: object) -> str:
    """`value` for an error message: what a hostile peer sends must not fill the log."""
    return repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
