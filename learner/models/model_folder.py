"""What a model folder must be before anything of it is loaded: safetensors, and as many weights as its config asks for.

A pickled ``pytorch_model.bin`` can run code when it is read; and to a config of another, larger model the missing
weights would be made up first, gigabytes of them, and refused afterwards.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from vcppo.common.errors import VcppoError

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_SPARE = 1_000_000  # a new value head, or a few missing weights, which are refused by name later


def check_weights(path: str | Path, auto_class: Any, config: Any, trust_remote_code: bool) -> None:
    """Of a local folder; hub ids are downloaded by transformers, safetensors only. Raises `VcppoError`."""
    folder = Path(path)
    if not folder.is_dir():
        return
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise VcppoError(
            f"model path {str(path)!r} has no *.safetensors; pickled weights (pytorch_model.bin) are not loaded, "
            "they can run code: load the model in transformers where you trust it, and save_pretrained() it again"
        )
    stored = sum(_num_stored(file) for file in files)
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    if wanted > 2 * stored + _SPARE:
        raise VcppoError(
            f"model path {str(path)!r}: its config.json asks for {wanted:,} parameters, its safetensors hold {stored:,}"
            "; give a folder whose config.json and safetensors belong together"
        )


def stored_dtype(path: str | Path) -> torch.dtype | None:
    """Of the weights in a local folder's safetensors; None where they differ, or where they are no local files."""
    found = set()
    for file in Path(path).glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return _DTYPES.get(found.pop()) if len(found) == 1 else None


def _num_stored(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as tensors:
            return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise VcppoError(f"{file}: not readable as safetensors: {error}; restore it or download it again") from error
