"""Every escape succeeds without the layers, and fails behind each layer that is said to stop it."""

from __future__ import annotations

import ctypes
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from vcppo.common.sandbox import Isolation, Layer, Layers, kernel, run_program

from .attacks import ATTACKS
from .rig import LIMITS, NOTHING, PYTHON, python


def powerless() -> None:
    """What programs are at least, so that the kernel's own rules do not keep them off a process of root's."""
    kernel.no_new_privileges()
    kernel.no_capabilities()


class Target(NamedTuple):
    folder: str
    public: str
    secret: str
    victims_file: str
    victim: int
    tcp_port: int
    udp_port: int
    unix_path: str
    datagram_path: str
    abstract: str
    shared_memory: int


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """What the attacks are after, all of it this user's own."""
    folder = tmp_path_factory.mktemp("target")
    folder.chmod(0o700)
    public = Path(tempfile.mkdtemp(prefix="vcppo-test-public-"))
    public.chmod(0o777)
    (folder / "secret").write_text("swordfish")
    (folder / "secret").chmod(0o600)
    (folder / "victims_file").write_text("precious")
    victim = subprocess.Popen(
        [PYTHON, "-c", "import time; time.sleep(300)"],
        env={"PASSWORD": "swordfish"},
        preexec_fn=powerless,
    )
    abstract = f"vcppo-{secrets.token_hex(8)}"
    libc, key = ctypes.CDLL(None), secrets.randbelow(2**31 - 1) + 1
    segment = libc.shmget(key, 4096, 0o1600)  # IPC_CREAT
    kinds = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
    sockets = [socket.socket(*kind) for kind in [*kinds, *[(socket.AF_UNIX, socket.SOCK_STREAM)] * 2]]
    sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    addresses = [("127.0.0.1", 0)] * 2 + [str(folder / "socket"), f"\0{abstract}", str(folder / "datagrams")]
    for each, address in zip(sockets, addresses, strict=True):
        each.bind(address)
        if each.type == socket.SOCK_STREAM:
            each.listen(64)
    yield Target(
        folder=str(folder),
        public=str(public),
        secret=str(folder / "secret"),
        victims_file=str(folder / "victims_file"),
        victim=victim.pid,
        tcp_port=sockets[0].getsockname()[1],
        udp_port=sockets[1].getsockname()[1],
        unix_path=str(folder / "socket"),
        datagram_path=str(folder / "datagrams"),
        abstract=abstract,
        shared_memory=key,
    )
    libc.shmctl(segment, 0, None)  # IPC_RMID
    victim.kill()
    victim.wait()
    for each in sockets:
        each.close()
    shutil.rmtree(public)


def attack(name: str, target: Target, layers: Layers) -> str:
    """What it printed; it did run."""
    source = ATTACKS[name].source
    for field, value in target._asdict().items():
        source = source.replace(f"{{{field}}}", str(value))
    may_fork = "seccomp" not in layers  # it is for the filter to refuse
    result = run_program(python("print('TRIED', flush=True)\n" + source, LIMITS._replace(may_fork=may_fork)), layers)
    assert result.stdout.startswith(b"TRIED"), result
    return result.stdout.decode()


CAN_BE_OFF = {
    "ptrace": "/proc/sys/kernel/yama/ptrace_scope",
    "io_uring": "/proc/sys/kernel/io_uring_disabled",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_succeeds_without_layers(name: str, target: Target) -> None:
    """Else the other tests of it show nothing."""
    switch = Path(CAN_BE_OFF.get(name, "/nowhere"))
    if switch.exists() and switch.read_text().strip() != "0":
        pytest.skip(f"this machine refuses it to everyone: {switch}")
    assert "ESCAPED" in attack(name, target, NOTHING)


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, attack in ATTACKS.items() for layer in attack.stopped_by]
)
def test_one_layer_stops_the_attack(name: str, layer: Layer, target: Target, isolation: Isolation) -> None:
    if layer in isolation.refused:
        pytest.skip(f"not here: {isolation.refused[layer]}")
    assert "ESCAPED" not in attack(name, target, frozenset({layer}))


@pytest.mark.parametrize("name", ATTACKS)
def test_all_layers_stop_the_attack(name: str, target: Target, layers: Layers) -> None:
    assert "ESCAPED" not in attack(name, target, layers)
    assert Path(target.victims_file).exists() and Path(target.secret).read_text() == "swordfish"


def test_this_machine_keeps_every_promise(isolation: Isolation) -> None:
    assert isolation.missing == [], isolation.describe()
