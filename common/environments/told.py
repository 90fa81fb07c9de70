"""A response as reward functions, services and judges are told of it. Pure.

What counts as the response of several turns is all that the policy wrote, one turn a line: nothing that an environment
said can earn a reward. Whoever needs to know who said what, and when, asks for the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vcppo.common.environments.environment import Observation
from vcppo.common.tasks.interface import ChatMessages


class Told(NamedTuple):
    """Of one rollout of several turns.

    Attributes:
        prompt: its text, as the model saw it.
        response: the policy's own turns, a line break between two.
        messages: the whole conversation.
    """

    prompt: str
    response: str
    messages: ChatMessages

    @classmethod
    def of(cls, prompt: str, turns: Sequence[str], messages: ChatMessages) -> Told:
        """With `turns` of the policy, as it wrote them."""
        return cls(prompt, "\n".join(turns), messages)


def opening(prompt: str) -> dict[str, Any]:
    """The first message, where only the prompt's tokens are known: all of it as the user's."""
    return {"role": "user", "content": prompt}


def acted(text: str) -> dict[str, Any]:
    """A turn of the policy as a message."""
    return {"role": "assistant", "content": text}


def answered(seen: Observation) -> ChatMessages:
    """What an environment said, as messages; none where it said nothing."""
    if isinstance(seen.content, str):
        return [{"role": "user", "content": seen.content}] if seen.content else []
    return list(seen.content)


def one_turn(prompt: str, response: str) -> ChatMessages:
    """A task of one turn as a conversation."""
    return [opening(prompt), acted(response)]
