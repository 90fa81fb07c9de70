"""One session of an agent as a state machine: which tokens a request stands behind. Pure.

    request ─▶ plan ─▶ (the engine samples) ─▶ take
                 │ its messages begin with all that a segment has said and seen, the policy's own replies among them:
                 │     that segment goes on; only the messages behind are encoded
                 ╰ else: a new segment, whose prompt is all its messages

The policy's tokens are kept as they were sampled, in a segment as in an `Episode`. A reply that comes back changed is
another's words, so what stands behind it is a new segment. Each token that the policy sampled is an action of exactly
one segment, and each segment is trained. The one that was sampled last names the rollout. A planned turn that nobody
takes leaves everything as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from vcppo.common.environments.episode import Episode, Sampled, Transcript
from vcppo.common.records import trajectory as records
from vcppo.common.records.trajectory import FinishReason, Float32Array, Int32Array, VersionSpan
from vcppo.common.tasks.interface import ChatMessages
from vcppo.generator.endpoint.refusal import Refusal

# Of the message that a rollout becomes, at most: of a token of a prompt, of a response (its log-prob, mask and share of
# spans too), and of a segment beside the first.
_PROMPT_BYTES, _RESPONSE_BYTES, _SEGMENT_BYTES = 4, 16, 256
Tools = list[dict[str, Any]] | None


class Encoder(Protocol):
    """Messages as tokens. Both raise Refusal for what the model's chat template can't render."""

    def prompt(self, messages: ChatMessages, tools: Tools) -> Sequence[int]:
        """All of a conversation, up to the beginning of the assistant's turn."""

    def behind(self, messages: ChatMessages, tools: Tools, last_token: int) -> Sequence[int]:
        """What stands behind a turn of the policy that ended with `last_token`, up to the beginning of its next."""


class Limits(NamedTuple):
    """Of one session.

    Attributes:
        response: tokens of a segment behind its prompt, what the agent says included.
        sequence: tokens of a segment.
        turns: of the policy, in all segments.
        segments: of the session.
        message_bytes: of the rollout's message, with all segments.
    """

    response: int
    sequence: int
    turns: int
    segments: int
    message_bytes: int = sys.maxsize


@dataclass(eq=False)
class Segment:
    """A prompt and what came behind it.

    Attributes:
        said: all messages so far, the policy's last reply included.
        turns: of the policy, as it wrote them.
        is_cut: it had no room for what the agent, or the policy, wanted to say.
    """

    prompt: Int32Array
    tools: Tools
    episode: Episode
    said: ChatMessages = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    is_cut: bool = False

    @property
    def token_ids(self) -> Int32Array:
        """``[t]``, the prompt included."""
        return np.concatenate([self.prompt, self.episode.token_ids])

    def finish(self, reward: float) -> Transcript:
        """All of it; `reward` is its last turn's."""
        self.episode.observe((), reward, done=not self.is_cut, is_late=self.is_cut)
        return self.episode.transcript()

    def is_before(self, messages: ChatMessages, tools: Tools) -> bool:
        """Whether a request goes on from here, and adds no words of an assistant that the policy did not say."""
        count = len(self.said)
        return (
            self.tools == tools
            and messages[:count] == self.said
            and all(each["role"] != "assistant" for each in messages[count:])
        )


class Finished(NamedTuple):
    """All that a session's policy has sampled.

    Attributes:
        prompt, transcript: of the segment that was sampled last; the reward is its last turn's.
        others: segments, in the order in which they were sampled last. The reward stands in none of them.
    """

    prompt: Int32Array
    transcript: Transcript
    others: tuple[records.Segment, ...]


class Plan(NamedTuple):
    """A turn to be sampled.

    Attributes:
        segment: that goes on, or a new one.
        said: tokens of the agent's, before the turn; of a new segment none: they are its prompt.
        token_ids: ``[t]`` int32, everything before the turn.
        room: tokens that are left for it.
    """

    segment: Segment
    messages: ChatMessages
    said: Sequence[int]
    token_ids: Int32Array
    room: int


class _Turn(NamedTuple):
    """A turn that is over, whatever ended it: another may follow."""

    token_ids: Int32Array
    log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason = "stop"


