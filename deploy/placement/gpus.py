"""The GPUs that processes of ours may use, as the driver (NVML) and CUDA_VISIBLE_DEVICES have them.

NVML (the package nvidia-ml-py of the CUDA locks) needs no CUDA context, so looking takes no memory of a GPU. The one
file that reads devices; what is decided from them is `vcppo.deploy.placement.place`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
BY_BUS = "PCI_BUS_ID"  # NVML's numbers; CUDA's own order has the fastest first


@dataclass(frozen=True)
class Device:
    """A GPU, or a MIG slice of one.

    Attributes:
        name: its word in CUDA_VISIBLE_DEVICES: a number, ``GPU-…`` or ``MIG-…``.
        memory, free: bytes in all, and those nobody has now; None: not known.
        node: NUMA node next to it; None: not known.
        gpu: the GPU it is or lies on; slices of one GPU have it in common.
        is_slice: by MIG. A process sees only one slice.
    """

    name: str
    memory: int | None = None
    free: int | None = None
    node: int | None = None
    gpu: str = ""
    is_slice: bool = False

    @property
    def key(self) -> str:
        """Of the GPU, the same in every container."""
        return self.gpu or self.name


class Slice(NamedTuple):
    """A MIG slice: its UUID, the older form of it, and bytes."""

    uuid: str
    path: str
    memory: int
    free: int


class Gpu(NamedTuple):
    """As NVML lists it; its place in the list is its number by bus."""

    uuid: str
    memory: int
    free: int
    node: int | None
    slices: tuple[Slice, ...] = ()


def read_devices(environment: Mapping[str, str] = os.environ, sys: Path = Path("/sys")) -> list[Device] | None:
    """Devices that a process with this environment sees, in CUDA's order; None: no NVML, or no driver.

    Args:
        sys: where the kernel shows devices.
    """
    gpus = _ask_nvml(sys)
    return None if gpus is None else visible(gpus, environment.get(VISIBLE))


def counted_devices(count: int, words: str | None, memory: int | None = None) -> list[Device]:
    """Where NVML could not be asked: `count` GPUs, by the words of CUDA_VISIBLE_DEVICES or by number."""
    given = [word.strip() for word in (words or "").split(",") if word.strip()]
    names = given if len(given) >= count else [str(number) for number in range(count)]
    return [Device(name, memory, gpu=name, is_slice=name.startswith("MIG-")) for name in names[:count]]


def visible(gpus: Sequence[Gpu], words: str | None) -> list[Device]:
    """What CUDA makes of CUDA_VISIBLE_DEVICES: in that order, up to the first word that names nothing.

    A device that is named twice makes CUDA see none. A GPU that is cut into slices is its first one, when named as a
    whole.
    """
    if words is None:
        return [device for number in range(len(gpus)) for device in _whole(gpus, str(number))]
    found: list[Device] = []
    for word in words.split(","):
        device = _named(gpus, word.strip())
        if device is None:
            break
        found.append(device)
    return found if len({device.name for device in found}) == len(found) else []


def visible_to(devices: Sequence[Device], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment in which a process sees these, the first as ``cuda:0``; empty without devices.

    Numbers are NVML's, unless the user gave numbers or an order: then theirs keep their meaning.
    """
    if not devices:
        return {}
    own_order = {} if VISIBLE in environment or ORDER in environment else {ORDER: BY_BUS}
    return {VISIBLE: ",".join(device.name for device in devices), **own_order}


def _named(gpus: Sequence[Gpu], word: str) -> Device | None:
    if word.isascii() and word.isdecimal():
        return next(iter(_whole(gpus, word)), None) if int(word) < len(gpus) else None
    if word.startswith("GPU-"):
        matching = [number for number, gpu in enumerate(gpus) if gpu.uuid.startswith(word)]
        return _device(gpus[matching[0]], word) if len(matching) == 1 else None
    slices = [(gpu, part) for gpu in gpus for part in gpu.slices if word in (part.uuid, part.path)]
    slices = slices or [(gpu, part) for gpu in gpus for part in gpu.slices if word and part.uuid.startswith(word)]
    if word.startswith("MIG-") and len(slices) == 1:
        gpu, part = slices[0]
        return Device(word, part.memory, part.free, gpu.node, gpu.uuid, is_slice=True)
    return None


def _whole(gpus: Sequence[Gpu], word: str) -> Iterator[Device]:
    """The GPU with this number, or its slices."""
    gpu = gpus[int(word)]
    if not gpu.slices:
        yield _device(gpu, word)
    for part in gpu.slices:
        yield Device(part.uuid, part.memory, part.free, gpu.node, gpu.uuid, is_slice=True)


def _device(gpu: Gpu, word: str) -> Device:
    if gpu.slices:
        part = gpu.slices[0]
        return Device(part.uuid, part.memory, part.free, gpu.node, gpu.uuid, is_slice=True)
    return Device(word, gpu.memory, gpu.free, gpu.node, gpu.uuid)


def _ask_nvml(sys: Path) -> list[Gpu] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [_gpu(pynvml, handle, sys) for handle in handles]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any, sys: Path) -> Gpu:
    memory, uuid = nvml.nvmlDeviceGetMemoryInfo(handle), _text(nvml.nvmlDeviceGetUUID(handle))
    node = _node(sys, _text(nvml.nvmlDeviceGetPciInfo(handle).busId))
    return Gpu(uuid, int(memory.total), int(memory.free), node, tuple(_slices(nvml, handle, uuid)))


def _slices(nvml: Any, handle: Any, uuid: str) -> Iterator[Slice]:
    try:
        cut, _ = nvml.nvmlDeviceGetMigMode(handle)
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if cut else 0
    except nvml.NVMLError:  # a GPU that can't be cut
        return
    for number in range(count):
        with contextlib.suppress(nvml.NVMLError):  # a place without a slice
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            memory = nvml.nvmlDeviceGetMemoryInfo(part)
            ids = nvml.nvmlDeviceGetGpuInstanceId(part), nvml.nvmlDeviceGetComputeInstanceId(part)
            path = f"MIG-{uuid}/{ids[0]}/{ids[1]}"
            yield Slice(_text(nvml.nvmlDeviceGetUUID(part)), path, int(memory.total), int(memory.free))


def _node(sys: Path, bus: str) -> int | None:
    """NUMA node of a PCI device; NVML's bus ids have a longer domain than the kernel's."""
    domain, _, rest = bus.lower().partition(":")
    try:
        node = int((sys / "bus" / "pci" / "devices" / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def nodes_of_cores(cores: Sequence[int], sys: Path = Path("/sys")) -> list[int | None]:
    """NUMA node of each core, as the kernel shows them; None: it shows none."""
    node_of: dict[int, int] = {}
    for folder in (sys / "devices" / "system" / "node").glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            for core in _listed((folder / "cpulist").read_text()):
                node_of[core] = int(folder.name.removeprefix("node"))
    return [node_of.get(core) for core in cores]


def _listed(text: str) -> Iterator[int]:
    """Numbers of the kernel's lists: ``0-3,8``."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
