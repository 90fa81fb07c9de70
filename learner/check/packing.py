"""Does the loaded model compute in a pack what it computes alone, and what plain transformers computes?

Loading proves the architecture on a tiny instance (`learner.packing_proof`). Here it is the model itself, with its
weights, on random tokens and on the run's own text, in float32 where memory allows, so that rounding hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from common.check_lines import NotPossible, Result, failed, passed
from common.trajectory import Trajectory
from learner.check.context import Context, num_bytes
from learner.demonstrations import as_trajectory
from learner.models import POLICY, PolicyModel
from learner.packing_probe import TOLERANCE, differences, plain_values
from learner.packing_proof import SUGGESTION

_LENGTHS = ((4, 6), (5, 20), (3, 12))
_LONG = 256  # tokens: more take a minute on two cores


def packing(context: Context) -> Iterator[Result]:
    """Random tokens, then real text."""
    policy = context.policy
    try:
        context.need(2 * num_bytes(policy), "float32")
        policy.float()
    except NotPossible:
        pass  # in the model's own type, where differences below its rounding don't show
    vocabulary = int(policy.hf_model.config.get_text_config().vocab_size)
    yield compare(policy, random_trajectories(vocabulary, context.config.generator.max_model_len), "random tokens")
    try:
        real = context.trajectories()
    except NotPossible as error:
        yield Result("skipped", f"real text: {error}")
        return
    yield compare(policy, real, "the task's own text")


def compare(policy: PolicyModel, trajectories: Sequence[Trajectory], what: str) -> Result:
    """One line: the mean and largest differences of log-probs, packed against alone and against transformers."""
    with torch.no_grad():
        packed = POLICY.packed(policy, trajectories)
        alone = [POLICY.packed(policy, [each])[0] for each in trajectories]
        plain = plain_values(POLICY, policy.hf_model, trajectories)
    dtype = policy.hf_model.dtype
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    name = str(dtype).removeprefix("torch.")
    found = {"alone": differences(packed, alone), "plain transformers": differences(packed, plain)}
    text = ", ".join(f"against {other} {mean:.1e} (largest {most:.1e})" for other, (mean, most) in found.items())
    summary = f"{what}, {sum(map(len, packed))} log-probs in {name}: {text} nats"
    if all(mean <= tolerance for mean, _ in found.values()):
        return passed(summary)
    return failed(
        f"{summary}; beyond {tolerance:g} it is not rounding",
        f"this model can't be trained on packed sequences: {SUGGESTION}",
    )


def random_trajectories(vocabulary: int, max_model_len: int) -> list[Trajectory]:
    """Some short ones, and one as long as the run's longest, or as `_LONG`."""
    rng = np.random.default_rng(0)
    longest = min(max_model_len, _LONG)
    lengths = [*_LENGTHS, (longest // 4, longest - longest // 4)]
    return [as_trajectory(*(rng.integers(0, vocabulary, n).astype(np.int32) for n in each)) for each in lengths]
