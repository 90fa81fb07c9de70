"""One rollout of several turns as a state machine: tokens in, tokens out. Pure.

    prompt ─▶ act ─▶ observe ─▶ act ─▶ observe ─▶ … ─▶ ended
                ╰─ cut by its length: ended     ╰─ done, or no room for another turn: ended

The policy's tokens are kept as they were sampled: nobody decodes them and encodes them again. What the environment says
stands between them with mask 0 and log-prob 0, under the version of the action before it, so that it makes no rollout
staler. A rollout always ends with an action: what nobody acts on is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from vcppo.common.records.trajectory import BoolArray, FinishReason, Float32Array, Int32Array, VersionSpan


class Sampled(Protocol):
    """One turn of the policy, as an engine gives it. Arrays are ``[N]``, N >= 1; spans sum to N."""

    @property
    def token_ids(self) -> Int32Array: ...
    @property
    def log_probs(self) -> Float32Array: ...
    @property
    def version_spans(self) -> tuple[VersionSpan, ...]: ...
    @property
    def finish_reason(self) -> FinishReason: ...


class Transcript(NamedTuple):
    """A finished rollout, all of one length T.

    Attributes:
        token_ids: ``[T]`` int32, actions and what the environment said.
        action_mask: ``[T]`` bool, what the policy chose.
        log_probs: ``[T]`` float32, nats; 0 where the mask is False.
        version_spans: run-length policy versions; counts sum to T.
        turn_rewards: of each turn that was answered. Turns with nothing said between them are one.
        finish_reason: ``stop``: the environment was done; ``length``: it was cut.
    """

    token_ids: Int32Array
    action_mask: BoolArray
    log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    turn_rewards: tuple[float, ...]
    finish_reason: FinishReason


class Episode:
    """Of one prompt.

    Args:
        max_tokens: of all turns together, what the environment says included.
        max_turns: of the policy.

    Attributes:
        turn_rewards: of each turn that was answered; turns with nothing said between them are one.
        num_turns: that the policy has taken.
        finish_reason: None while it goes on.
    """

    def __init__(self, max_tokens: int, max_turns: int) -> None:
        self.turn_rewards: list[float] = []
        self.num_turns = 0
        self.finish_reason: FinishReason | None = None
        self._max_tokens, self._max_turns = max_tokens, max_turns
        self._tokens: list[Int32Array] = []
        self._masks: list[BoolArray] = []
        self._log_probs: list[Float32Array] = []
        self._spans: list[VersionSpan] = []
        self._length = 0
        self._is_joined = False  # to the turn before: nothing was said between them
        self._awaits_answer = False

    @property
    def room(self) -> int:
        """Tokens that are left."""
        return self._max_tokens - self._length

    @property
    def token_ids(self) -> Int32Array:
        """``[t]`` all so far: the next turn is sampled behind them."""
        return np.concatenate(self._tokens) if self._tokens else np.zeros(0, np.int32)

    def act(self, turn: Sampled) -> None:
        """Take a turn of the policy. One that was cut by its length ends the rollout.

        Raises:
            ValueError: it is not the policy's turn, or the turn is none.
        """
        if self._awaits_answer or self.finish_reason is not None:
            raise ValueError("it is not the policy's turn")
        count = len(turn.token_ids)
        if not 1 <= count <= self.room or len(turn.log_probs) != count:
            raise ValueError(f"a turn of {count} tokens and {len(turn.log_probs)} log-probs, room for {self.room}")
        if sum(span.count for span in turn.version_spans) != count or turn.finish_reason == "abort":
            raise ValueError("a turn that was broken off, or whose versions do not cover it")
        self._append(turn.token_ids, turn.log_probs, is_action=True)
        for span in turn.version_spans:
            self._cover(span.version, span.count)
        self.num_turns += 1
        if turn.finish_reason == "length":
            self.finish_reason = "length"
        else:
            self._awaits_answer = True

    def observe(self, token_ids: Sequence[int], reward: float, *, done: bool, is_late: bool = False) -> None:
        """Take the environment's answer. The rollout ends when it is done, or when no other turn has room.

        Args:
            token_ids: what it says, as tokens that stand behind the policy's.
            is_late: there is no time for another turn.

        Raises:
            ValueError: no answer was awaited.
        """
        if not self._awaits_answer:
            raise ValueError("no answer was awaited")
        self._awaits_answer = False
        if self._is_joined:
            self.turn_rewards[-1] += reward
        else:
            self.turn_rewards.append(reward)
        self._is_joined = not len(token_ids)
        if done:
            self.finish_reason = "stop"
        elif is_late or self.num_turns == self._max_turns or len(token_ids) >= self.room:
            self.finish_reason = "length"
        elif len(token_ids):
            said = np.asarray(token_ids, np.int32)
            self._append(said, np.zeros(len(said), np.float32), is_action=False)
            self._cover(self._spans[-1].version, len(said))

    def transcript(self) -> Transcript:
        """All of it. ValueError while it goes on."""
        if self.finish_reason is None:
            raise ValueError("the rollout has not ended")
        return Transcript(
            self.token_ids, np.concatenate(self._masks), np.concatenate(self._log_probs), tuple(self._spans),
            tuple(self.turn_rewards), self.finish_reason,
        )  # fmt: skip

    def _append(self, tokens: Int32Array, log_probs: Float32Array, *, is_action: bool) -> None:
        self._tokens.append(tokens)
        self._log_probs.append(log_probs)
        self._masks.append(np.full(len(tokens), is_action))
        self._length += len(tokens)

    def _cover(self, version: int, count: int) -> None:
        if self._spans and self._spans[-1].version == version:
            count += self._spans.pop().count
        self._spans.append(VersionSpan(version, count))
