"""What is run, within which limits, behind which layers, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from vcppo.common.errors import VcppoError

Layer = Literal["namespaces", "landlock", "seccomp", "user"]
Layers = frozenset[Layer]
Ending = Literal["exited", "signalled", "timeout", "flood"]

# What must hold, and any one layer of which is enough for it.
PROMISES: Mapping[str, Layers] = {
    "no network": frozenset({"seccomp", "namespaces"}),
    "no files but its own": frozenset({"landlock", "namespaces"}),
    "no hold on other processes": frozenset({"seccomp", "namespaces"}),
}


class SandboxError(VcppoError):
    """The sandbox itself failed; nothing is known about the program."""


class Limits(NamedTuple):
    """The most one program may use."""

    cpu_seconds: float = 10.0
    """Processor time of all its threads together; above it the ending is ``timeout``."""

    wall_seconds: float = 20.0
    """Time by the clock; likewise."""

    memory_bytes: int = 512 * 2**20
    """Address space, of each process where `may_fork`."""

    num_tasks: int = 16
    """Threads, and processes where `may_fork`."""

    may_fork: bool = False
    """May start processes (only seccomp can refuse them). Without, `memory_bytes` is for all there is."""

    open_files: int = 64
    """Descriptors of each process."""

    file_bytes: int = 16 * 2**20
    """Size of one file."""

    disk_bytes: int = 32 * 2**20
    """Size of the working folder; without namespaces nothing can be written at all."""

    output_bytes: int = 2**20
    """Of stdout, and of stderr; above it the ending is ``flood``."""


class Job(NamedTuple):
    """A program to run.

    Attributes:
        argv: command, its first word an absolute path; its working folder holds `files`.
        readable: absolute paths that it may read and execute, beside the system's libraries and programs.
        files: names and contents, put into the working folder, where the program can't change them
            unless it has a folder of its own (namespaces).
        env: the whole environment.
        stdin: what it can read there.
    """

    argv: tuple[str, ...]
    readable: tuple[str, ...] = ()
    files: Mapping[str, bytes] = MappingProxyType({})
    env: Mapping[str, str] = MappingProxyType({})
    stdin: bytes = b""
    limits: Limits = Limits()


class Result(NamedTuple):
    """What a program did.

    Attributes:
        ending: ``exited`` or ``signalled`` by itself; ``timeout`` or ``flood``: stopped at a limit.
        exit_code: of ``exited``; minus the signal's number else.
        stdout, stderr: at most ``output_bytes`` each.
        cpu_seconds: processor time, user and system.
    """

    ending: Ending
    exit_code: int
    stdout: bytes
    stderr: bytes
    cpu_seconds: float


class Isolation(NamedTuple):
    """The layers this machine allows, and why not the others."""

    layers: Layers
    refused: Mapping[Layer, str]

    @property
    def missing(self) -> list[str]:
        """Promises that none of the layers keeps."""
        return [promise for promise, keepers in PROMISES.items() if not keepers & self.layers]

    def describe(self) -> str:
        """One line for a log."""
        refused = "".join(f"; no {layer}: {reason}" for layer, reason in self.refused.items())
        missing = f"; NOT PROMISED: {', '.join(self.missing)}" if self.missing else ""
        return f"limits, {', '.join(sorted(self.layers)) or 'nothing else'}{refused}{missing}"
