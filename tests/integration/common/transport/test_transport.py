"""Sender and receiver over real sockets: nothing is lost, nothing blocks, broken peers cost an error entry."""

from __future__ import annotations

import asyncio
import os
import socket as os_socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import TransportConfig
from vcppo.common.transport import (
    ControlClient,
    ControlError,
    ControlServer,
    ControlTimeout,
    Received,
    TrajectoryReceiver,
    TrajectorySender,
    TransportError,
)
from vcppo.common.transport.ports import free_endpoint
from vcppo.common.transport.sockets import Dealer

CONFIG = TransportConfig(ack_deadline_seconds=0.5, max_message_mib=0.125, credit_window=8)


@pytest.fixture
def receiver() -> Iterator[TrajectoryReceiver]:
    made = TrajectoryReceiver(free_endpoint(), CONFIG)
    yield made
    made.close()


def a_sender(folder: Path, *endpoints: str, config: TransportConfig = CONFIG) -> TrajectorySender:
    return TrajectorySender(endpoints, "generator-0", config, folder)


def take(receiver: TrajectoryReceiver, count: int, ack: bool = True, seconds: float = 20) -> list[Received]:
    """The next `count` different messages."""
    found: dict[str, Received] = {}
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        received = receiver.poll(0.1)
        found |= {one.message_id: one for one in received if one.message_id not in found}
        if ack:
            receiver.ack(received)
    assert len(found) == count, f"{len(found)} of {count}"
    return list(found.values())


