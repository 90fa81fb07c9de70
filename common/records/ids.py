"""The names of things in a run: made here, and taken apart here only. Pure.

    group        ``rl-00000012``                      problem 12 of the RL stage
    prompt       ``rl-00000012-3``                    sample 3 of that problem
    trajectory   ``rl-00000012-3@generator-0.2f1c``   the response to that prompt by one start of one generator
    segment      ``rl-00000012-3@generator-0.2f1c#1`` another conversation of the same rollout, from 1
    process      ``generator-0``                      the first of its role
    buffer       ``buffer@tcp://127.0.0.1:5755``      the buffer that listens there

`vcppo eval` names its groups by the key of the problem: ``eval-<key>``. An evaluation during training has groups with
numbers, as a stage has: see `make_evaluation_number`. The Lua scripts of the store and the wire form
take an id as it is.
"""

from __future__ import annotations

from typing import NamedTuple

from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import Purpose

_PREFIXES: dict[Purpose, str] = {"value_pretraining": "vp", "rl": "rl", "evaluation": "eval"}
_MAX_DIGITS = 18
MAX_EVALUATED = 100_000
"""Held-out problems of one evaluation during training: fewer than this."""
_SEGMENT_SIGN = "#"
_PURPOSES: dict[str, Purpose] = {prefix: purpose for purpose, prefix in _PREFIXES.items()}


class IdError(VcppoError):
    """A text is not an id of the kind that was asked for."""


class GroupParts(NamedTuple):
    """Which problem of which stage."""

    purpose: Purpose
    number: int


class PromptParts(NamedTuple):
    """Which sample of which group."""

    group_id: str
    sample: int


class TrajectoryParts(NamedTuple):
    """Which start (incarnation) of which generator answered which prompt; and which of its conversations this is."""

    prompt_id: str
    generator_id: str
    incarnation: str
    segment: int = 0


def make_group_id(purpose: Purpose, number: int) -> str:
    """Id of problem `number` (0 or more) of a stage: ``rl-00000012``."""
    return f"{_PREFIXES[purpose]}-{number:08d}"


def parse_group_id(group_id: str) -> GroupParts:
    """What `make_group_id` put together. Raises `IdError`."""
    prefix, _, number = group_id.partition("-")
    if prefix not in _PURPOSES or not _is_number(number):
        raise IdError(f"{group_id!r} is not the id of a group: such an id reads {make_group_id('rl', 12)!r}")
    return GroupParts(_PURPOSES[prefix], int(number))


def make_evaluation_number(version: int, problem: int) -> int:
    """The number of the group that asks held-out problem `problem` of policy `version`: ``eval-01200034`` is problem 34
    of version 12. `problem` is below `MAX_EVALUATED`."""
    return version * MAX_EVALUATED + problem


def evaluated_version(group_id: str) -> int | None:
    """The policy version that the group of an evaluation during training is for; None: it is none of these."""
    if purpose_of(group_id) != "evaluation":
        return None
    _, _, number = group_id.partition("-")
    return int(number) // MAX_EVALUATED if _is_number(number) else None


def make_evaluation_group_id(key: str) -> str:
    """Id of the evaluation problem with this key: ``eval-<key>``."""
    return f"eval-{key}"


def make_prompt_id(group_id: str, sample: int) -> str:
    """Id of sample `sample` (0 or more) of a problem: ``rl-00000012-3``."""
    return f"{group_id}-{sample}"


def parse_prompt_id(prompt_id: str) -> PromptParts:
    """What `make_prompt_id` put together. Raises `IdError`."""
    group_id, _, sample = prompt_id.rpartition("-")
    if not group_id or not _is_number(sample):
        raise IdError(f"{prompt_id!r} is not the id of a prompt: such an id reads 'rl-00000012-3'")
    return PromptParts(group_id, int(sample))


def make_trajectory_id(prompt_id: str, generator_id: str, incarnation: str) -> str:
    """Id of one response to a prompt: ``rl-00000012-3@generator-0.2f1c``.

    Args:
        generator_id: holds no ``@``.
        incarnation: differs for every start of the generator; holds neither ``@`` nor ``.`` nor ``#``.
    """
    return f"{prompt_id}@{generator_id}.{incarnation}"


def make_segment_id(trajectory_id: str, number: int) -> str:
    """Id of another conversation (1 or more) of the same rollout: ``rl-00000012-3@generator-0.2f1c#1``."""
    return f"{trajectory_id}{_SEGMENT_SIGN}{number}"


def parse_trajectory_id(trajectory_id: str) -> TrajectoryParts:
    """What `make_trajectory_id` put together, or `make_segment_id`. Raises `IdError`."""
    prompt_id, _, made_by = trajectory_id.rpartition("@")
    generator_id, _, attempt = made_by.rpartition(".")
    incarnation, sign, segment = attempt.partition(_SEGMENT_SIGN)
    if not (prompt_id and generator_id and incarnation and _is_number(segment or "0")) or (sign and not segment):
        raise IdError(
            f"{trajectory_id!r} is not the id of a trajectory: such an id reads 'rl-00000012-3@generator-0.2f1c'"
        )
    return TrajectoryParts(prompt_id, generator_id, incarnation, int(segment or 0))


def prompt_of(trajectory_id: str) -> str:
    """The prompt that this text says it answers; empty when it names none. For text of peers: it never raises."""
    return trajectory_id.rpartition("@")[0]


def prompt_named_by(text: str) -> str:
    """The prompt that a trajectory id or prompt id names."""
    return prompt_of(text) or text


def purpose_of(text: str) -> Purpose | None:
    """The stage that issued this group, prompt or trajectory; None when no stage did."""
    return _PURPOSES.get(text.partition("-")[0])


def is_within(text: str, whole: str) -> bool:
    """Whether `text` is `whole` or a part of it: a sample of that group, a response to that prompt, a segment of it."""
    return f"{text}@".startswith((f"{whole}@", f"{whole}-", f"{whole}{_SEGMENT_SIGN}"))


def make_process_name(role: str, which: int | str) -> str:
    """Name of a process of a role that may have several: ``generator-0``. Generators are known by it in the store."""
    return f"{role}-{which}"


def is_process_of(name: str, role: str) -> bool:
    """Whether `name` is a process of `role`, or is `role` itself."""
    return name == role or name.startswith(f"{role}-")


def parse_process_name(name: str) -> tuple[str, str]:
    """(role, which) of what `make_process_name` put together; (``name``, empty) of the only process of a role."""
    role, _, which = name.rpartition("-")
    return (role, which) if role else (name, "")


def make_buffer_id(endpoint: str) -> str:
    """Id of the buffer that listens at `endpoint`."""
    return f"buffer@{endpoint}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS
