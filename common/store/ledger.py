"""The accounts of a run and the small records the store hands out. Plain data; no I/O.

Every prompt that was ever issued is in exactly one state, so at every instant::

    issued = queued + leased + buffered + claimed + trained + rejected + expired + evaluated
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import tokens_digest

PromptState = Literal["queued", "leased", "buffered", "claimed"]
_GROWING = ("issued", "trained", "rejected", "expired", "evaluated")
AppendResult = Literal["accepted", "duplicate", "unknown", "mismatch"]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of prompts by state, taken at one instant.

    ``issued``, ``trained``, ``rejected``, ``expired`` and ``evaluated`` are counters; the other four are the sizes of
    the structures that hold the prompts, so `is_exact` compares two independent sources.
    """

    issued: int = 0
    queued: int = 0
    leased: int = 0
    buffered: int = 0
    claimed: int = 0
    trained: int = 0
    rejected: int = 0
    expired: int = 0
    evaluated: int = 0
    """Responses to held-out problems, judged during training and never trained."""
    without_signal: int = 0
    """Of the rejected: in groups that dynamic sampling left out. No fault, and no dead letter."""

    @property
    def outstanding(self) -> int:
        """Issued and not settled."""
        return self.issued - self.trained - self.rejected - self.expired - self.evaluated

    @property
    def credits_used(self) -> int:
        """What the credits bound, at most (max_staleness + 1) * batch_size: claimed ones are with the learner, and are
        trained although their commit waits for a checkpoint. While an evaluation is on, its prompts are counted too,
        which need no credit."""
        return self.queued + self.leased + self.buffered

    @property
    def difference(self) -> int:
        """``issued`` minus the sum of all states: 0 when nothing was lost (< 0: counted twice)."""
        return self.outstanding - self.queued - self.leased - self.buffered - self.claimed

    @property
    def is_exact(self) -> bool:
        """Whether every issued prompt is in exactly one state or settled."""
        return self.difference == 0

    def fewer_than(self, before: Ledger) -> str:
        """Which counters that only grow are below those of an earlier look, as text; empty: none."""
        pairs = [(name, getattr(before, name), getattr(self, name)) for name in _GROWING]
        return ", ".join(f"{name} was {then}, is {now}" for name, then, now in pairs if now < then)

    def as_dict(self) -> dict[str, int]:
        """Counts by state, in the order of a prompt's life; the last is of ``rejected``, and no state of its own."""
        return asdict(self)

    def __str__(self) -> str:
        others = ("issued", "without_signal", *(() if self.evaluated else ("evaluated",)))
        states = " + ".join(f"{count} {name}" for name, count in self.as_dict().items() if name not in others)
        if self.without_signal:
            states = states.replace(" rejected", f" rejected ({self.without_signal} without signal)")
        verdict = "exact" if self.is_exact else f"NOT exact: off by {self.difference}"
        return f"{self.issued} issued = {states} ({verdict})"


class BufferEntry(NamedTuple):
    """A validated trajectory on its way into the store; `payload` is its wire form, stored as it came.

    Its group, version, sample, task and `tokens_digest` of the prompt must be those that the prompt was issued with.
    Of an open prompt the tokens may be others, and only the rollout of one may have `num_segments` beside its own
    conversation. `num_tokens` and `num_response` are of all conversations together.
    ``num_response``, ``reward`` and ``is_correct`` are what dynamic sampling looks at, so that it reads no payload.
    """

    prompt_id: str
    trajectory_id: str
    group_id: str
    issue_version: int
    oldest_version: int
    num_tokens: int
    payload: bytes
    sample_index: int
    task: str
    prompt_digest: bytes
    num_response: int
    reward: float
    is_correct: bool
    num_segments: int = 0

    @classmethod
    def of(cls, trajectory: Trajectory, payload: bytes) -> BufferEntry:
        """`payload`: the trajectory's wire form."""
        return cls(
            trajectory.prompt_id,
            trajectory.id,
            trajectory.group_id,
            trajectory.issue_version,
            trajectory.oldest_version,
            sum(each.num_tokens for each in trajectory.conversations),
            payload,
            trajectory.sample_index,
            trajectory.task,
            tokens_digest(trajectory.prompt_token_ids),
            sum(len(each.response_token_ids) for each in trajectory.conversations),
            trajectory.reward,
            trajectory.outcome == "correct",
            len(trajectory.segments),
        )


class Outstanding(NamedTuple):
    """A prompt that is issued and not settled.

    The fields from ``oldest_version`` on are None before they apply. So are the last three of a trajectory that was
    buffered by a version of this program that did not note them.
    """

    prompt_id: str
    group_id: str
    issue_version: int
    state: PromptState
    oldest_version: int | None = None
    num_tokens: int | None = None
    claimed_step: int | None = None
    trajectory_id: str | None = None
    num_response: int | None = None
    reward: float | None = None
    is_correct: bool | None = None


class DeadLetter(NamedTuple):
    """Something that was refused, why, and the first bytes of it."""

    id: str
    time: float  # seconds since the epoch, Redis' clock
    reason: str
    detail: str
    source: str
    size: int  # bytes of the whole payload
    payload: bytes  # its beginning


@dataclass(frozen=True, slots=True)
class Member:
    """A live process of the run, as it last announced itself by heartbeat.

    Attributes:
        id: e.g. ``generator-0``.
        role: ``generator``, ``buffer`` or ``learner``.
        control_endpoint: where its control port listens; empty when it has none.
        policy_version: the weights it runs; -1 when it runs none.
        epoch: differs for every start of the process, so that a restart under the same id is seen.
        info: anything else worth announcing (JSON-able).
    """

    id: str
    role: str
    control_endpoint: str = ""
    policy_version: int = -1
    epoch: int = 0
    info: dict[str, object] = field(default_factory=dict)
