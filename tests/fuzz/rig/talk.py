"""What hostile peers of a real socket share."""

from __future__ import annotations

import socket
from random import Random


def shout(endpoint: str, rng: Random) -> None:
    """A connection that does not speak ZeroMQ, or half of it."""
    host, port = endpoint.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        peer.sendall(rng.choice((greeting, greeting[:20], b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(3000))))
