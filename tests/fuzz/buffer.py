"""Hostile peers against a real buffer process: fuzzed frames through its ROUTER socket, a real Redis behind it.

    peers (DEALER, raw TCP) ══▶ python -m vcppo.learner.buffer ──▶ redis-server

What must hold: the buffer stays alive and answers everyone in turn; its memory is flat; dead letters are counted and
bounded; nothing hostile is accepted; and a good trajectory sent afterwards is.
"""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import yaml
import zmq

from tests.fuzz import frames, wire
from tests.fuzz.rig.harness import resident_mib
from tests.fuzz.rig.talk import shout
from tests.integration.conftest import RedisServer
from vcppo.common.config import TransportConfig
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store.run_store import RunStore
from vcppo.common.transport import TrajectorySender
from vcppo.common.transport.frames import REFUSED, TRAJECTORY
from vcppo.common.transport.sockets import HEARTBEAT_SECONDS

TRANSPORT = TransportConfig(ack_deadline_seconds=30.0, max_message_mib=0.125)
MAX_DEAD_LETTERS = 10_000
_PEERS = (b"generator-0", b"generator-1", b"\xff\x1b[2J", b"stranger")
_WARM_UP_SHARE = 10
_ANSWER_SECONDS = 60


@dataclass
class BufferFigures:
    """What an attack showed; memory in MiB."""

    num_frames: int = 0
    num_messages: int = 0
    seconds: float = 0.0
    dead_letters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    resident_before: float = 0.0
    resident_after: float = 0.0
    resident_peak: float = 0.0
    log_bytes: int = 0
    is_good_one_accepted: bool = False

    def lines(self) -> Iterator[str]:
        yield f"{self.num_messages:,} messages of {self.num_frames:,} frames through the socket in {self.seconds:.1f} s"
        yield f"dead letters kept: {self.dead_letters:,} (most: {MAX_DEAD_LETTERS:,}); of the newest:"
        yield from (f"  {count:>9,}  {reason}" for reason, count in self.reasons.most_common(12))
        yield (
            f"buffer's memory: {self.resident_before:.0f} MiB warmed up, {self.resident_after:.0f} after, "
            f"peak {self.resident_peak:.0f}; log {self.log_bytes / 2**20:.1f} MiB"
        )
        yield f"a good trajectory afterwards: {'accepted' if self.is_good_one_accepted else 'NOT accepted'}"


class Target:
    """A buffer process and its Redis, its log in a file."""

    def __init__(self, folder: Path) -> None:
        (folder / "redis").mkdir(parents=True)
        self.redis = RedisServer(folder / "redis")
        self.redis.start()
        self.store: RunStore = self.redis.store()
        self.folder = folder
        self.log = folder / "buffer.log"
        self._process = self._start()
        self.endpoint = self._wait_until_ready()

    def _start(self) -> subprocess.Popen[bytes]:
        tree = {
            "run": {"name": "run", "folder": str(self.folder)},
            "model": {"path": "none"},
            "redis": {"url": self.redis.url},
            "transport": {**TRANSPORT.model_dump(), "receive_memory_mib": 256.0},
            "logging": {"format": "json", "tensorboard": False},
        }
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(tree))
        command = [
            sys.executable,
            "-m",
            "vcppo.learner.buffer",
            "--config",
            str(config),
            "--endpoint",
            "tcp://127.0.0.1:0",
        ]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            ready = [line for line in self.log.read_text().splitlines() if '"ready"' in line]
            if ready:
                return str(json.loads(ready[0])["endpoint"])
            time.sleep(0.05)
        raise AssertionError(f"the buffer never became ready: {self.log.read_text()[-2000:]}")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def resident_mib(self) -> float:
        assert self._process.poll() is None, f"the buffer died: {self.log.read_text()[-2000:]}"
        return resident_mib(self._process.pid)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self.store.close()
            self.redis.kill()


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    made = Target(folder)
    try:
        yield made
    finally:
        made.close()


