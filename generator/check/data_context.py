"""What the generator's checks share: the task and the tokenizer, each loaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

from vcppo.common.check.check_lines import NotPossible
from vcppo.common.config import VcppoConfig
from vcppo.common.tasks import Problem, Split, Task, TaskError, Text, load_task, prompt_lengths
from vcppo.common.tasks.asking import problems_of
from vcppo.generator.vllm_engine.end_tokens import load_tokenizer

T = TypeVar("T")
SEED = 0


class Context:
    """Made at the start; what could not be loaded is not tried twice.

    Args:
        generate: how many responses to make in the end.
    """

    def __init__(self, config: VcppoConfig, generate: int = 0) -> None:
        self.config = config
        self.generate = generate
        self._failed: set[str] = set()

    @property
    def task(self) -> Task:
        """Raises what loading raises, and NotPossible the next time."""
        return self._once("the task", lambda: self._task)

    @property
    def tokenizer(self) -> Any:
        """Raises what loading raises, and NotPossible the next time."""
        return self._once("the tokenizer", lambda: self._tokenizer)

    @cached_property
    def _task(self) -> Task:
        return load_task(self.config.task)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.config.model.path, self.config.model.trust_remote_code)

    @property
    def split(self) -> Split:
        """What is trained on; the held-out problems of a task that has no others."""
        return "held_out" if self.task.size("train") == 0 else "train"

    def problems(self, count: int) -> list[Problem]:
        """The first few problems, fewer where there are no more."""
        size = self.task.size(self.split)
        return problems_of(self.task, self.split, SEED, 0, count if size is None else min(count, size))

    def lengths(self, prompts: Sequence[Text]) -> list[int]:
        """Tokens of each prompt. Raises NotPossible where the chat template fails: the first prompts say how."""
        try:
            return prompt_lengths(self.tokenizer, prompts)
        except TaskError as error:
            raise NotPossible("the prompts can't be made into tokens, see above") from error

    def _once(self, what: str, make: Callable[[], T]) -> T:
        if what in self._failed:
            raise NotPossible(f"{what} can't be loaded, see above")
        try:
            return make()
        except Exception:
            self._failed.add(what)
            raise
