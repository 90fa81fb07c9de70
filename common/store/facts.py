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
from vcppo.common.text.yaml_text import one_line

T = TypeVar("T", int, str)

RunStage = Literal["value_pretraining", "rl", "done"]


class Reads(Protocol):
    """The part of `RunStore` that reads values."""

    def get_value(self, name: str) -> str | None: ...


class Writes(Protocol):
    """The part of `RunStore` that writes values."""

    def set_value(self, name: str, value: str) -> None: ...


class ReadsAndWrites(Reads, Writes, Protocol):
    """Both."""


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
                f"the store has {self.name} = {one_line(text, 40)!r}, which is not a number: another program wrote it; "
                "start a new run under another run.name"
            ) from error

    def write(self, store: Writes, value: T) -> None:
        """Remember `value` in place of the one before."""
        store.set_value(self.name, str(value))

    def stored(self, value: T) -> tuple[str, str]:
        """Name and text, for a call that writes it together with something else."""
        return self.name, str(value)


POLICY_VERSION: Final = Fact("policy_version", int)
"""The newest policy version that was broadcast. Writer: the learner's broadcaster, after each broadcast. Reader: a
generator that starts, to know whether its own weights will do."""

VOCABULARY_SIZE: Final = Fact("vocabulary_size", int)
"""How many tokens the model has. Writer: the learner, before its first prompt. Reader: the buffers, which refuse tokens
beyond it."""

COMMITTED_STEP: Final = Fact("committed_step", int)
"""The newest RL step whose trajectories are settled. Writer: the learner, after a checkpoint, in one script with the
last of them. Reader: a learner that resumes."""

EMPTIED_STEPS: Final = Fact("emptied_steps", str)
"""RL steps, by number with a space between, that were claimed and of which every prompt was rejected. Writers: a
learner that resumes, and `vcppo reject`. Reader: a learner that resumes, for whom they are no gap."""

IN_TRAINING: Final = Fact("in_training", str)
"""RL steps that are being trained or ended a learner, as JSON: how often, and which trajectory is looked at alone.
Writer and reader: the learner (`vcppo.learner.rl.suspects`)."""

PROMPTS_MADE_WITH: Final = Fact("prompts_made_with", str)
"""Digest of the settings that the open prompts were made with. Writer and reader: the learner when RL begins."""

LEFT_OUT: Final = Fact("left_out_groups", str)
"""Groups that dynamic sampling left out, as `vcppo.common.store.left_out` writes them. Writer: the learner, in one
script with their rejection. Readers: the learner, also after a crash, and `vcppo ledger`."""

STAGE: Final[Fact[str]] = Fact("stage", str)
"""What the learner is at (`RunStage`). Writer: the learner. No process reads it: it is for people who look at Redis."""


def next_index(purpose: Purpose) -> Fact[int]:
    """Number of the next prompt to issue for `purpose`.

    Writer: the learner, after it has issued prompts. Readers: a learner that resumes, and the checks of a chaos run.
    """
    return Fact(f"next_index:{purpose}", int)


def emptied_steps(store: Reads) -> list[int]:
    """`EMPTIED_STEPS` as numbers."""
    return [int(step) for step in (EMPTIED_STEPS.read(store) or "").split()]


def note_emptied_step(store: ReadsAndWrites, step: int) -> None:
    """Say that nothing is left of a claimed step, before its last prompt is rejected: a crash in between finds it."""
    steps = emptied_steps(store)
    if step not in steps:
        EMPTIED_STEPS.write(store, " ".join(map(str, [*steps, step])))