def attack(victim: Target, num_messages: int, seed: int) -> BufferFigures:
    """Send `num_messages` from four peers, wait until all were dealt with, then see whether a good one gets through."""
    figures, began = BufferFigures(), time.perf_counter()
    victim.store.issue([_prompt(number) for number in range(400)])
    victim.store.lease("generator-0", 300, 3600, 0)
    context: zmq.Context[Any] = zmq.Context()
    peers = [_connect(context, victim.endpoint, identity) for identity in _PEERS]
    rng = Random(seed)
    warm_up = max(1, num_messages // _WARM_UP_SHARE)
    for number in range(num_messages):
        rng.seed(seed << 40 | number)
        at = rng.randrange(len(peers))
        if rng.random() < 0.0005:  # it leaves with acks and messages on the way
            peers[at].close(0)
            peers[at] = _connect(context, victim.endpoint, _PEERS[at])
        message = _draw(rng)
        peers[at].send_multipart(message)
        figures.num_frames += len(message)
        if number % 200 == 0:
            _drain(peers)
            if rng.random() < 0.3:
                shout(victim.endpoint, rng)
            figures.resident_peak = max(figures.resident_peak, victim.resident_mib)
        if number == warm_up:
            figures.resident_before = victim.resident_mib
    _wait_until_dealt_with(peers)
    figures.num_messages, figures.seconds = num_messages, time.perf_counter() - began
    figures.resident_after = victim.resident_mib
    for peer in peers:
        peer.close(0)
    context.term()
    letters = victim.store.dead_letters(2 * MAX_DEAD_LETTERS)
    figures.dead_letters = len(letters)
    figures.reasons = Counter(_kind(letter.detail) for letter in letters)
    figures.log_bytes = victim.log.stat().st_size
    figures.is_good_one_accepted = good_trajectory_is_accepted(victim)
    return figures


def good_trajectory(prompt_id: str) -> bytes:
    """What `_prompt` asks for."""
    return encode_trajectory(
        wire.a_trajectory(
            id=f"{prompt_id}@generator-0.0", prompt_id=prompt_id, group_id="g", task="t", issue_version=0,
            version_spans=(VersionSpan(0, 6),),
        )
    )  # fmt: skip


def _prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", "g", 0, "t", np.arange(4, dtype=np.int32), {}, 0, 0, "rl", 99)


def _connect(context: zmq.Context[Any], endpoint: str, identity: bytes) -> zmq.Socket[bytes]:
    peer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    peer.set(zmq.ROUTING_ID, identity)
    peer.set(zmq.SNDHWM, 50)
    peer.set(zmq.SNDTIMEO, _ANSWER_SECONDS * 1000)  # a buffer that hangs is a failure here
    peer.set(zmq.LINGER, 0)
    peer.connect(endpoint)
    return peer


def _draw(rng: Random) -> list[bytes]:
    chance = rng.random()
    if chance < 0.3:
        return frames.draw_frames(rng)[1:] or [b""]
    prompt_id = f"p{rng.randrange(300)}" if chance < 0.9 else "q"
    name = f"{prompt_id}@generator-0.{rng.randrange(9)}".encode()
    return [TRAJECTORY, name, wire.draw(rng)]


def _drain(peers: list[zmq.Socket[bytes]]) -> None:
    for peer in peers:
        while peer.poll(0):
            peer.recv_multipart()


def _wait_until_dealt_with(peers: list[zmq.Socket[bytes]]) -> None:
    """Messages of a peer are taken in order, so the answer to its last one means that all were."""
    for number, peer in enumerate(peers):
        last = b"last@%d" % number
        peer.send_multipart([TRAJECTORY, last, b"garbage"])
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            assert peer.poll(max(0, int(1000 * (deadline - time.monotonic())))), f"no answer to {peer!r} in time"
            reply = peer.recv_multipart()
            if reply[:2] == [REFUSED, last]:
                break


def good_trajectory_is_accepted(victim: Target) -> bool:
    """Sent by our own sender to the same buffer; the ledger must be exact, too."""
    victim.store.issue([_prompt(399)])
    sender = TrajectorySender([victim.endpoint], "generator-0", TRANSPORT, victim.folder / "spool")
    try:
        sender.send("p399@generator-0.0", good_trajectory("p399"))
        sender.drain(_ANSWER_SECONDS)
    finally:
        sender.close()
    states = {entry.prompt_id: entry.state for entry in victim.store.outstanding()}
    assert victim.store.ledger().is_exact
    return states["p399"] == "buffered"


def _kind(detail: str) -> str:
    """``p17: reward: 1e+300 is …`` → ``reward``."""
    parts = detail.split(": ")
    return parts[1 if parts[0].startswith("p") and parts[0][1:].isdigit() else 0][:24]


def crowd(victim: Target, num_files: int, num_connections: int) -> bool:
    """Hold more connections than the buffer may have files open; then let go. Whether it gets through again."""
    hard = resource.prlimit(victim.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(victim.pid, resource.RLIMIT_NOFILE, (num_files, hard))
    host, port = victim.endpoint.removeprefix("tcp://").split(":")
    held: list[socket.socket] = []
    try:
        for _ in range(num_connections):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex((host, int(port)))
            held.append(peer)
        deadline = time.monotonic() + 3  # it looks after its memory, its members and its log meanwhile
        while time.monotonic() < deadline:
            assert victim.resident_mib
            time.sleep(0.1)
    finally:
        for peer in held:
            peer.close()
    return good_trajectory_is_accepted(victim)


def endless_message(victim: Target, mebibytes: int) -> bool:
    """Send parts of a message that never ends, in ZeroMQ's own protocol (libzmq's sender would hold them back).

    Returns whether the connection was cut before all was sent.
    """
    host, port = victim.endpoint.removeprefix("tcp://").split(":")
    part = b"\x03" + (200_000).to_bytes(8, "big") + bytes(200_000)  # long frame, more to come
    with socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS) as peer:
        peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
        try:
            for _ in range(5 * mebibytes):
                peer.sendall(part)
        except OSError:
            return True
    return False


def leave_while_it_waits(victim: Target, num_messages: int) -> None:
    """Redis is away, so the buffer takes nothing more; a peer with a full queue leaves, then Redis comes back."""
    victim.redis.kill()
    context: zmq.Context[Any] = zmq.Context()
    peer = _connect(context, victim.endpoint, b"generator-1")
    peer.set(zmq.SNDTIMEO, 2000)
    try:
        for number in range(num_messages):
            name = f"p{number}"
            peer.send_multipart([TRAJECTORY, f"{name}@generator-0.0".encode(), good_trajectory(name) + bytes(200_000)])
    except zmq.Again:  # it stopped reading: as it should
        pass
    peer.close(0)
    context.term()
    deadline = time.monotonic() + 3 * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        assert victim.resident_mib
        time.sleep(0.1)
    victim.redis.start()
