"""What an advantage estimator is given and gives back here: plain numpy, padded, nothing of ours.

Copy this file's idea, not its types: anything with an `estimate` of this shape can be checked
(``python -m tests.conformance my_module:MyEstimator``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
FinishReason = Literal["stop", "length"]
Truncation = Literal["terminal", "bootstrap", "mask"]
Kind = Literal["gae", "group_mean", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


@dataclass(frozen=True)
class Shard:
    """One rank's responses, S of them (S may be 0), padded to W columns.

    Attributes:
        rewards: ``[S, W]`` float32, 0 but for one outcome a response, on whatever token the environment gave it.
        values: ``[S, W+1]`` float32, V of the state before each token; column ``lengths[s]`` is V after the last one.
            Beyond it and at tool text stand numbers as a critic would give them, or rubbish: neither may matter.
        action_mask: ``[S, W]`` bool, tokens the policy chose; tool text and padding are False.
        lengths: ``[S]`` int64, tokens of each response, tool text included.
        finish_reasons: ``S`` of ``stop`` (a true end) or ``length`` (cut off).
        groups: ``S`` numbers of the prompts they answer; a group is never on two ranks.
    """

    rewards: Float32Array
    values: Float32Array
    action_mask: BoolArray
    lengths: Int64Array
    finish_reasons: tuple[FinishReason, ...]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """``truncation``: a cut response is an end like EOS with its outcome (terminal); its outcome was not seen and V
    after the last token stands in (bootstrap); or it is not trained on (mask). ``whiten``: over all shards.
    ``kind``: GAE, or an estimator without a critic (GRPO, RLOO, REINFORCE++): of these advantages count only."""

    lambda_actor: float = 0.95
    lambda_critic: float = 0.95
    gamma: float = 1.0
    truncation: Truncation = "terminal"
    whiten: bool = False
    kind: Kind = "gae"

    @property
    def centres(self) -> bool:
        """Whether whitening takes the mean away too: not where a group's own baseline has."""
        return self.kind not in ("group_mean", "leave_one_out")


@dataclass(frozen=True)
class Estimate:
    """Of one shard; only what stands at actions is looked at.

    Attributes:
        advantages, value_targets: ``[S, W]``.
        trained: ``[S, W]`` bool, actions that enter the loss; None: all of them.
    """

    advantages: NDArray[np.floating]
    value_targets: NDArray[np.floating]
    trained: BoolArray | None = None


class Unsupported(Exception):
    """Raised by an estimator that does not offer what is asked for: reported as such, not as a failure."""


class Estimator(Protocol):
    """What is checked."""

    name: str

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        """One `Estimate` a shard. Shards are what ranks hold of one batch: whitening is over all of them."""
        ...


def concatenate(shards: Sequence[Shard]) -> Shard:
    """All shards as one, padded with zeros to the widest."""
    width = max((shard.rewards.shape[1] for shard in shards), default=0)

    def widened(array: NDArray[np.generic], columns: int) -> NDArray[np.generic]:
        return np.pad(array, ((0, 0), (0, columns - array.shape[1])))

    return Shard(
        rewards=np.concatenate([widened(shard.rewards, width) for shard in shards]),  # type: ignore[arg-type]
        values=np.concatenate([widened(shard.values, width + 1) for shard in shards]),  # type: ignore[arg-type]
        action_mask=np.concatenate([widened(shard.action_mask, width) for shard in shards]),  # type: ignore[arg-type]
        lengths=np.concatenate([shard.lengths for shard in shards]),
        finish_reasons=tuple(reason for shard in shards for reason in shard.finish_reasons),
        groups=tuple(group for shard in shards for group in shard.groups),
    )


def split(estimate: Estimate, shards: Sequence[Shard]) -> list[Estimate]:
    """The inverse of `concatenate`, for its result."""
    parts, begin = [], 0
    for shard in shards:
        rows, columns = shard.rewards.shape
        at = (slice(begin, begin + rows), slice(0, columns))
        trained = None if estimate.trained is None else estimate.trained[at]
        parts.append(Estimate(estimate.advantages[at], estimate.value_targets[at], trained))
        begin += rows
    return parts
