"""Does the loaded model compute in a pack what it computes alone, and what plain transformers computes?

Loading proves the architecture on a tiny instance (`vcppo.learner.packing_proof.proof`). Here it is the model itself,
with its weights, on random tokens and on the run's own text, in float32 where memory allows, so that rounding hides
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from vcppo.common.check.check_lines import NotPossible, Result, failed, passed
from vcppo.learner.check.loaded_model import Context, num_bytes
from vcppo.learner.models.packing_check import PackingGap, check_packing
from vcppo.learner.packing_proof.proof import SUGGESTION


def packing(context: Context) -> Iterator[Result]:
    """A line for random tokens and one for real text; each against both."""
    policy = context.policy
    with suppress(NotPossible):  # then in the model's own type, where differences below its rounding don't show
        context.need(2 * num_bytes(policy), "float32")
        policy.float()
    report = check_packing(policy, texts=context.texts)
    for text in dict.fromkeys(gap.text for gap in report.gaps):
        yield line([gap for gap in report.gaps if gap.text == text])


def line(gaps: list[PackingGap]) -> Result:
    """Comparisons on the same tokens, as one line."""
    first = gaps[0]
    found = ", ".join(f"{gap.mean:.1e} from {gap.against} (at most {gap.largest:.1e})" for gap in gaps)
    text = f"{first.text} tokens: {first.num_tokens} packed log-probs in {first.dtype} differ by {found} nats"
    if all(gap.is_good for gap in gaps):
        return passed(text)
    return failed(f"{text}; beyond {first.tolerance:g} it is not rounding", f"it can't be trained packed: {SUGGESTION}")
