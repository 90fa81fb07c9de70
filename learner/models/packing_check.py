"""The whole model on packed sequences, for ``vcppo check``: against itself alone, and against plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vcppo.common.model_folder.tokenizer import TEXTS, load_tokenizer
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.models.models import POLICY, PolicyModel, load_policy
from vcppo.learner.packing_proof.packing_probe import TOLERANCE, differences, plain_values

_MAX_FLOAT32_PARAMETERS = 2_000_000_000  # a larger model would need more memory than the check is worth
_LENGTHS = ((3, 30), (6, 12), (2, 40))  # prompt and response tokens: 93 in all


@dataclass(frozen=True, slots=True)
class PackingGap:
    """One comparison of log-probs of the same tokens.

    Attributes:
        dtype: of the weights: ``bfloat16`` or ``float32``.
        text: ``random`` tokens or ``real`` text.
        against: ``alone`` (each sequence in a pack of its own) or ``transformers`` (its own forward, unpacked).
        mean, largest: absolute differences, nats a token.
        tolerance: what the mean may be.
        num_tokens: compared.
    """

    dtype: str
    text: str
    against: str
    mean: float
    largest: float
    tolerance: float
    num_tokens: int

    @property
    def is_good(self) -> bool:
        """Whether the mean is within the tolerance; a NaN is not."""
        return self.mean <= self.tolerance  # a NaN is not


@dataclass(frozen=True, slots=True)
class PackingReport:
    """All comparisons of one model."""

    model: str
    gaps: tuple[PackingGap, ...]

    @property
    def is_good(self) -> bool:
        """Whether every gap is."""
        return all(gap.is_good for gap in self.gaps)


def check_packing(
    model: str | PolicyModel,
    *,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
    texts: Sequence[str] = TEXTS,
    trust_remote_code: bool = False,
    max_tokens: int | None = None,
) -> PackingReport:
    """Compare packed log-probs. About twenty seconds for 135M parameters on one core, most of it in bfloat16.

    Args:
        model: a folder or hub id, which is loaded once in each of ``dtypes``; or a loaded policy, as it is.
        texts: real text, such as prompts of the run's task.
        max_tokens: generator.max_model_len, see `load_policy`.

    Raises:
        VcppoError: the model can't be loaded, or is refused; see `load_policy`.
    """
    if isinstance(model, PolicyModel):
        path = str(model.hf_model.name_or_path)
        return PackingReport(path, tuple(_gaps(model, path, texts, trust_remote_code)))
    gaps: list[PackingGap] = []
    for dtype in dtypes:
        policy = load_policy(model, dtype=dtype, trust_remote_code=trust_remote_code, max_tokens=max_tokens)
        gaps += _gaps(policy, model, texts, trust_remote_code)
        if sum(parameter.numel() for parameter in policy.parameters()) > _MAX_FLOAT32_PARAMETERS:
            break
    return PackingReport(model, tuple(gaps))


@torch.no_grad()
def _gaps(policy: PolicyModel, path: str, texts: Sequence[str], trust_remote_code: bool) -> list[PackingGap]:
    dtype = next(policy.parameters()).dtype
    gaps = []
    for name, trajectories in (("random", _random(policy)), ("real", _real(path, texts, trust_remote_code))):
        packed = POLICY.packed(policy, trajectories)
        others: dict[str, list[Tensor]] = {
            "alone": [POLICY.packed(policy, [each])[0] for each in trajectories],
            "transformers": plain_values(POLICY, policy.hf_model, trajectories),
        }
        for against, values in others.items():
            mean, largest = differences(packed, values)
            count = sum(len(value) for value in packed)
            type_name = str(dtype).removeprefix("torch.")
            gaps.append(PackingGap(type_name, name, against, mean, largest, TOLERANCE[dtype], count))
    return gaps


def _random(policy: PolicyModel) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    vocabulary = int(policy.hf_model.config.get_text_config().vocab_size)
    return [as_trajectory(*(rng.integers(0, vocabulary, n).astype(np.int32) for n in each)) for each in _LENGTHS]


def _real(path: str, texts: Sequence[str], trust_remote_code: bool) -> list[Trajectory]:
    """As many tokens, cut out of the texts put end to end."""
    tokenizer = load_tokenizer(path, trust_remote_code)
    ids = np.array(tokenizer("\n\n".join(texts), add_special_tokens=False)["input_ids"], np.int32)
    ids = np.resize(ids, sum(prompt + response for prompt, response in _LENGTHS))
    sequences, start = [], 0
    for prompt, response in _LENGTHS:
        sequences.append(as_trajectory(ids[start : start + prompt], ids[start + prompt : start + prompt + response]))
        start += prompt + response
    return sequences
