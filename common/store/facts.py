"""What processes of a run tell each other through the store: small values under names, each with its type.

The names stand in this file only, and only this file reads and writes them. A fact is read as None until somebody has
written it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import Purpose

T = TypeVar("T", int, str)

RunStage = Literal["value_pretraining", "rl", "done"]


class Reads(Protocol):
    """The part of `RunStore` that reads values."""

    def get_value(self, name: str) -> str | None: ...


class Writes(Protocol):
    """The part of `RunStore` that writes values."""

    def set_value(self, name: str, value: str) -> None: ...


@dataclass(frozen=True)
class Fact(Generic[T]):
    """One value of a run.

    Attributes:
        name: in the store.
        kind: turns the stored text back into the value.
    """

    name: str
    kind: Callable[[str], T]

    def read(self, store: Reads) -> T | None:
        """The value; None before it is written. Raises VcppoError when the stored text is not of its type."""
        text = store.get_value(self.name)
        try:
            return None if text is None else self.kind(text)
        except ValueError as error:
            raise VcppoError(
                f"the store has {self.name} = {text!r}, which is not a number: another program wrote it; "
                "start a new run under another run.name"
            ) from error

    def write(self, store: Writes, value: T) -> None:
        """Remember `value` in place of the one before."""
        store.set_value(self.name, str(value))


POLICY_VERSION: Final = Fact("policy_version", int)
"""The newest policy version that was broadcast. Writer: the learner's broadcaster, after each broadcast. Reader: a
generator that starts, to know whether its own weights will do."""

VOCABULARY_SIZE: Final = Fact("vocabulary_size", int)
"""How many tokens the model has. Writer: the learner, before its first prompt. Reader: the buffers, which refuse tokens
beyond it."""

COMMITTED_STEP: Final = Fact("committed_step", int)
"""The newest RL step whose trajectories are settled. Writer: the learner, after a checkpoint. Reader: a learner that
resumes."""

PROMPTS_MADE_WITH: Final = Fact("prompts_made_with", str)
"""Digest of the settings that the open prompts were made with. Writer and reader: the learner when RL begins."""

STAGE: Final[Fact[str]] = Fact("stage", str)
"""What the learner is at (`RunStage`). Writer: the learner. No process reads it: it is for people who look at Redis."""


def next_index(purpose: Purpose) -> Fact[int]:
    """Number of the next prompt to issue for `purpose`.

    Writer: the learner, after it has issued prompts. Readers: a learner that resumes, and the checks of a chaos run.
    """
    return Fact(f"next_index:{purpose}", int)
