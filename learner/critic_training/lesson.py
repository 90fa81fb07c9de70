"""What the critic learns of: batches with their fixed targets, how often it has, and the file that outlives a crash.

Targets stay as they were when the batch was claimed. With lambda_critic = 1 they are Monte-Carlo returns, which no
critic changes (paper, eq. 5); below 1 they hold the values of then, as in every epoch of PPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vcppo.common.errors import VcppoError
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.algorithm.advantages import without
from vcppo.learner.batching.batch import Batch

Float32Array = NDArray[np.float32]
_ARRAYS = ("values", "value_targets", "returns", "mask")


class Estimated(Protocol):
    """What a lesson takes of `vcppo.learner.rl.estimates.Estimates`, ``[A]`` each."""

    @property
    def values(self) -> Float32[Float32Array, "A"]: ...
    @property
    def value_targets(self) -> Float32[Float32Array, "A"]: ...
    @property
    def returns(self) -> Float32[Float32Array, "A"]: ...
    @property
    def mask(self) -> Bool[NDArray[np.bool_], "A"]: ...


@dataclass(frozen=True)
class Lesson:
    """A batch as the critic learns it.

    Attributes:
        values: ``[A]`` V(s_t) when the batch was claimed, which `algorithm.value_clip` refers to.
        value_targets: ``[A]`` R_t.
        returns: ``[A]`` Monte-Carlo returns: what explained variance is measured against.
        mask: ``[A]`` the actions that `algorithm.truncation` lets be trained.
        held_out: numbers of the sequences that the critic is measured on and not trained on.
    """

    batch: Batch
    values: Float32[Float32Array, "A"]
    value_targets: Float32[Float32Array, "A"]
    returns: Float32[Float32Array, "A"]
    mask: Bool[NDArray[np.bool_], "A"]
    held_out: tuple[int, ...] = ()

    @classmethod
    def of(cls, batch: Batch, estimates: Estimated, held_out: Sequence[int] = ()) -> Lesson:
        """Of a batch that is being trained."""
        arrays = {name: getattr(estimates, name) for name in _ARRAYS}
        return cls(batch, **arrays, held_out=tuple(held_out))

    @property
    def trained_mask(self) -> Bool[NDArray[np.bool_], "A"]:
        """``[A]`` `mask` without what is held out."""
        return without(self.mask, self.held_out, self.batch.action_cu_seqlens)

    def for_another_batch(self) -> Lesson:
        """The same once it is no longer the newest: nothing of it is held out."""
        return replace(self, held_out=())


def joined(lessons: Sequence[Lesson]) -> Lesson:
    """One lesson of all of them, in their order; `mask` is each one's `trained_mask`."""
    batch = Batch([each for lesson in lessons for each in lesson.batch.rollouts], lessons[-1].batch.version)
    arrays = {name: np.concatenate([getattr(lesson, name) for lesson in lessons]) for name in _ARRAYS}
    return Lesson(batch, **{**arrays, "mask": np.concatenate([lesson.trained_mask for lesson in lessons])})


def draw_held_out(batch: Batch, fraction: float, seed: int) -> list[int]:
    """The sequences of `batch` that belong to the prompts held out: `fraction` of its prompts, one at least.

    Whole prompts, because the responses to one tell of each other. The same for the same batch, version and seed.
    """
    prompts = list(dict.fromkeys(batch.group_ids))
    number = max(1, round(fraction * len(prompts)))
    order = np.random.default_rng(derive_seed(seed, "critic_held_out", batch.version)).permutation(len(prompts))
    chosen = {prompts[i] for i in order[:number]}
    return [i for i, group in enumerate(batch.group_ids) if group in chosen]


@dataclass
class Study:
    """How far the critic is.

    Attributes:
        lessons: oldest first; the last is of the newest batch.
        num_passes: over the newest batch, the one beside the actor's updates included.
        measured: held-out explained variance after each pass in which it was asked; None: undefined.
        is_done: nothing more is due until the next batch.
    """

    lessons: list[Lesson] = field(default_factory=list)
    num_passes: int = 0
    measured: list[float | None] = field(default_factory=list)
    is_done: bool = False

    def save(self, path: Path) -> None:
        """Write it to a file."""
        tensors: dict[str, NDArray[np.generic]] = {
            "versions": np.array([each.batch.version for each in self.lessons], np.int64),
            "progress": np.array([self.num_passes, self.is_done], np.int64),
            "measured": np.array([np.nan if each is None else each for each in self.measured], np.float64),
        }
        for number, lesson in enumerate(self.lessons):
            payloads = [encode_trajectory(rollout) for rollout in lesson.batch.rollouts]
            tensors[f"{number}/sizes"] = np.array([len(payload) for payload in payloads], np.int64)
            tensors[f"{number}/payloads"] = np.frombuffer(b"".join(payloads), np.uint8)
            tensors[f"{number}/held_out"] = np.array(lesson.held_out, np.int64)
            for name in _ARRAYS:
                tensors[f"{number}/{name}"] = getattr(lesson, name)
        save_file(tensors, path)

    @classmethod
    def load(cls, path: Path) -> Study:
        """What `save` wrote; an empty one when there is no such file, as in a checkpoint of an older version.

        Raises:
            VcppoError: it is no such file.
        """
        if not path.exists():
            return cls()
        try:
            tensors = load_file(path)
            lessons = [_lesson(tensors, i, int(version)) for i, version in enumerate(tensors["versions"])]
            measured = [None if np.isnan(each) else float(each) for each in tensors["measured"]]
            num_passes, is_done = tensors["progress"].tolist()
            return cls(lessons, num_passes, measured, bool(is_done))
        except (SafetensorError, OSError, KeyError, IndexError, ValueError, TypeError, VcppoError) as error:
            raise VcppoError(
                f"{path} holds no responses for the critic ({type(error).__name__}: {one_line(error)}); remove this"
                " checkpoint and the one before it is used"
            ) from error


def _lesson(tensors: dict[str, NDArray[np.generic]], number: int, version: int) -> Lesson:
    data = tensors[f"{number}/payloads"].tobytes()
    ends = np.cumsum(tensors[f"{number}/sizes"].astype(np.int64)).tolist()
    starts = [0, *ends[:-1]]
    batch = Batch.decode([data[start:end] for start, end in zip(starts, ends, strict=True)], version)
    arrays: dict[str, Any] = {name: tensors[f"{number}/{name}"] for name in _ARRAYS}
    for name, array in arrays.items():
        if array.shape != (batch.num_actions,) or array.dtype != (np.bool_ if name == "mask" else np.float32):
            raise ValueError(f"{name} is {array.dtype} {array.shape}, the batch has {batch.num_actions} actions")
    held_out = tensors[f"{number}/held_out"].astype(np.int64).tolist()
    if any(not 0 <= i < len(batch) for i in held_out):
        raise ValueError(f"held_out names sequences beyond the batch's {len(batch)}")
    return Lesson(batch, **arrays, held_out=tuple(held_out))
