"""What a check of part b needs, and in which words it is left out without it. Pure but `is_installed`."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import get_args

from benchmarks import REPOSITORY
from vcppo.common.config import VcppoConfig

REAL_JOB = Path(os.environ.get("REAL_JOB", REPOSITORY / ".cache" / "real-job"))
NO_VLLM = "vLLM is not installed: make setup DEVICE=cuda"


def is_installed(package: str) -> bool:
    """Whether it could be imported."""
    return importlib.util.find_spec(package) is not None


def backends() -> tuple[str, ...]:
    """What weights can come by: the values of broadcast.backend."""
    broadcast = VcppoConfig.model_fields["broadcast"].annotation
    assert broadcast is not None
    return get_args(broadcast.model_fields["backend"].annotation)


def why_no_update(backend: str, *, num_gpus: int, known: tuple[str, ...]) -> str | None:
    """Why weights can't be sent by `backend` here; None: they can. `num_gpus`: 0 where the CPU is checked."""
    if backend not in known:
        return f"{backend}: not built, broadcast.backend is one of {', '.join(known)}"
    if backend == "nccl" and num_gpus == 0:
        return "nccl: it needs CUDA, and the CPU is checked"
    if backend == "nccl" and num_gpus == 1:
        return "nccl: it refuses two ranks on one GPU, and there is one"
    if backend == "ipc" and num_gpus == 0:
        return "ipc: it needs CUDA, and the CPU is checked"
    return None


def why_no_real_job(folder: Path, *, has_vllm: bool) -> str | None:
    """Why the real job can't run; None: it can."""
    if not has_vllm:
        return NO_VLLM
    if not (folder / "done").exists():
        return f"no model in {folder.name}: `make real-job` makes it where ../shared is, or REAL_JOB names its folder"
    return None
