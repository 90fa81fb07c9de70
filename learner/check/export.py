"""Is what the run will export the model it loaded? A round trip through a temporary folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from common.check_lines import NotPossible, Result, failed, passed
from learner.check.context import Context, num_bytes
from learner.models import load_policy, save_model

_REMEDY = "the run's export would not be the trained policy: choose another model.path, and report this"
_TEXTS = ("Hello  world,\n\tit's 3.14 × 2 — naïve 日本 🙂", "<think>1+1=2</think> \\boxed{2}", "")


def export(context: Context) -> Result:
    """Save, load again, compare: every weight bit for bit, and what the tokenizer makes of text."""
    policy, tokenizer = context.policy, context.tokenizer
    size = num_bytes(policy)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if 1.1 * size > free:
        raise NotPossible(f"no room for a copy of the model in {tempfile.gettempdir()}: set TMPDIR to another disk")
    context.need(size, "loading the saved copy")
    with tempfile.TemporaryDirectory(prefix="vcppo-check-") as folder:
        save_model(policy, folder)
        tokenizer.save_pretrained(folder)
        again = load_policy(
            folder, dtype=policy.hf_model.dtype, trust_remote_code=context.config.model.trust_remote_code
        )
        names = sorted(path.name for path in Path(folder).iterdir())
        changed = changed_weights(policy.hf_model.state_dict(), again.hf_model.state_dict())
        if changed:
            return failed(f"{len(changed)} weights are not what was saved: {', '.join(changed[:3])}", _REMEDY)
        if difference := tokenizer_difference(tokenizer, _load_tokenizer(folder, context)):
            return failed(f"the saved tokenizer is another one: {difference}", _REMEDY)
    num_weights = len(policy.hf_model.state_dict())
    return passed(f"{num_weights} weights come back bit for bit, the tokenizer the same ({', '.join(names)})")


def changed_weights(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    """Names of weights that are missing, new or not equal in every bit."""
    names = sorted({*before, *after})
    return [
        name
        for name in names
        if name not in before
        or name not in after
        or before[name].dtype != after[name].dtype
        or before[name].shape != after[name].shape
        or not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))
    ]


def tokenizer_difference(left: Any, right: Any) -> str:
    """What the two disagree on, in words; empty: nothing that was tried."""
    for text in _TEXTS:
        pair = [tokenizer(text)["input_ids"] for tokenizer in (left, right)]
        if pair[0] != pair[1]:
            return f"{text!r} becomes {pair[0][:12]} and {pair[1][:12]}"
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "chat_template"):
        values = [getattr(tokenizer, name, None) for tokenizer in (left, right)]
        if values[0] != values[1]:
            return f"{name} is {str(values[0])[:60]!r} and {str(values[1])[:60]!r}"
    return "" if len(left) == len(right) else f"{len(left)} tokens and {len(right)}"


def _load_tokenizer(folder: str, context: Context) -> Any:
    from learner.export import load_tokenizer

    model = context.config.model.model_copy(update={"path": folder})
    return load_tokenizer(context.config.model_copy(update={"model": model}))