def receiver_at(endpoint: str) -> TrajectoryReceiver:
    """In place of one just closed: ZeroMQ frees its port a little after `close` returns."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return TrajectoryReceiver(endpoint, CONFIG)
        except TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def drained(sender: TrajectorySender, receiver: TrajectoryReceiver, seconds: float = 10) -> bool:
    """Whether everything gets acked by a buffer that goes on reading, as buffers do.

    A sender may send again, or for the first time, after the last `poll`: unread, that is never acked.
    """
    deadline = time.monotonic() + seconds
    while not sender.drain(0) and time.monotonic() < deadline:
        received = receiver.poll(0.05)
        for one in received:
            if one.error:
                receiver.refuse(one, one.error)
        receiver.ack(one for one in received if not one.error)
    return sender.drain(0)


def test_everything_arrives_in_order_and_is_forgotten_when_acked(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    sender = a_sender(tmp_path, receiver.endpoint)
    for number in range(100):
        sender.send(f"p{number}@generator-0.0", number.to_bytes(4, "little") * 100)
    received = take(receiver, 100)
    assert [int.from_bytes(one.payload[:4], "little") for one in received] == list(range(100))
    assert {one.sender for one in received} == {"generator-0"}
    assert drained(sender, receiver)
    assert sender.num_unacked == 0
    sender.close()


def test_the_window_bounds_what_is_on_the_wire(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"ack_deadline_seconds": 60.0})
    sender = a_sender(tmp_path, receiver.endpoint, config=config)
    for number in range(50):
        sender.send(f"m{number}", b"x")
    take(receiver, 8, ack=False)
    assert receiver.poll(0.3) == []
    assert sender.num_unacked == 50
    assert not sender.drain(0.05)
    sender.close()


def test_what_is_not_acked_is_sent_again(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    sender = a_sender(tmp_path, receiver.endpoint)
    for number in range(20):
        sender.send(f"m{number}", b"x")
    take(receiver, 8, ack=False)
    assert [one.message_id for one in take(receiver, 20)] == [f"m{number}" for number in range(20)]
    assert drained(sender, receiver)
    sender.close()


def test_a_single_lost_ack_is_made_up_for(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    sender = a_sender(tmp_path, receiver.endpoint)
    sender.send("lost", b"x")
    take(receiver, 1, ack=False)
    deadline = time.monotonic() + 10
    number = 0
    while time.monotonic() < deadline:  # others go on being acked meanwhile
        sender.send(f"m{number}", b"x")
        number += 1
        received = receiver.poll(0.1)
        receiver.ack(received)
        if any(one.message_id == "lost" for one in received):
            break
    else:
        pytest.fail("never sent again")
    assert drained(sender, receiver)  # the newest may be on its way still
    sender.close()


def test_a_buffer_that_restarts_gets_everything(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    sender = a_sender(tmp_path, receiver.endpoint)
    for number in range(30):
        sender.send(f"m{number}", b"x")
    take(receiver, 8, ack=False)
    receiver.close()
    again = receiver_at(receiver.endpoint)
    take(again, 30)
    assert drained(sender, again)
    sender.close()
    again.close()


def test_a_peer_that_hangs_up_at_once_is_not_called_without_pause(tmp_path: Path) -> None:
    listener = os_socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    endpoint = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    sender = a_sender(tmp_path, endpoint)
    sender.send("m", b"x")
    num_calls = 0
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        with suppress(TimeoutError):
            listener.accept()[0].close()
            num_calls += 1
    listener.close()
    assert 2 <= num_calls <= 10
    receiver = receiver_at(endpoint)  # and now a buffer is there
    take(receiver, 1)
    assert drained(sender, receiver)
    sender.close()
    receiver.close()


def test_the_next_buffer_takes_over(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    other = TrajectoryReceiver(free_endpoint(), CONFIG)
    sender = a_sender(tmp_path, receiver.endpoint, other.endpoint)
    sender.send("first", b"x")
    take(receiver, 1)
    assert drained(sender, receiver)
    for number in range(5):
        sender.send(f"m{number}", b"x")
    take(receiver, 5, ack=False)  # it is there, but says nothing more
    take(other, 5)
    assert drained(sender, other)
    other.close()  # and now that one is gone
    sender.send("last", b"x")
    take(receiver, 1)
    sender.close()


def test_with_no_buffer_the_spool_survives_the_process(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"spool_memory_mib": 0.01, "spool_disk_mib": 0.03})
    sender = a_sender(tmp_path, "tcp://127.0.0.1:1", config=config)
    payload = os.urandom(5000)
    assert not sender.is_full
    for number in range(9):
        sender.send(f"m{number}", payload)
    assert sender.is_full
    assert sender.num_unacked == 9
    sender.close()
    with pytest.raises(TransportError, match="closed"):
        sender.send("m9", b"")
    receiver = TrajectoryReceiver(free_endpoint(), CONFIG)
    second = a_sender(tmp_path, receiver.endpoint)
    received = take(receiver, 9)
    assert [one.message_id for one in received] == [f"m{number}" for number in range(9)]
    assert all(one.payload == payload for one in received)
    assert drained(second, receiver)
    assert list(tmp_path.iterdir()) == []
    second.close()
    receiver.close()


def test_an_oversized_message_is_refused_by_name_and_not_sent_for_ever(
    receiver: TrajectoryReceiver, tmp_path: Path
) -> None:
    sender = a_sender(tmp_path, receiver.endpoint)
    sender.send("big", bytes(10 << 20))
    sender.send("small", b"x")
    big, small = take(receiver, 2, ack=False)
    assert "10485760 bytes, transport.max_message_mib" in big.error
    assert len(big.payload) == 4096
    assert small.error == ""
    receiver.refuse(big, big.error)
    receiver.ack([small])
    assert drained(sender, receiver)
    sender.close()


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"hello"],
        [b"trajectory"],
        [b"trajectory", b"id"],
        [b"trajectory", b"\xff\xfe", b"x"],
        [b"trajectory", b"", b"x"],
        [b"trajectory", b"two\nlines", b"x"],
        [b"trajectory", b"i" * 300, b"x"],
        [b"trajectory", b"id", b"x", b"y"],
        [b"trajectory", b"id", bytes(200_000)],
        [b"oversized", b"id", b"x", b"many"],
        [b"oversized", b"id", b"x", b"9" * 5000],
        [b"x"] * 5000,
    ],
    ids=lambda frames: f"{len(frames)}x{frames[0][:10]!r}",
)
def test_malformed_messages_are_reported(receiver: TrajectoryReceiver, frames: list[bytes]) -> None:
    stranger = Dealer(receiver.endpoint, "buffer", b"\xffstranger")
    send(stranger, frames)
    (received,) = receiver.poll(5)
    assert received.error
    receiver.refuse(received, received.error)
    receiver.ack([received])
    send(stranger, [b"trajectory", b"fine", b"x"])
    (fine,) = receiver.poll(5)
    assert (fine.message_id, fine.error) == ("fine", "")
    stranger.close()


def test_a_frame_beyond_the_hard_limit_costs_its_sender_the_connection(receiver: TrajectoryReceiver) -> None:
    hostile, honest = (Dealer(receiver.endpoint, "buffer", name) for name in (b"hostile", b"honest"))
    send(hostile, [b"trajectory", b"id", bytes(1 << 20)])
    send(honest, [b"trajectory", b"id", b"x"])
    assert [one.sender for one in receiver.poll(5)] == ["honest"]
    deadline = time.monotonic() + 10
    while not hostile.is_disconnected() and time.monotonic() < deadline:
        hostile.wait(0.1)
    assert hostile.is_disconnected()
    hostile.close()
    honest.close()


def send(dealer: Dealer, frames: list[bytes]) -> None:
    deadline = time.monotonic() + 10
    while not dealer.send(frames):
        assert time.monotonic() < deadline
        dealer.wait(0.1, to_send=True)


def test_errors_name_endpoint_and_remedy(receiver: TrajectoryReceiver, tmp_path: Path) -> None:
    with pytest.raises(TransportError, match=r"127\.0\.0\.1:\d+: can't listen: .*another process listens there"):
        TrajectoryReceiver(receiver.endpoint, CONFIG)
    with pytest.raises(TransportError, match="must be tcp://"):
        TrajectoryReceiver("nonsense", CONFIG)
    with pytest.raises(TransportError, match="can't connect"):
        a_sender(tmp_path, "nonsense")


class Handlers:
    """A generator's side, in miniature."""

    async def echo(self, **values: Any) -> dict[str, Any]:
        return values

    async def slow(self) -> str:
        await asyncio.sleep(0.5)
        return "late"

    async def fails(self) -> None:
        raise ValueError("wrong shape")

    async def unsendable(self) -> object:
        return object()


