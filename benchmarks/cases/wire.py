"""A trajectory's way to bytes and back to arrays: `encode_trajectory`, then `decode_trajectory` with all its checks.

Against, in the same rounds: one memcpy of the message; and the peers' ways. PipelineRL's, as its source has it: a
pydantic record of lists (input ids, labels, log-probs), dumped to a dict and pickled; and the same dict as JSON.
Both end in arrays, since that is what a learner needs, and begin with lists, since that is what they hold: no side
pays for the other's form. Asserted: every way gives back what was put in.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from benchmarks.rig.figures import Figure, at_least, at_most, seconds_text
from benchmarks.rig.harness import Settings, measure, ratios
from vcppo.common.records.ids import make_trajectory_id
from vcppo.common.records.trajectory import Trajectory, VersionSpan
from vcppo.common.records.wire import decode_trajectory, encode_trajectory

NUM_TOKENS = 16_384
NUM_PROMPT = 128
_VOCABULARY = 151_936
_NOT_AN_ACTION = -100


class Record(BaseModel):
    """A trajectory as peers have it: plain Python."""

    input_ids: list[int]
    labels: list[int]
    logprobs: list[float]
    reward: float
    n_predicted: int
    group_id: str
    finished: bool
    metadata: dict[str, Any]


class Arrays(NamedTuple):
    """What a learner makes of a record."""

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    logprobs: NDArray[np.float32]


def run(settings: Settings) -> list[Figure]:
    trajectory = make_trajectory("rl-0", NUM_TOKENS)
    record = as_record(trajectory)
    message = np.frombuffer(encode_trajectory(trajectory), np.uint8)
    copy = np.empty_like(message)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: through_the_wire(trajectory),
        "memcpy": lambda: np.copyto(copy, message),
        "pickle": lambda: through_pickle(record),
        "json": lambda: through_json(record),
    }
    _check(trajectory, record)
    timings = measure(ways, settings.rounds(25))
    ours = timings["ours"]
    what = f"trajectory of {NUM_TOKENS:,} tokens, encode + decode"
    ours_text = seconds_text(ours.median)
    return [
        Figure.of(what, "", [s * 1e6 for s in ours.wall], unit="µs", goal=at_most(25), peak_mib=ours.peak_mib),
        Figure.of(
            what,
            "a memcpy of its bytes",
            ratios(ours, timings["memcpy"]),
            absolute=ours_text,
            note=f"{len(message) / 1024:.0f} KiB; the memcpy: {seconds_text(timings['memcpy'].median)}",
        ),
        Figure.of(
            what,
            "pickled lists",
            ratios(timings["pickle"], ours),
            goal=at_least(100),
            absolute=ours_text,
            note=f"{len(pickled(record)) / 1024:.0f} KiB; {seconds_text(timings['pickle'].median)}",
        ),
        Figure.of(
            what,
            "JSON",
            ratios(timings["json"], ours),
            absolute=ours_text,
            note=f"{len(record.model_dump_json()) / 1024:.0f} KiB; {seconds_text(timings['json'].median)}",
        ),
    ]


def make_trajectory(prompt_id: str, num_tokens: int, generator_id: str = "generator-0") -> Trajectory:
    """A plausible one: `num_tokens` of prompt and response, weights changed once in the middle."""
    rng = np.random.default_rng(0)
    num_prompt = min(NUM_PROMPT, num_tokens // 4)
    num_response = num_tokens - num_prompt
    return Trajectory(
        id=make_trajectory_id(prompt_id, generator_id, "0"),
        prompt_id=prompt_id,
        group_id=prompt_id,
        sample_index=0,
        task="chain_arithmetic",
        prompt_token_ids=rng.integers(0, _VOCABULARY, num_prompt, np.int32),
        response_token_ids=rng.integers(0, _VOCABULARY, num_response, np.int32),
        action_mask=np.ones(num_response, np.bool_),
        behaviour_log_probs=-rng.exponential(0.5, num_response).astype(np.float32),
        version_spans=(VersionSpan(3, num_response // 2), VersionSpan(4, num_response - num_response // 2)),
        finish_reason="stop",
        reward=1.0,
        outcome="correct",
        generator_id=generator_id,
        issue_version=3,
        timings={"generate": 12.3, "verify": 0.04, "wait": 0.5},
    )


def as_record(trajectory: Trajectory) -> Record:
    prompt, response = trajectory.prompt_token_ids.tolist(), trajectory.response_token_ids.tolist()
    return Record(
        input_ids=prompt + response,
        labels=[_NOT_AN_ACTION] * len(prompt) + response,
        logprobs=trajectory.behaviour_log_probs.tolist(),
        reward=trajectory.reward,
        n_predicted=len(response),
        group_id=trajectory.group_id,
        finished=trajectory.finish_reason == "stop",
        metadata={"id": trajectory.id, "version": trajectory.oldest_version, **trajectory.timings},
    )


def as_arrays(record: dict[str, Any]) -> Arrays:
    return Arrays(
        np.asarray(record["input_ids"], np.int32),
        np.asarray(record["labels"], np.int32),
        np.asarray(record["logprobs"], np.float32),
    )


def through_the_wire(trajectory: Trajectory) -> Trajectory:
    return decode_trajectory(encode_trajectory(trajectory))


def pickled(record: Record) -> bytes:
    return pickle.dumps(record.model_dump())


def unpickled(data: bytes) -> Arrays:
    return as_arrays(pickle.loads(data))  # noqa: S301  the peers' way, as a baseline


def through_pickle(record: Record) -> Arrays:
    return unpickled(pickled(record))


def through_json(record: Record) -> Arrays:
    return as_arrays(json.loads(json.dumps(record.model_dump())))


def _check(trajectory: Trajectory, record: Record) -> None:
    """Raises AssertionError unless every way gives back what was put in."""
    decoded = through_the_wire(trajectory)
    for field in fields(Trajectory):
        found, expected = getattr(decoded, field.name), getattr(trajectory, field.name)
        assert np.array_equal(found, expected) if isinstance(expected, np.ndarray) else found == expected, field.name
    for arrays in (through_pickle(record), through_json(record)):
        num_prompt = len(trajectory.prompt_token_ids)
        assert np.array_equal(arrays.input_ids[num_prompt:], trajectory.response_token_ids)
        assert np.array_equal(arrays.labels[num_prompt:], trajectory.response_token_ids)
        assert np.array_equal(arrays.logprobs, trajectory.behaviour_log_probs)
