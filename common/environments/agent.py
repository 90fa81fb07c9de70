"""What a user writes for an agent: a program that asks the policy itself, over HTTP, as often as it likes."""

from __future__ import annotations

import asyncio
import inspect
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from vcppo.common.environments.environment import Environment, Observation, checked
from vcppo.common.tasks.interface import TaskError, Verdict


class Endpoint(NamedTuple):
    """Where an agent asks the policy: `base_url` and `api_key` of any OpenAI client. They serve one rollout.

    Attributes:
        model: the name to ask for.
    """

    base_url: str
    api_key: str
    model: str


class SessionLost(Exception):
    """What a rollout needs is gone, and not by its own fault: raised in `Agent.run`, its prompt begins anew."""


class Agent(Environment):
    """A task whose rollouts are an agent's. A user implements `problems` and `run`.

    It runs in child processes, many rollouts side by side in each. So `run` awaits whatever takes long: code that
    blocks, such as a client that is not async, belongs in ``asyncio.to_thread``.
    """

    is_agent: ClassVar[bool] = True
    _given: Mapping[str, object] = {}
    _running: asyncio.Future[Any] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not inspect.iscoroutinefunction(cls.run):
            raise TaskError(f"{cls.__module__}:{cls.__qualname__}.run is no coroutine function: write `async def run`")

    @abstractmethod
    async def run(self, answer: Mapping[str, object], endpoint: Endpoint) -> float | Verdict:
        """Work on one problem, and say what it came to.

        Args:
            answer: the problem's `Problem.answer`: all that the agent is told.
            endpoint: valid until this returns.

        Returns:
            The reward: a number (above 0: outcome ``correct``, else ``wrong``), or a `Verdict`. One without a number is
            worth 1 when it is correct, else 0. Its components are not kept.
        """

    async def reset(self, answer: Mapping[str, object]) -> None:
        """See `Environment.reset`."""
        self._given = answer

    async def step(self, action: str) -> Observation:
        """The whole rollout: `action` is its `Endpoint` as JSON."""
        endpoint = Endpoint(**json.loads(action))
        self._running = asyncio.ensure_future(self.run(self._given, endpoint))
        try:
            await asyncio.wait((self._running,))
        finally:
            self._running.cancel()
        if self._running.cancelled():
            return Observation(done=True)  # the rollout was dropped: nobody reads this
        return _observation(self._running.result())

    async def close(self) -> None:
        """Ends `run` where it still works: its rollout is over."""
        if self._running is not None:
            self._running.cancel()


def _observation(found: Any) -> Observation:
    """What `run` returned. ValueError names what is wrong."""
    if not isinstance(found, Verdict):
        return checked(Observation(reward=found, done=True))
    reward = float(found.outcome == "correct") if found.reward is None else found.reward
    return checked(Observation(reward=reward, done=True, outcome=found.outcome))