@asynccontextmanager
async def serving() -> AsyncIterator[ControlClient]:
    server = ControlServer("127.0.0.1")
    handlers = Handlers()
    methods = {name: getattr(handlers, name) for name in ("echo", "slow", "fails", "unsendable")}
    task = asyncio.create_task(server.serve(methods))
    client = ControlClient(server.endpoint)
    try:
        yield client
    finally:
        client.close()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def ask(client: ControlClient, method: str, deadline: float = 10, **args: Any) -> Any:
    return await asyncio.to_thread(client.call, method, args, deadline)


def test_control_calls() -> None:
    async def check() -> None:
        async with serving() as client:
            log_probs = np.arange(5, dtype=np.float32)
            result = await ask(client, "echo", log_probs=log_probs, name="x", raw=b"\0", many=(1, 2))
            np.testing.assert_array_equal(result["log_probs"], log_probs)
            assert (result["name"], result["raw"], result["many"]) == ("x", b"\0", [1, 2])
            with pytest.raises(ControlError, match=r"tcp://127.*fails: ValueError: wrong shape"):
                await ask(client, "fails")
            with pytest.raises(ControlError, match="no method 'nope'"):
                await ask(client, "nope")
            with pytest.raises(ControlError, match="TypeError"):
                await ask(client, "echo", 10, **{"self": 1})
            with pytest.raises(ControlError, match="control port"):
                await ask(client, "unsendable")

    asyncio.run(check())


def test_a_late_reply_is_never_taken_for_another_calls() -> None:
    async def check() -> None:
        async with serving() as client:
            with pytest.raises(ControlTimeout, match=r"tcp://127.*slow: no answer after 0\.1 s"):
                await ask(client, "slow", 0.1)
            for number in range(20):
                assert await ask(client, "echo", number=number) == {"number": number}
                await asyncio.sleep(0.04)

    asyncio.run(check())


def test_calls_run_beside_each_other() -> None:
    async def check() -> None:
        async with serving() as client:
            started = time.monotonic()
            slow = asyncio.create_task(ask(client, "slow"))
            await asyncio.sleep(0.05)
            assert await ask(client, "echo", x=1) == {"x": 1}
            assert time.monotonic() - started < 0.5
            assert await slow == "late"

    asyncio.run(check())


def test_nobody_there_is_a_timeout() -> None:
    with pytest.raises(ControlTimeout, match=r"tcp://127\.0\.0\.1:1 status: nobody answers there"):
        ControlClient("tcp://127.0.0.1:1").call("status", {}, 0.2)


def test_a_control_server_survives_noise() -> None:
    async def check() -> None:
        async with serving() as client:
            noise = Dealer(client.endpoint, "generator")
            for frames in ([b""], [b"id", b"\xc1"], [b"id", b"\x90"], [b"x"] * 50, [b"i" * 100, b"x"]):
                await asyncio.to_thread(send, noise, frames)
            assert await ask(client, "echo", x=1) == {"x": 1}
            noise.close()

    asyncio.run(check())
