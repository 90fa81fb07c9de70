"""What a user writes for a task of several turns: the policy acts, the environment answers, until it is done."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar, NamedTuple, get_args

from vcppo.common.records.trajectory import FinishReason, Outcome
from vcppo.common.rewards.reward_parts import number_of
from vcppo.common.tasks.interface import ChatMessages, Task, TaskError, Verdict

MAX_OBSERVATION = 1 << 18
"""Characters of what an environment says in one turn."""
_OUTCOMES = get_args(Outcome)


class ToolUse(NamedTuple):
    """Tools that were called in one turn, or one rollout.

    Attributes:
        errors: calls that came to nothing.
        seconds: in all of them.
    """

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0

    def and_(self, other: ToolUse) -> ToolUse:
        """Both together."""
        return ToolUse(self.calls + other.calls, self.errors + other.errors, self.seconds + other.seconds)


class Observation(NamedTuple):
    """What an environment answers to one action.

    Attributes:
        content: text, or chat messages. In a task whose prompts are chats a text is one message of role ``user``.
            The policy does not see it when the rollout ends here.
        reward: of the action that was answered. A rollout's reward is the sum over its turns.
        done: the rollout ends.
        outcome: what the rollout came to, for accuracy; only with `done`. None: ``correct`` when the rewards sum to
            more than 0, else ``wrong``.
        tools: which the action called, for the figures.
    """

    content: str | ChatMessages = ""
    reward: float = 0.0
    done: bool = False
    outcome: Outcome | None = None
    tools: ToolUse = ToolUse()


class Environment(Task):
    """A task of several turns. A user implements `problems`, `reset` and `step`; either of the last two may be async.

    The problem's prompt is what the policy sees first. Each rollout has a shallow copy of the task for itself: what
    `reset` and `step` write to ``self`` is this rollout's. What ``__init__`` made is shared: do not change it.

    They run in child processes. A call that takes longer than ``task.verifier_timeout_seconds`` ends its rollout with
    outcome ``timeout``, and one that raises with outcome ``crash``. Calls of an async environment run side by side;
    one that is not async is asked one thing at a time in each of ``task.verifier_processes`` children.
    """

    is_environment: ClassVar[bool] = True
    may_overlap: bool = True
    """Whether calls of one that is async run side by side. False: it waits without being async."""

    @abstractmethod
    def reset(self, answer: Mapping[str, object]) -> Awaitable[None] | None:
        """Make the state of a new rollout.

        Args:
            answer: the problem's `Problem.answer`. The policy never sees it.
        """

    @abstractmethod
    def step(self, action: str) -> Awaitable[Observation] | Observation:
        """Answer one action.

        Args:
            action: the text of the policy's turn, without the end-of-sequence token or stop string that ended it. A
                turn that was cut by its length is not shown: the rollout has ended.
        """

    def prepare(self) -> Awaitable[None] | None:
        """Called once in each child, in its event loop, before the first rollout: connect to what rollouts share."""

    def close(self) -> Awaitable[None] | None:
        """The rollout is over, whatever the reason. Not called when the child process was ended."""

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Nobody asks: `step` judges."""
        raise TaskError(f"{type(self).__name__} is an Environment: `step` judges its turns, there is nothing to verify")


def checked(found: Any) -> Observation:
    """What `step` returned, as one that can be used. ValueError names what is wrong."""
    if not isinstance(found, Observation):
        raise ValueError(f"step() returned a {type(found).__name__}, no Observation")
    if fault := _fault_of(found.content):
        raise ValueError(f"Observation.content {fault}")
    reward = number_of("Observation.reward", found.reward)
    if type(found.done) is not bool:
        raise ValueError(f"Observation.done is a {type(found.done).__name__}, no bool")
    if found.outcome is not None and (found.outcome not in _OUTCOMES or not found.done):
        raise ValueError(f"Observation.outcome = {found.outcome!r}: one of {', '.join(_OUTCOMES)}, and only with done")
    return found._replace(reward=reward, tools=_checked_use(found.tools))


def _checked_use(use: Any) -> ToolUse:
    if not isinstance(use, tuple) or len(use) != len(ToolUse._fields):
        raise ValueError(f"Observation.tools is a {type(use).__name__}, no ToolUse")
    calls, errors, seconds = (
        number_of(f"Observation.tools.{name}", each) for name, each in zip(ToolUse._fields, use, strict=True)
    )
    if not 0 <= errors <= calls or calls % 1 or errors % 1 or seconds < 0:
        raise ValueError(f"Observation.tools = {use}: calls and errors are counts, no more errors than calls")
    return ToolUse(int(calls), int(errors), seconds)


def _fault_of(content: Any) -> str:
    if isinstance(content, str):
        texts = [content]
    elif isinstance(content, list) and content:
        for message in content:
            keys = ("role", "content")
            if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in keys):
                return f"has a message without a role and a content of text: {str(message)[:80]!r}"
            if message.keys() - {"role", "content", "name"} or not isinstance(message.get("name", ""), str):
                return f"has a message with more than role, content and name as text: {str(message)[:80]!r}"
        texts = [text for message in content for text in message.values()]
    else:
        return f"is a {type(content).__name__}, not text or chat messages"
    if (size := sum(map(len, texts))) > MAX_OBSERVATION:
        return f"has {size:,} characters: at most {MAX_OBSERVATION:,}"
    return "has half a character (a lone surrogate), which no tokenizer takes" if any(map(_is_torn, texts)) else ""


def _is_torn(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def outcome_of(rewards: list[float], last: Observation | None) -> Outcome:
    """What a rollout came to whose turns gave these rewards; `last` is what ended it, None when it was cut."""
    if last is None:
        return "wrong"
    if last.outcome is not None:
        return last.outcome
    return "correct" if math.fsum(rewards) > 0 else "wrong"
