"""Statistics of a step's updates: sums over the actions of all mini-batches, over all ranks in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcppo.common.config import AlgorithmConfig
from vcppo.common.errors import VcppoError
from vcppo.learner.algorithm.losses import Loss
from vcppo.learner.engine.deepspeed_engine import sum_over_ranks
from vcppo.learner.rl.estimates import Part

Float64Array = NDArray[np.float64]


@dataclass
class UpdateStats:
    """Sums over the actions of all mini-batches of a step (this rank's, until `gathered`), and gradient norms.

    Attributes:
        sums: by ``policy/NAME`` and ``critic/NAME``.
        by_staleness: ``[3, num_buckets]`` float64: actions, sum of ratios, actions whose ratio left the clip range.
    """

    num_buckets: int
    sums: dict[str, float] = field(default_factory=dict)
    by_staleness: Float64Array = field(init=False)
    actor_grad_norms: list[float] = field(default_factory=list)
    critic_grad_norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_staleness = np.zeros((3, self.num_buckets), np.float64)

    def add(self, prefix: str, sums: dict[str, Tensor]) -> None:
        """Add a loss' sums, each a scalar tensor, under ``prefix/NAME``.

        Raises:
            VcppoError: one is not finite. Its gradient may be 0 all the same, as that of a clamped NaN is: the step
                would train nothing, and nobody would hear of it.
        """
        # Together: on CUDA each look at a value waits for all work before it.
        values = torch.stack([value.float() for value in sums.values()]).tolist()
        for name, value in zip(sums, values, strict=True):
            key = f"{prefix}/{name}"
            if not math.isfinite(value):
                raise VcppoError(f"{key} is {value} in training: the models' numbers are not finite any more")
            self.sums[key] = self.sums.get(key, 0.0) + value

    def add_policy(self, loss: Loss, ratio: Tensor, part: Part, algorithm: AlgorithmConfig) -> None:
        """One micro-batch, ``[A]`` each. `ratio`: pi / pi_old; how often it left the clip range counts whatever the
        advantage's sign."""
        self.add("policy", loss.sums)
        ratios = ratio.cpu().numpy().astype(np.float64)
        kept = part.mask.cpu().numpy().astype(np.float64)
        outside = (ratios < 1.0 - algorithm.clip_low) | (ratios > 1.0 + algorithm.clip_high)
        bucket = np.clip(part.staleness, 0, self.num_buckets - 1)
        for row, weight in enumerate((kept, kept * ratios, kept * outside)):
            self.by_staleness[row] += np.bincount(bucket, weight, minlength=self.num_buckets)

    def gathered(self) -> UpdateStats:
        """The same over all ranks. Every rank has the same names: each runs every loss, dummies included."""
        names = sorted(self.sums)
        flat = np.concatenate([np.array([self.sums[name] for name in names]), self.by_staleness.ravel()])
        total = sum_over_ranks(flat)
        self.sums = {name: float(value) for name, value in zip(names, total, strict=False)}
        self.by_staleness = total[len(names) :].reshape(3, self.num_buckets)
        return self

    def mean(self, key: str, count: str = "") -> float | None:
        """A sum over its number of actions, the sum `count` if that is another; None when it was not computed."""
        number = self.sums.get(count or f"{key.split('/')[0]}/num_tokens", 0.0)
        return self.sums[key] / number if number and key in self.sums else None
