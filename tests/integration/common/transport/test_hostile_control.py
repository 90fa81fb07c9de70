"""The control port from both sides: a server under fuzzed calls; a learner whose generators answer with nonsense."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from random import Random
from typing import Any

import pytest
import zmq

from tests.fuzz import frames
from vcppo.common.process.memory_guard import ResidentMemory
from vcppo.common.store.ledger import Member
from vcppo.common.transport import ControlClient, ControlServer
from vcppo.common.transport.control import ControlError
from vcppo.common.transport.generator_calls import GeneratorStatus
from vcppo.learner.weights.fan_out import unable

NUM_CALLS = 3000
MEMORY_MIB = 64.0
Handlers = Mapping[str, Callable[..., Awaitable[Any]]]


@pytest.fixture
def serve() -> Iterator[Callable[[Handlers], str]]:
    """Start a server in a thread of its own; returns its endpoint."""
    ended: list[Callable[[], None]] = []

    def start(handlers: Handlers) -> str:
        loop, ready = asyncio.new_event_loop(), threading.Event()
        endpoint: list[str] = []
        failed: list[BaseException] = []

        async def body() -> None:
            server = ControlServer("127.0.0.1", MEMORY_MIB)
            endpoint.append(server.endpoint)
            ready.set()
            await server.serve(handlers)

        task = loop.create_task(body())

        def run() -> None:
            try:
                loop.run_until_complete(task)
            except asyncio.CancelledError:
                return
            except BaseException as error:  # noqa: BLE001 - shown when the test ends
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(10)

        def end() -> None:
            loop.call_soon_threadsafe(task.cancel)
            thread.join(10)
            assert not failed, failed

        ended.append(end)
        return endpoint[0]

    yield start
    for end in ended:
        end()


async def echo(**arguments: Any) -> Any:
    return arguments


async def half_a_character(**arguments: Any) -> Any:
    raise ValueError("\ud800" * 10_000)


async def unspeakable(**arguments: Any) -> Any:
    return object()


def test_a_server_survives_any_call_and_answers_the_next(serve: Callable[[Handlers], str]) -> None:
    endpoint = serve({"update": echo, "pause": half_a_character, "resume": unspeakable})
    context: zmq.Context[Any] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.set(zmq.LINGER, 0)
    peer.set(zmq.SNDTIMEO, 20_000)
    peer.connect(endpoint)
    rng = Random(0)
    for number in range(NUM_CALLS):
        data = frames.draw(rng)
        call = [b"%d" % number, data[1:]] if data[:1] in b"qr" else frames.split(data[1:])
        peer.send_multipart(call or [b""])
        while peer.poll(0):
            peer.recv_multipart()
    peer.close(0)
    context.term()
    client = ControlClient(endpoint)
    assert client.call("update", {"x": 1}, 20.0) == {"x": 1}
    for method, said in (("pause", r"ValueError: \?\?\?"), ("resume", "TypeError: a object"), ("none", "no method")):
        with pytest.raises(ControlError, match=said) as caught:
            client.call(method, {}, 20.0)
        assert len(str(caught.value)) < 5000
    client.close()


def test_a_message_that_never_ends_is_cut_off(serve: Callable[[Handlers], str]) -> None:
    """It grew a process to 1.5 GiB in a minute, and would have gone on."""
    endpoint = serve({"update": echo})
    context: zmq.Context[Any] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.set(zmq.LINGER, 0)
    peer.set(zmq.RECONNECT_IVL, -1)  # cut off it stays away
    peer.set(zmq.SNDTIMEO, 1000)
    closed = peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    peer.connect(endpoint)
    before = ResidentMemory().mib()
    peak, part = before, bytes(1 << 18)
    deadline = time.monotonic() + 60
    while (
        not closed.poll(1) and time.monotonic() < deadline
    ):  # at most a part a millisecond: both ends are in this process
        peer.send(part, zmq.SNDMORE)  # this message has no end
        peak = max(peak, ResidentMemory().mib())
    assert closed.poll(0)
    assert peak - before < 10 * MEMORY_MIB
    peer.disable_monitor()
    closed.close(0)
    peer.close(0)
    context.term()
    client = ControlClient(endpoint)
    assert client.call("update", {"x": 1}, 20.0) == {"x": 1}
    client.close()


async def a_list(**arguments: Any) -> Any:
    return []


async def no_status(**arguments: Any) -> Any:
    return {"paused": False}


async def a_status(**arguments: Any) -> Any:
    return GeneratorStatus("sound", policy_version=1, epoch=1, paused=False, num_in_flight=0, busy=None)


def test_a_generator_that_answers_nonsense_is_silent_and_the_learner_goes_on(serve: Callable[[Handlers], str]) -> None:
    """An answer that was no map, or an address that was none, ended the learner: it is to drop them by name."""
    endpoints = {
        "list": serve({"status": a_list}),
        "fields": serve({"status": no_status}),
        "address": "nowhere",
        "empty": "",
        "nobody": "tcp://127.0.0.1:1",
        "sound": serve({"status": a_status}),
    }
    members = [Member(name, "generator", endpoint) for name, endpoint in endpoints.items()]
    assert list(unable(members, 1)) == ["list", "fields", "address", "empty", "nobody"]
