"""TCP ports that stay free until the process meant for them listens there.

A port asked of the kernel (bind to 0) comes from the range the kernel deals out by itself: until it is bound, any
process's listener or outgoing connection on this machine may be given the same one. Engines open dozens of those, and a
client that keeps calling a port of that range can even be connected to itself (TCP's simultaneous open).
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_DEALT_BY_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000  # below are the services everybody knows: 5755 (ours), 6379, 8000, 9090
_HIGHEST = 65_535
_TRIES = 200


def dealt_by_the_kernel() -> range:
    """The ports the kernel gives to whoever asks for none in particular; the usual ones where it does not say."""
    try:
        first, last = (int(word) for word in _DEALT_BY_THE_KERNEL.read_text().split())
    except (OSError, ValueError):  # no Linux: IANA's range
        return range(49_152, 65_536)
    return range(first, last + 1)


def reserved_range(dealt: range) -> range:
    """The larger of the ranges below and above `dealt`, from 10,000 on; `dealt` when both are under 100 ports."""
    below, above = range(_LOWEST, max(dealt.start, _LOWEST)), range(max(dealt.stop, _LOWEST), _HIGHEST + 1)
    larger = max(below, above, key=len)
    return larger if len(larger) >= 100 else dealt


def free_port(host: str = "127.0.0.1", count: int = 1) -> int:
    """The first of `count` neighbouring ports of `host` where nobody listens; chosen by chance, so that two who choose
    at the same time rarely choose the same. Raises OSError when none is found."""
    choices = reserved_range(dealt_by_the_kernel())
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    system = random.SystemRandom()  # a run's seed is for its samples: two runs of one seed want two ports
    for _ in range(_TRIES):
        first = system.randrange(choices.start, choices.stop - count + 1)
        try:
            with ExitStack() as held:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server((host, port), family=family))
        except OSError:
            continue
        return first
    raise OSError(f"{host}: none of {_TRIES} ports tried between {choices.start} and {choices.stop - 1} is free")


def free_endpoint() -> str:
    """For `transport.endpoints`: a free port of this machine's loopback."""
    return f"tcp://127.0.0.1:{free_port()}"
