"""Sockets that come and go leave those that stay alone. In a process of its own: the fault ended them all."""

from __future__ import annotations

import subprocess
import sys

COMINGS_AND_GOINGS = """
import asyncio, gc
from vcppo.common.transport.sockets import AsyncRouter, Dealer, Router, TransportError

def router(kind, endpoint="tcp://127.0.0.1:*"):
    return kind(endpoint, "learner", 1 << 20, 8)

def is_heard(sender, receiver):
    for _ in range(200):
        if sender.send([b"here"]):
            return receiver.wait(5.0) and receiver.receive()[1] == b"here"
        sender.wait(0.05, to_send=True)
    return False

async def main():
    stays = router(Router)
    for number in range(300):
        for kind in (Router, AsyncRouter):
            goes = router(kind)
            if number % 3 == 0:
                goes.restart()
            try:
                router(kind, goes.endpoint)
            except TransportError as error:
                assert "another process listens there" in str(error)
            else:
                raise AssertionError("two on one port")
            goes.close()
            del goes
        for kind in (router, lambda kind: Dealer(stays.endpoint, "generator")):
            forgotten = kind(AsyncRouter)
            forgotten.itself = forgotten  # not closed, and only the collector finds it
        try:
            Dealer("nonsense", "generator")
        except TransportError:
            pass
        if number % 10 == 0:
            gc.collect()
            sender = Dealer(stays.endpoint, "generator")
            assert is_heard(sender, stays), f"dead after {number} came and went"
            sender.close()
    stays.close()
    print("all alive")

asyncio.run(main())
"""


def test_a_socket_that_is_closed_takes_no_other_with_it() -> None:
    """ZeroMQ's one I/O thread hung on the monitor of a ROUTER closed in the wrong order, and with it every socket."""
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", COMINGS_AND_GOINGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "all alive\n", done.stdout + done.stderr
    assert done.stderr == ""
