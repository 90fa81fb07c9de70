"""What is asked of a source of rewards, what it says, and the errors of asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vcppo.common.environments.told import one_turn
from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import FinishReason, Outcome
from vcppo.common.rewards.reward_parts import BASE, SOURCE
from vcppo.common.tasks import ChatMessages, Verdict


class Asked(NamedTuple):
    """One response, and what the task's own verifier says of it.

    Attributes:
        id: of the prompt; the same when it is asked about again.
        prompt: its text, as the model saw it.
        num_tokens: of the response.
        turn_rewards: of an environment's turns; None: the task has one turn, and the source's number is the base.
        messages: of several turns, the whole conversation.
    """

    id: str
    prompt: str
    answer: Mapping[str, object]
    response: str
    finish_reason: FinishReason
    num_tokens: int
    verdict: Verdict
    turn_rewards: tuple[float, ...] | None = None
    messages: ChatMessages | None = None

    @property
    def conversation(self) -> ChatMessages:
        """All that was said, prompt and response included."""
        return one_turn(self.prompt, self.response) if self.messages is None else self.messages

    @property
    def number_is(self) -> str:
        """The part of the reward that the source's number is."""
        return BASE if self.turn_rewards is None else SOURCE


class Said(NamedTuple):
    """What a source says of one response.

    Attributes:
        reward: its number, finite.
        outcome: instead of the verifier's; None: that stays.
        components: more parts of the reward.
    """

    reward: float
    outcome: Outcome | None = None
    components: Mapping[str, float] = {}


@dataclass(frozen=True)
class Answers:
    """An answered request.

    Attributes:
        said: by item id.
        faults: item id → why what was said of it is none. Every item is in one of the two.
        strange: how many answers are of no item that was asked about.
    """

    said: Mapping[str, Said]
    faults: Mapping[str, str] = field(default_factory=dict)
    strange: int = 0


class Asker(Protocol):
    """One kind of source: how a request is made and read."""

    async def request(self, items: Sequence[Asked]) -> Answers:
        """Ask about these. Raises RequestFailed."""

    async def close(self) -> None:
        """Let its connections go."""


class RequestFailed(VcppoError):
    """A request has no answer.

    Attributes:
        by_items: the source was reached and could not answer this request: an item in it may be why.
    """

    def __init__(self, text: str, *, by_items: bool = False) -> None:
        super().__init__(text)
        self.by_items = by_items


class SourceAway(VcppoError):
    """A source of rewards stayed away for longer than its patience_seconds."""


class NoReward(VcppoError):
    """A source of rewards answers, and never with a reward for this response."""
