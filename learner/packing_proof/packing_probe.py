"""The loaded model itself on packed sequences: against alone, and against plain transformers.

`probe` is for a model that no tiny instance could be made of; `check_packing` is the full report, for `vcppo check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.kernels.attention import PACKED_ATTENTION
from vcppo.learner.packing_proof.proof import SUGGESTION, ModelRefused, Reader, token_ids

# Mean absolute differences beyond which it is not rounding: a pretrained 135M model in bfloat16 differs by 0.04 nats
# from itself in float32, a model whose state leaks into the next sequence by 0.2 to 4.
TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 0.002}
_LENGTHS = ((4, 6), (5, 20), (3, 12))


def probe(reader: Reader, module: nn.Module, model: PreTrainedModel, path: str) -> None:
    """A few random tokens through the whole model: seconds. Raises ModelRefused."""
    rng = np.random.default_rng(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    trajectories = [
        as_trajectory(*(rng.integers(0, vocabulary, n).astype(np.int32) for n in lengths)) for lengths in _LENGTHS
    ]
    try:
        packed = reader.packed(module, trajectories)
        alone = [reader.packed(module, [each])[0] for each in trajectories]
        plain = plain_values(reader, model, trajectories)
    except Exception as error:
        raise ModelRefused(
            f"model {path}: {type(model).__name__} can't be run on packed sequences ({type(error).__name__}: {error}); "
            f"{SUGGESTION}"
        ) from error
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
    for what, expected in (("the same sequence alone", alone), ("plain transformers", plain)):
        mean, largest = differences(packed, expected)
        if not mean <= tolerance:
            raise ModelRefused(
                f"model {path}: {type(model).__name__} on packed sequences differs from {what} by {mean:.3g} on "
                f"average, {largest:.3g} at most; {SUGGESTION}"
            )


def plain_values(reader: Reader, model: PreTrainedModel, trajectories: Sequence[Trajectory]) -> list[Tensor]:
    """What transformers' own forward gives for each sequence, unpacked, with its own attention."""
    with _own_attention(model):
        return [reader.plain(model, *token_ids(each)) for each in trajectories]


def differences(left: Sequence[Tensor], right: Sequence[Tensor]) -> tuple[float, float]:
    """(mean, largest) absolute difference; NaN when anything is not a number."""
    gaps = torch.cat([(a.float() - b.float()).abs() for a, b in zip(left, right, strict=True)])
    return float(gaps.mean()), float(gaps.max())


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    is_training = model.training
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(PACKED_ATTENTION)
        model.train(is_training)
