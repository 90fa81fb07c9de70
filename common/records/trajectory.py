"""The prompt a generator leases and the trajectory it sends back. Numpy only; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import fsum, isfinite
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vcppo.common.errors import VcppoError
from vcppo.common.records.outcomes import FinishReason as FinishReason
from vcppo.common.records.outcomes import Outcome as Outcome

Purpose = Literal["value_pretraining", "rl", "evaluation"]

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class VersionSpan(NamedTuple):
    """`count` consecutive response tokens sampled under policy `version` (run-length coding)."""

    version: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants here


@dataclass(frozen=True, slots=True)
class Prompt:
    """One response to be generated: the unit that is issued, leased and accounted for.

    Attributes:
        id: unique in the run, ``rl-00000012-3`` (`vcppo.common.records.ids`).
        group_id: shared by the samples of one problem.
        sample_index: which sample of the group.
        task: name of the task that made it.
        token_ids: ``[P]`` int32 prompt tokens.
        answer: what the verifier needs (JSON-able: answer, tests, ...), the task's `Problem.answer`; the policy never
            sees it. The wire form calls it ``problem``.
        seed: sampling seed of this response.
        issue_version: the learner's policy version when it was issued.
        purpose: which stage issued it.
        max_response_tokens: where the response is cut.
        is_open: an agent makes prompts of its own of it: the trajectory's tokens may be others. Known to who issues it.
    """

    id: str
    group_id: str
    sample_index: int
    task: str
    token_ids: Int32Array
    answer: dict[str, object]
    seed: int
    issue_version: int
    purpose: Purpose
    max_response_tokens: int
    is_open: bool = False


class Segment(NamedTuple):
    """A conversation of a rollout that has several: tokens that do not go on from its other conversations.

    The fields are those of a `Trajectory`. The rollout's outcome, reward and components are its own too, and the reward
    stands on its last action.
    """

    prompt_token_ids: Int32Array
    response_token_ids: Int32Array
    action_mask: BoolArray
    behaviour_log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason

    @property
    def num_tokens(self) -> int:
        """Prompt and response together."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A finished rollout.

    Attributes:
        id: ``<prompt_id>@<generator_id>.<attempt>``; unique per rollout, while a prompt trains once.
        prompt_id, group_id, sample_index, task: as in `Prompt`.
        prompt_token_ids: ``[P]`` int32.
        response_token_ids: ``[T]`` int32, T >= 1, EOS included when the policy chose it.
        action_mask: ``[T]`` bool, the response tokens the policy chose (tool text is not an action).
        behaviour_log_probs: ``[T]`` float32, nats, of the distribution actually sampled from
            (after temperature, top-p, top-k); 0 where ``action_mask`` is False.
        version_spans: run-length policy versions; counts sum to T.
        finish_reason: ``stop`` (EOS), ``length`` (cut off) or ``abort``; never inferred from padding.
        reward: scalar, given on the last action token.
        outcome: what the verifier said.
        generator_id: who made it.
        issue_version: the learner's version when the prompt was issued.
        timings: seconds by phase, e.g. ``generate``, ``verify``, ``tools``; and the counts ``tool_calls`` and
            ``tool_errors`` of a rollout that called some.
        components: parts of the reward by name, unweighted (`vcppo.common.rewards.reward_rule`); empty where the
            outcome alone makes it.
        turn_rewards: of each turn that an environment answered, in turn; they sum to the part ``base`` of the reward.
            All of them, or all but the last one's where the response was cut. Empty: the reward is the last turn's.
        segments: the rollout's other conversations (docs/agents.md), in the order in which they ended; this one ended
            last. `vcppo.common.records.segments` makes trajectories of them. Only an open prompt's rollout has any.
    """

    id: str
    prompt_id: str
    group_id: str
    sample_index: int
    task: str
    prompt_token_ids: Int32Array
    response_token_ids: Int32Array
    action_mask: BoolArray
    behaviour_log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    reward: float
    outcome: Outcome
    generator_id: str
    issue_version: int
    timings: dict[str, float] = field(default_factory=dict)
    components: dict[str, float] = field(default_factory=dict)
    turn_rewards: tuple[float, ...] = ()
    segments: tuple[Segment, ...] = ()

    @property
    def conversations(self) -> tuple[Trajectory | Segment, ...]:
        """What the policy's tokens stand in: the trajectory's own tokens, then those of its `segments`."""
        return (self, *self.segments)

    @property
    def oldest_version(self) -> int:
        """Policy version of the oldest tokens, in all conversations: staleness is counted from it."""
        return min(span.version for each in self.conversations for span in each.version_spans)

    @property
    def newest_version(self) -> int:
        """Policy version of the newest tokens, in all conversations."""
        return max(span.version for each in self.conversations for span in each.version_spans)

    @property
    def longest_response(self) -> int:
        """Tokens of the response of the conversation with the longest one: what a reward's shaping goes by."""
        return max(len(each.response_token_ids) for each in self.conversations)

    @property
    def num_actions(self) -> int:
        """Tokens that the policy chose, in all conversations."""
        return sum(int(each.action_mask.sum()) for each in self.conversations)

    @property
    def turn_begins(self) -> BoolArray:
        """``[T]`` bool, the first action of each turn: a turn is a run of actions with no other text between them."""
        begins = self.action_mask.copy()
        begins[1:] &= ~self.action_mask[:-1]
        return begins

    @property
    def num_turns(self) -> int:
        """How many turns there are."""
        return int(self.turn_begins.sum())

    @property
    def num_tokens(self) -> int:
        """Prompt and response together: what a pack has to hold. Without `segments`: each is packed on its own."""
        return len(self.prompt_token_ids) + len(self.response_token_ids)