class Conversation:
    """Of one rollout.

    Attributes:
        num_turns: that the policy has taken, in all segments.
    """

    def __init__(self, encoder: Encoder, limits: Limits) -> None:
        self.num_turns = 0
        self._encoder, self._limits = encoder, limits
        self._segments: list[Segment] = []  # the one sampled last is the last

    def plan(self, messages: ChatMessages, tools: Tools) -> Plan:
        """The turn that answers a request.

        Args:
            messages: in the form of `read_messages`.

        Raises:
            Refusal: it has no room, or can't be encoded.
        """
        # Of several the longest: its messages begin with the others'.
        found = [segment for segment in self._segments if segment.is_before(messages, tools)]
        segment = max(found, key=lambda each: len(each.said), default=None)
        if self.num_turns >= self._limits.turns:
            if segment is not None:
                segment.is_cut = True
            raise Refusal("too_many_turns", f"task.max_turns = {self._limits.turns} are used up: finish the agent")
        return self._first(messages, tools) if segment is None else self._next(segment, messages)

    def take(self, plan: Plan, turn: Sampled, text: str, reply: dict[str, Any]) -> None:
        """The turn was sampled; `text` is what the policy wrote, `reply` the message that the agent gets of it."""
        segment, episode = plan.segment, plan.segment.episode
        if segment in self._segments:
            self._segments.remove(segment)
            episode.observe(plan.said, 0.0, done=False)
        episode.act(_Turn(turn.token_ids, turn.log_probs, turn.version_spans))
        segment.is_cut = turn.finish_reason == "length" and len(turn.token_ids) == plan.room
        segment.said = [*plan.messages, reply]
        segment.turns.append(text)
        self._segments.append(segment)
        self.num_turns += 1

    @property
    def num_segments(self) -> int:
        """That the policy has sampled in."""
        return len(self._segments)

    @property
    def last(self) -> Segment:
        """The one that was sampled last."""
        return self._segments[-1]

    def finish(self, reward: float) -> Finished:
        """What the policy has sampled. ValueError when that is nothing."""
        if not self._segments:
            raise ValueError("the policy was not asked")
        *others, last = self._segments
        return Finished(last.prompt, last.finish(reward), tuple(_as_record(each) for each in others))

    def _first(self, messages: ChatMessages, tools: Tools) -> Plan:
        if len(self._segments) >= self._limits.segments:
            raise Refusal(
                "too_many_segments",
                f"messages: they do not go on from a conversation of this session, and task.max_segments ="
                f" {self._limits.segments} have begun: go on from one of them, with its messages unchanged",
            )
        prompt = np.asarray(self._encoder.prompt(messages, tools), np.int32)
        room = min(self._limits.response, self._limits.sequence - len(prompt))
        if room < 1:
            raise _too_long(f"a prompt of {len(prompt)} tokens, generator.max_model_len = {self._limits.sequence}")
        left = self._left(_PROMPT_BYTES * len(prompt) + _SEGMENT_BYTES * bool(self._segments))
        return Plan(Segment(prompt, tools, Episode(room, self._limits.turns)), messages, (), prompt, min(room, left))

    def _next(self, segment: Segment, messages: ChatMessages) -> Plan:
        before = segment.token_ids
        said = self._encoder.behind(messages[len(segment.said) :], segment.tools, int(before[-1]))
        room = segment.episode.room - len(said)
        if room < 1:
            segment.is_cut = True
            raise _too_long(
                f"{len(said)} more tokens, room for {segment.episode.room} of sampling.max_response_tokens ="
                f" {self._limits.response} (generator.max_model_len = {self._limits.sequence})"
            )
        try:
            left = self._left(_RESPONSE_BYTES * len(said))
        except Refusal:
            segment.is_cut = True
            raise
        tokens = np.concatenate([before, np.asarray(said, np.int32)])
        return Plan(segment, messages, said, tokens, min(room, left))

    def _left(self, more: int) -> int:
        """Tokens that the message has room for behind so many more bytes. Raises Refusal where there is none."""
        held = sum(
            _PROMPT_BYTES * len(each.prompt) + _RESPONSE_BYTES * len(each.episode.token_ids) for each in self._segments
        )
        held += _SEGMENT_BYTES * max(0, len(self._segments) - 1)
        left = (self._limits.message_bytes - held - more) // _RESPONSE_BYTES
        if left < 1:
            raise Refusal(
                "rollout_too_large",
                f"messages: all conversations of the session are one message to the learner, and with {more:,} more"
                f" bytes its {held:,} would be above transport.max_message_mib ="
                f" {self._limits.message_bytes / 2**20:g}: finish the agent, or raise that setting",
            )
        return left


def _as_record(segment: Segment) -> records.Segment:
    made = segment.finish(0.0)
    return records.Segment(
        segment.prompt, made.token_ids, made.action_mask, made.log_probs, made.version_spans, made.finish_reason
    )


def _too_long(text: str) -> Refusal:
    return Refusal("context_length_exceeded", f"messages: {text}")
