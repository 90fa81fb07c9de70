"""What an environment takes over as it is from the task whose problems it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vcppo.common.tasks.interface import Finding, Split, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class AsksOfInnerTask:
    """Stands before `Environment` among the bases of a class that sets `_inner`: its data are the inner task's."""

    _inner: Task

    def num_problems(self, split: Split) -> int | None:
        """See `Task.num_problems`: as the inner task says, and so with what follows."""
        return self._inner.num_problems(split)

    def size(self, split: Split) -> int | None:
        """See `Task.size`."""
        return self._inner.size(split)

    def where(self, split: Split, seed: int, number: int) -> str:
        """See `Task.where`."""
        return self._inner.where(split, seed, number)

    def findings(self) -> Iterable[Finding]:
        """See `Task.findings`."""
        return self._inner.findings()

    def left_out(self) -> Mapping[str, int]:
        """See `Task.left_out`."""
        return self._inner.left_out()

    def questions(self, split: Split, count: int) -> list[str]:
        """See `Task.questions`."""
        return self._inner.questions(split, count)

    def tokenizer(self) -> Tokenizer | None:
        """See `Task.tokenizer`."""
        return self._inner.tokenizer()
