"""The critic's loss on a micro-batch, and one optimizer step of the critic by itself, as value pretraining and its
passes in RL take it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vcppo.learner.algorithm.losses import Loss, value_loss
from vcppo.learner.algorithm.value_bins import ValueBins, categorical_value_loss
from vcppo.learner.batching.batch import MicroBatch
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.models.models import CriticOutput


def critic_loss(
    output: CriticOutput,
    value_targets: Tensor,
    bins: ValueBins | None,
    *,
    num_tokens: int,
    mask: Tensor,
    old_values: Tensor | None = None,
    value_clip: float | None = None,
) -> Loss:
    """Cross entropy with bins, half the squared error without. Sums: num_tokens, value_loss.

    Args:
        value_targets, mask, old_values: ``[A]``; see `vcppo.learner.algorithm.losses.value_loss`.
        bins: of the critic's head; `value_clip`, and with it `old_values`, has no meaning with them.
    """
    if bins is not None:
        return categorical_value_loss(output.logits, value_targets, bins, num_tokens=num_tokens, mask=mask)
    return value_loss(
        output.values, value_targets, num_tokens=num_tokens, mask=mask, old_values=old_values, value_clip=value_clip
    )


def critic_step(
    critic: TrainEngine,
    micro_batches: Iterable[MicroBatch],
    value_targets: NDArray[np.float32],
    mask: NDArray[np.bool_],
    *,
    num_tokens: int,
    bins: ValueBins | None = None,
    old_values: NDArray[np.float32] | None = None,
    value_clip: float | None = None,
) -> float:
    """Gradients of the micro-batches add up, then the step. Collective.

    Args:
        micro_batches: of one mini-batch, this rank's.
        value_targets, mask, old_values: ``[A]`` of the whole batch; see `critic_loss`.
        num_tokens: actions of the mini-batch under `mask`, over all ranks.

    Returns:
        This rank's sum of the loss over its actions.
    """
    total = 0.0
    for micro in micro_batches:
        output = critic.forward(micro.packed.to(critic.device))
        device = output.values.device
        loss = critic_loss(
            output, micro.of(value_targets, device), bins, num_tokens=num_tokens, mask=micro.of(mask, device),
            old_values=None if old_values is None else micro.of(old_values, device), value_clip=value_clip,
        )  # fmt: skip
        critic.accumulate(loss.value)
        total += float(loss.sums["value_loss"])
    critic.step()
    return total
