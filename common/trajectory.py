"""The prompt a generator leases and the trajectory it sends back. Numpy only; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort"]
Outcome = Literal["correct", "wrong", "unparsable", "timeout", "crash"]
Purpose = Literal["value_pretraining", "rl"]

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class VersionSpan(NamedTuple):
    """`count` consecutive response tokens sampled under policy `version` (run-length coding)."""

    version: int
    count: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One response to be generated: the unit that is issued, leased and accounted for.

    Attributes:
        id: unique in the run, e.g. ``rl-000012-0003-5`` (purpose, batch, group, sample).
        group_id: shared by the samples of one problem.
        sample_index: which sample of the group.
        task: name of the task that made it.
        token_ids: ``[P]`` int32 prompt tokens.
        problem: what the verifier needs (JSON-able: answer, tests, ...); the policy never sees it.
        seed: sampling seed of this response.
        issue_version: the learner's policy version when it was issued.
        purpose: which stage issued it.
        max_response_tokens: where the response is cut.
    """

    id: str
    group_id: str
    sample_index: int
    task: str
    token_ids: Int32Array
    problem: dict[str, object]
    seed: int
    issue_version: int
    purpose: Purpose
    max_response_tokens: int


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
        timings: seconds by phase, e.g. ``generate``, ``verify``.
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

    @property
    def oldest_version(self) -> int:
        return min(span.version for span in self.version_spans)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response_token_ids)
