"""The prompts a generator has in hand: a task takes each through, and a place in vLLM is what there is least of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable


class InFlight:
    """One task per prompt, named by its id.

    Attributes:
        leased: ids whose lease is ours as far as we know. A lease outlives its task: until the store says it is no
            longer ours, which is so once the trajectory is appended.
        place_freed: set whenever a place in vLLM is free again.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.leased: set[str] = set()
        self.place_freed = asyncio.Event()
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._generating: set[asyncio.Task[None]] = set()  # those of `_tasks` that have, or wait for, a place in vLLM

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def num_generating(self) -> int:
        """How many have, or wait for, a place in vLLM."""
        return len(self._generating)

    @property
    def prompt_ids(self) -> list[str]:
        """Of all prompts with a task, in the order they were started."""
        return list(self._tasks)

    def start(self, prompt_id: str, work: Coroutine[object, object, None]) -> None:
        """Take a leased prompt through by `work`."""
        self.leased.add(prompt_id)
        task = asyncio.create_task(work, name=prompt_id)
        task.add_done_callback(self._ended)  # runs even if the task is cancelled before it began
        self._tasks[prompt_id] = task
        self._generating.add(task)

    def take_place(self, task: asyncio.Task[None] | None) -> None:
        """This task's prompt wants a place in vLLM again: it has another turn."""
        assert task is not None
        self._generating.add(task)

    def free_place(self, task: asyncio.Task[None] | None) -> None:
        """vLLM is done with this task's prompt."""
        assert task is not None
        self._generating.discard(task)
        self.place_freed.set()

    async def cancel(self, prompt_ids: Iterable[str]) -> list[str]:
        """End the tasks of these; the ids of those that had one."""
        found = {name: self._tasks[name] for name in prompt_ids if name in self._tasks}
        for task in found.values():
            task.cancel()
        await asyncio.gather(*found.values(), return_exceptions=True)
        return list(found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.free_place(task)
        if self._tasks.get(task.get_name()) is task:  # a prompt handed back may be with us again
            del self._tasks[task.get_name()]
        self._on_end()
