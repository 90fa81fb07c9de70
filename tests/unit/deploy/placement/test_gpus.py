"""What NVML and CUDA_VISIBLE_DEVICES say, with an NVML that counts devices we made up."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import ROOT
from vcppo.deploy.placement.gpus import (
    Device,
    Gpu,
    Slice,
    counted_devices,
    nodes_of_cores,
    read_devices,
    visible,
    visible_to,
)

GIB = 2**30
CUT = (Slice("MIG-aa", "MIG-GPU-2222/7/0", 20 * GIB, 19 * GIB), Slice("MIG-bb", "MIG-GPU-2222/8/0", 10 * GIB, 9 * GIB))
PLAIN = [
    Gpu("GPU-1111", 80 * GIB, 79 * GIB, 0),
    Gpu("GPU-1122", 80 * GIB, 79 * GIB, 1),
    Gpu("GPU-3333", 24 * GIB, 20 * GIB, 1),
]
MIXED = [PLAIN[0], Gpu("GPU-2222", 80 * GIB, 79 * GIB, 1, CUT), PLAIN[2]]


def names(gpus: list[Gpu], words: str | None) -> list[str]:
    return [device.name for device in visible(gpus, words)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["2", "0"]),
        (" 1 , 2 ", ["1", "2"]),
        ("0,-1,1", ["0"]),  # nothing after the first that names nothing
        ("0,7,1", ["0"]),
        ("0,nonsense,1", ["0"]),
        ("0,0", []),
        ("GPU-3333,0", ["GPU-3333", "0"]),
        ("GPU-3", ["GPU-3"]),  # a beginning that only one has
        ("GPU-11", []),  # two have it
        ("MIG-aa", []),
    ],
)
def test_words_of_cuda_visible_devices(words: str | None, found: list[str]) -> None:
    assert names(PLAIN, words) == found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (None, ["0", "MIG-aa", "MIG-bb", "2"]),
        ("MIG-bb", ["MIG-bb"]),
        ("MIG-GPU-2222/7/0", ["MIG-GPU-2222/7/0"]),
        ("MIG-b,0", ["MIG-b", "0"]),
        ("1,2", ["MIG-aa", "2"]),  # a GPU that is cut is its first slice
        ("GPU-2222", ["MIG-aa"]),
    ],
)
def test_slices(words: str | None, found: list[str]) -> None:
    assert names(MIXED, words) == found
    for device in visible(MIXED, words):
        assert device.is_slice == device.name.startswith("MIG-")
        assert not device.is_slice or (device.gpu, device.node) == ("GPU-2222", 1)
    assert visible(MIXED, "MIG-bb") == [Device("MIG-bb", 10 * GIB, 9 * GIB, 1, "GPU-2222", is_slice=True)]


@given(st.text(alphabet="0123,-GPUMIG /xab", max_size=20))
def test_whatever_is_in_the_variable(words: str) -> None:
    """Never an error, and no GPU twice by one name."""
    found = names(MIXED, words)
    assert len(set(found)) == len(found)
    assert len(found) <= words.count(",") + 1


def test_what_a_process_is_given() -> None:
    two = visible(PLAIN, None)[1:]
    assert visible_to(two, {}) == {"CUDA_VISIBLE_DEVICES": "1,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    theirs = {"CUDA_VISIBLE_DEVICES": "2,1"}  # in CUDA's own order, which must stay
    assert visible_to(visible(PLAIN, "2,1")[:1], theirs) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert visible_to(two, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) == {"CUDA_VISIBLE_DEVICES": "1,2"}
    assert visible_to([], {}) == {}


def test_without_nvml_they_are_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_devices({}) is None
    assert [device.name for device in counted_devices(2, None)] == ["0", "1"]
    assert counted_devices(1, "MIG-a") == [Device("MIG-a", gpu="MIG-a", is_slice=True)]
    assert [device.name for device in counted_devices(2, "5,3")] == ["5", "3"]


class FakeNvml(ModuleType):
    """As nvidia-ml-py: functions of handles, errors of one class. `gpus` says what is there."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: list[Gpu], *, has_driver: bool = True) -> None:
        super().__init__("pynvml")
        self.gpus, self.has_driver, self.is_up = gpus, has_driver, False

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("Driver Not Loaded")
        self.is_up = True

    def nvmlShutdown(self) -> None:
        self.is_up = False

    def nvmlDeviceGetCount(self) -> int:
        assert self.is_up
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> Gpu:
        return self.gpus[number]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=handle.memory, free=handle.free)

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return handle.uuid.encode() if isinstance(handle, Gpu) else handle.uuid  # bytes in older versions

    def nvmlDeviceGetPciInfo(self, handle: Gpu) -> Any:
        return SimpleNamespace(busId=f"00000000:{self.gpus.index(handle) + 0x3A:02X}:00.0".encode())

    def nvmlDeviceGetMigMode(self, handle: Gpu) -> tuple[int, int]:
        if self.gpus.index(handle) == 2:
            raise self.NVMLError("Not Supported")
        return int(bool(handle.slices)), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Gpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Gpu, number: int) -> Slice:
        if number >= len(handle.slices):
            raise self.NVMLError("Not Found")
        return handle.slices[number]

    def nvmlDeviceGetGpuInstanceId(self, part: Slice) -> int:
        return int(part.path.split("/")[1])

    def nvmlDeviceGetComputeInstanceId(self, part: Slice) -> int:
        return int(part.path.split("/")[2])


@pytest.mark.parametrize("gpus", [[], PLAIN[:1], PLAIN[:2], MIXED, [*PLAIN, *PLAIN, *PLAIN[:2]]], ids=len)
def test_nvml_is_read(gpus: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(gpus)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    for number, gpu in enumerate(gpus):
        if gpu.node is not None:
            folder = tmp_path / "bus" / "pci" / "devices" / f"0000:{gpus.index(gpu) + 0x3A:02x}:00.0"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "numa_node").write_text(f"{gpu.node}\n")
        assert number < 8
    assert read_devices({}, tmp_path) == visible(gpus, None)
    assert read_devices({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == visible(gpus, "0")
    assert not nvml.is_up
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpus, has_driver=False))
    assert read_devices({}, tmp_path) is None


def test_a_node_that_the_kernel_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(PLAIN[:2]))
    folder = tmp_path / "bus" / "pci" / "devices" / "0000:3a:00.0"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text("-1\n")
    found = read_devices({}, tmp_path)
    assert found is not None
    assert [device.node for device in found] == [None, None]


def test_nodes_of_cores(tmp_path: Path) -> None:
    for node, text in enumerate(["0-3,8", "4-7\n"]):
        folder = tmp_path / "devices" / "system" / "node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(text)
    assert nodes_of_cores([0, 3, 4, 7, 8, 9], tmp_path) == [0, 0, 1, 1, 0, None]
    assert nodes_of_cores([0, 1], tmp_path / "none") == [None, None]


def test_what_is_asked_of_nvml_is_there() -> None:
    """vLLM carries a copy of NVIDIA's module; ours is the package itself, with the same functions."""
    found = find_spec("vllm")
    assert found is not None and found.origin is not None
    copy = Path(found.origin).parent / "third_party" / "pynvml.py"
    there = set(re.findall(r"^def (nvml\w+)\(", copy.read_text(), re.MULTILINE))
    source = (ROOT / "deploy" / "placement" / "gpus.py").read_text()
    asked = set(re.findall(r"nvml\.(nvml\w+)", source))
    assert len(asked) > 8
    assert asked <= there
    assert {name for name in vars(FakeNvml) if name.startswith("nvml")} == asked
