"""Is what the run will export the model it loaded? A round trip through a temporary folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcppo.common.check.check_lines import NotPossible, Result, failed, passed
from vcppo.common.model_folder.tokenizer import TEXTS, load_tokenizer
from vcppo.learner.check.loaded_model import Context, num_bytes
from vcppo.learner.export import try_export

_REMEDY = "the run's export would not be the trained policy: choose another model.path, and report this"


def export(context: Context) -> Result:
    """Save, load again, compare: every weight bit for bit, and what the tokenizer makes of text."""
    policy, tokenizer = context.policy, context.tokenizer
    size = num_bytes(policy)
    if 1.1 * size > shutil.disk_usage(tempfile.gettempdir()).free:
        raise NotPossible(f"no room for a copy of the model in {tempfile.gettempdir()}: set TMPDIR to another disk")
    context.need(size, "loading the saved copy")
    with tempfile.TemporaryDirectory(prefix="vcppo-check-") as folder:
        try_export(policy, context.config, Path(folder))
        names = sorted(path.name for path in Path(folder).iterdir())
        again = load_tokenizer(folder, context.config.model.trust_remote_code)
        if difference := tokenizer_difference(tokenizer, again, context.texts):
            return failed(f"the saved tokenizer is another one: {difference}", _REMEDY)
    count = sum(1 for _ in policy.parameters())
    return passed(f"{count} weights come back bit for bit, the tokenizer the same: {', '.join(names)}")


def tokenizer_difference(left: Any, right: Any, texts: Sequence[str]) -> str:
    """What the two disagree on, in words; empty: nothing that was tried."""
    for text in (*texts, *TEXTS):
        pair = [tokenizer(text)["input_ids"] for tokenizer in (left, right)]
        if pair[0] != pair[1]:
            return f"{text!r} becomes {pair[0][:12]} and {pair[1][:12]}"
    for name in ("eos_token_id", "bos_token_id", "pad_token_id", "chat_template"):
        values = [getattr(tokenizer, name, None) for tokenizer in (left, right)]
        if values[0] != values[1]:
            return f"{name} is {str(values[0])[:60]!r} and {str(values[1])[:60]!r}"
    return "" if len(left) == len(right) else f"{len(left)} tokens and {len(right)}"