def mean_components(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """Mean of each part of the rewards over the responses that have it, by name in alphabetical order."""
    found: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.components.items():
            found.setdefault(name, []).append(value)
    return {name: fsum(values) / len(values) for name, values in sorted(found.items())}


class InvalidTrajectory(VcppoError):
    """A trajectory that can't be trained on; the text begins with the name of the offending field."""


@dataclass(frozen=True, slots=True)
class TrajectoryLimits:
    """What is accepted at most. The defaults only keep hostile input small.

    Attributes:
        max_tokens: of prompt and response together, in each conversation.
        max_spans: version spans of a conversation, that is weight updates during one rollout.
        max_string: characters of an id or name.
        max_log_prob: nats; rounding may put the log-prob of a sure token a little above 0.
        max_token_id: the model's last token: one beyond ends the learner in its embedding.
        max_reward: its absolute value, and its components': what is finite here may be infinite in float32, or
            squared.
        max_components: parts of a reward.
        max_turns: turns with a reward of their own.
        max_segments: conversations of a rollout, the one that ended last included.
    """

    max_tokens: int = 1 << 22
    max_spans: int = 4096
    max_string: int = 256
    max_log_prob: float = 1e-3
    max_token_id: int = 2**31 - 1
    max_reward: float = 1e6
    max_components: int = 48
    max_turns: int = 4096
    max_segments: int = 1024

    def with_vocabulary(self, size: Callable[[], int | None]) -> TrajectoryLimits:
        """These, with the model's last token once `size` says how many there are; it is asked until it does."""
        if self.max_token_id != DEFAULT_LIMITS.max_token_id or (found := size()) is None:
            return self
        return replace(self, max_token_id=found - 1)


DEFAULT_LIMITS = TrajectoryLimits()

_INT32, _BOOL, _FLOAT32 = np.dtype(np.int32), np.dtype(np.bool_), np.dtype(np.float32)
minimum, maximum = np.minimum.reduce, np.maximum.reduce


def validate(trajectory: Trajectory, limits: TrajectoryLimits = DEFAULT_LIMITS) -> None:
    """Raise `InvalidTrajectory` unless the learner can train on `trajectory`.

    Checks dtypes, lengths, ranges, finiteness, that the spans cover the response and that it has an
    action; of segments the same. Enumerations and strings are checked when a message is decoded.
    """
    check_shapes(trajectory, limits)
    check_values(trajectory, limits)


def check_values(trajectory: Trajectory, limits: TrajectoryLimits = DEFAULT_LIMITS) -> None:
    """What `validate` checks beyond `check_shapes`, for arrays whose shapes are known to be right."""
    _check_conversation(trajectory, "", limits)
    for number, segment in enumerate(trajectory.segments):
        _check_conversation(segment, f"segments[{number}].", limits)
    if len(trajectory.segments) >= limits.max_segments:
        raise InvalidTrajectory(f"segments: {len(trajectory.segments) + 1} of them, at most {limits.max_segments}")
    if not abs(trajectory.reward) <= limits.max_reward:  # so put, it refuses NaN too
        raise InvalidTrajectory(f"reward: {trajectory.reward} is not finite, or beyond {limits.max_reward:g}")
    if not all(map(isfinite, trajectory.timings.values())):
        raise InvalidTrajectory("timings: a duration is not finite")
    if trajectory.components:
        _check_components(trajectory.components, limits)
    if trajectory.turn_rewards:
        _check_turn_rewards(trajectory, limits)


def _check_conversation(of: Trajectory | Segment, where: str, limits: TrajectoryLimits) -> None:
    """`where` stands before the names of its fields."""
    _check_arrays(of, where, limits)
    spans, num_response = of.version_spans, len(of.response_token_ids)
    if not 1 <= len(spans) <= limits.max_spans:
        raise InvalidTrajectory(f"{where}version_spans: {len(spans)} spans, from 1 to {limits.max_spans} are accepted")
    if any(version < 0 or count < 1 for version, count in spans):
        raise InvalidTrajectory(f"{where}version_spans: a version is negative or a count below 1")
    if sum([count for _, count in spans]) != num_response:
        raise InvalidTrajectory(f"{where}version_spans: counts don't sum to the {num_response} response tokens")


def _check_turn_rewards(trajectory: Trajectory, limits: TrajectoryLimits) -> None:
    count, turns = len(trajectory.turn_rewards), trajectory.num_turns
    unanswered = 1 if trajectory.finish_reason == "length" else 0
    if not turns - unanswered <= count <= min(turns, limits.max_turns):
        raise InvalidTrajectory(
            f"turn_rewards: {count} of them for the {turns} turns of action_mask, finish reason"
            f" {trajectory.finish_reason!r}; at most {limits.max_turns}"
        )
    for reward in trajectory.turn_rewards:
        if not abs(reward) <= limits.max_reward:
            raise InvalidTrajectory(f"turn_rewards: {reward} is not finite, or beyond {limits.max_reward:g}")


def _check_components(components: Mapping[str, float], limits: TrajectoryLimits) -> None:
    if len(components) > limits.max_components:
        raise InvalidTrajectory(f"components: {len(components)} of them, at most {limits.max_components}")
    for name, value in components.items():
        if not abs(value) <= limits.max_reward:
            shown = ascii(name[:80])[1:-1]  # a peer's: it must not talk to a terminal
            raise InvalidTrajectory(f"components: {shown} = {value} is not finite, or beyond {limits.max_reward:g}")


def check_shapes(trajectory: Trajectory, limits: TrajectoryLimits = DEFAULT_LIMITS) -> None:
    """Raise `InvalidTrajectory` unless the four arrays of each conversation have their dtypes and lengths."""
    _check_shapes(trajectory, "", limits)
    for number, segment in enumerate(trajectory.segments):
        _check_shapes(segment, f"segments[{number}].", limits)


def _check_shapes(of: Trajectory | Segment, where: str, limits: TrajectoryLimits) -> None:
    num_response = len(of.response_token_ids)
    for name, array, dtype, length in (
        ("prompt_token_ids", of.prompt_token_ids, _INT32, None),
        ("response_token_ids", of.response_token_ids, _INT32, None),
        ("action_mask", of.action_mask, _BOOL, num_response),
        ("behaviour_log_probs", of.behaviour_log_probs, _FLOAT32, num_response),
    ):
        if array.ndim != 1 or array.dtype != dtype:
            raise InvalidTrajectory(f"{where}{name}: {array.dtype} of {array.ndim} dimensions, not {dtype} of one")
        if not 1 <= len(array) <= limits.max_tokens or (length is not None and len(array) != length):
            raise InvalidTrajectory(
                f"{where}{name}: {len(array)} entries; at least 1, at most {limits.max_tokens}, as many as response"
                " tokens"
            )


def _check_arrays(of: Trajectory | Segment, where: str, limits: TrajectoryLimits) -> None:
    """Ranges: one vectorised pass each. `reduce` is the ufunc's own, without the method's overhead."""
    for name, ids in (("prompt_token_ids", of.prompt_token_ids), ("response_token_ids", of.response_token_ids)):
        if maximum(ids.view(np.uint32)) > limits.max_token_id:  # unsigned, a negative one is the largest
            raise InvalidTrajectory(f"{where}{name}: a token id is negative or above {limits.max_token_id}")
    # Bytes, not bools: an array from the wire may hold others than 0 and 1.
    largest = maximum(of.action_mask.view(np.uint8))
    if largest != 1:
        what = "a byte is no bool" if largest else "no response token is an action"
        raise InvalidTrajectory(f"{where}action_mask: {what}")
    log_probs = of.behaviour_log_probs
    # NaN propagates and compares False: this also refuses it and both infinities.
    if not (maximum(log_probs) <= limits.max_log_prob and minimum(log_probs) > -np.inf):
        raise InvalidTrajectory(f"{where}behaviour_log_probs: not finite, or above 0")
