"""Hostile callers against a real control port: garbage and false calls through its ROUTER socket.

    callers (DEALER, raw TCP) ══▶ tests.fuzz.control_victim: ControlServer ─▶ WeightControl ─▶ no engine

What must hold: every call with an id is answered; the process stays alive, its memory is flat, nothing that is out of
bounds reaches the engine; and a good call afterwards is answered as ever.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack
import numpy as np
import zmq

from tests.fuzz import frames
from tests.fuzz.control_victim import MAX_TOKENS, VOCABULARY
from tests.fuzz.rig.harness import resident_mib
from tests.fuzz.rig.mutate import mutate_bytes, odd_key, odd_value
from tests.fuzz.rig.mutate import pack as pack_odd
from tests.fuzz.rig.talk import shout
from vcppo.common.transport import ControlClient
from vcppo.common.transport.control import pack, unpack

_NUM_CALLERS = 3
_WINDOW = 16  # unanswered, of one caller
_ANSWER_SECONDS = 60
_WARM_UP_SHARE = 10


@dataclass
class ControlFigures:
    """What a siege showed; memory in MiB."""

    num_calls: int = 0
    num_answers: int = 0
    num_accepted: int = 0
    seconds: float = 0.0
    resident_before: float = 0.0
    resident_after: float = 0.0
    is_good_one_answered: bool = False

    def lines(self) -> Iterator[str]:
        yield f"{self.num_calls:,} calls in {self.seconds:.1f} s, {self.num_answers:,} answers"
        yield f"{self.num_accepted:,} of them to good calls"
        yield f"memory: {self.resident_before:.0f} MiB warmed up, {self.resident_after:.0f} after"
        yield f"a good call afterwards: {'answered' if self.is_good_one_answered else 'NOT answered'}"


class Victim:
    """The process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.control_victim"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint.startswith("tcp://"), "the control port never came up"

    @property
    def resident_mib(self) -> float:
        assert self._process.poll() is None, "the control port's process died"
        return resident_mib(self._process.pid)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def victim() -> Iterator[Victim]:
    made = Victim()
    try:
        yield made
    finally:
        made.close()


def siege(target: Victim, num_calls: int, seed: int) -> ControlFigures:
    """Send `num_calls`, wait for the answers, then see whether a good call gets through."""
    figures, began = ControlFigures(), time.perf_counter()
    context: zmq.Context[Any] = zmq.Context()
    callers = [_Caller(context, target.endpoint) for _ in range(_NUM_CALLERS)]
    rng = Random()
    try:
        for number in range(num_calls):
            rng.seed(seed << 40 | number)
            caller = callers[number % _NUM_CALLERS]
            caller.send(number, draw(rng), figures)
            if number % 500 == 0 and rng.random() < 0.3:
                shout(target.endpoint, rng)
            if number == num_calls // _WARM_UP_SHARE:
                figures.resident_before = target.resident_mib
        for caller in callers:
            caller.wait_for_all(figures)
    finally:
        for caller in callers:
            caller.socket.close(0)
        context.term()
    figures.num_calls, figures.seconds = num_calls, time.perf_counter() - began
    figures.resident_after = target.resident_mib
    client = ControlClient(target.endpoint)
    try:
        status = client.call("status", {}, _ANSWER_SECONDS)
        figures.is_good_one_answered = status["generator_id"] == "generator-0"
    finally:
        client.close()
    return figures


class _Caller:
    """Sends a call with an id, and beside it what has none; the answers come in the order they are ready."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.set(zmq.SNDTIMEO, _ANSWER_SECONDS * 1000)
        self.socket.connect(endpoint)
        self._waiting: set[bytes] = set()

    def send(self, number: int, message: list[bytes], figures: ControlFigures) -> None:
        if len(message) == 1:  # with an id it is answered
            call_id = b"%d" % number
            self._waiting.add(call_id)
            message = [call_id, *message]
        self.socket.send_multipart(message)
        self._read(figures, _WINDOW)

    def wait_for_all(self, figures: ControlFigures) -> None:
        self._read(figures, 0)

    def _read(self, figures: ControlFigures, most: int) -> None:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while len(self._waiting) > most or self.socket.poll(0):
            left = max(0, int(1000 * (deadline - time.monotonic())))
            assert self.socket.poll(left), f"{len(self._waiting)} calls were not answered in {_ANSWER_SECONDS} s"
            reply = self.socket.recv_multipart()
            if reply[0] in self._waiting:
                self._waiting.discard(reply[0])
                figures.num_answers += 1
                figures.num_accepted += bool(unpack(reply[1]).get("ok"))


_INFO = {"master_address": "127.0.0.1", "master_port": 5000, "rank_offset": 1, "world_size": 2, "group": "g",
         "bind_host": "127.0.0.1", "deadline_seconds": 5.0}  # fmt: skip
_TENSORS = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[2, 3]]}
_CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {}),
    ("pause", {}),
    ("start_weight_update", {}),
    ("update_weights", {"update_info": _TENSORS}),
    ("finish_weight_update", {"policy_version": 3}),
    ("canary", {"token_ids": list(range(12)), "prompt_length": 2}),
    ("canary", {"token_ids": np.arange(12, dtype=np.int32), "prompt_length": 2, "lengths": [6, 6], "num_sampled": 2}),
    ("resume", {}),
    ("abort", {}),
    ("init_weight_transfer_engine", {"init_info": _INFO}),
    ("shutdown_weight_transfer_engine", {}),
    ("dismiss", {"reason": "no"}),
)
_LISTS = (
    [],
    [10**9],
    [VOCABULARY],
    [-1],
    [1.5],
    ["1"],
    [None],
    [1] * (MAX_TOKENS + 1),
    [1] * 70_000,
    [[1]],
    "1",
    7,
    None,
)


def draw(rng: Random) -> list[bytes]:
    """One frame: a call, good or bad, that is to be answered. Several: garbage."""
    chance = rng.random()
    if chance < 0.1:
        return frames.draw_frames(rng)[1:] + [b""] * 3
    method, arguments = rng.choice(_CALLS)
    if chance < 0.3:
        return [mutate_bytes(rng, pack({"method": method, "args": arguments}))]
    changed: dict[Any, Any] = dict(arguments)
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice((*changed, odd_key(rng)))
        inner = changed.get(key)
        if isinstance(inner, dict) and rng.random() < 0.7:
            changed[key] = inner | {rng.choice((*inner, odd_key(rng))): odd_value(rng)}
        else:
            changed[key] = rng.choice(_LISTS) if rng.random() < 0.5 else odd_value(rng)
    call: dict[Any, Any] = {"method": method, "args": changed}
    if chance < 0.36:
        call[rng.choice(("method", "args", odd_key(rng)))] = odd_value(rng)
    try:
        return [pack(call)]
    except (TypeError, ValueError, OverflowError, msgpack.PackException):
        return [pack_odd(odd_value(rng))]
