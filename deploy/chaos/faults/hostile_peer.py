"""A peer with the run's keys that sends what nobody should: ``python -m vcppo.deploy.chaos.faults.hostile_peer``.

    data      garbage and false trajectories to a buffer      each is refused by name
    replay    what is buffered already, once more             each is acknowledged as a duplicate
    control   garbage and false calls to a generator          each is answered with an error

What got no such answer by the deadline is counted in the line ``siege_over``. A connection that is lost, as when the
peer is killed by another fault, is made again, and what was not answered is sent again. Waits for: answers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import sys
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.store.access import connect_store
from vcppo.common.store.run_store import RunStore, StoreError
from vcppo.common.transport import ControlClient, ControlError, ControlTimeout, use_keys
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.common.transport.frames import ACK, OVERSIZED, REFUSED, TRAJECTORY
from vcppo.common.transport.sockets import Dealer

log = structlog.get_logger(__name__)

OVER = "siege_over"
_NUM_MESSAGES = 120
_WINDOW = 16  # unanswered at once
_SILENCE_SECONDS = 8.0  # then the connection is made anew
_CALL_SECONDS = 8.0
_OVERSIZE_BYTES = 4 << 20
_NEVER_ISSUED = "rl-99999999-0"


def main() -> int:
    """Send, count the answers, say so. Exit code 0 however it went: the line is the result."""
    parser = process_parser("python -m vcppo.deploy.chaos.faults.hostile_peer", __doc__)
    parser.add_argument("--what", choices=["data", "replay", "control"], required=True)
    parser.add_argument("--name", required=True, help="how the peer calls itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="give up after so long")
    parser.add_argument("--generator", help="whose control port")
    given = parser.parse_args()
    return run_process(given, given.name, lambda config: besiege(config, given))


def besiege(config: VcppoConfig, given: argparse.Namespace) -> None:
    """One siege, to its line ``siege_over``."""
    watchdog.stage("siege", endless=True)
    use_keys(config, "learner" if given.what == "control" else "generator")
    deadline = time.monotonic() + given.seconds
    store = connect_store(config)
    try:
        if given.what == "control":
            unanswered = call_falsely(store, given.generator, Random(given.seed), deadline)
        else:
            endpoint = Random(given.seed).choice(endpoints_of(config))
            if given.what == "data":
                _shout(endpoint, Random(given.seed))
                pending, wanted = false_messages(given.name, Random(given.seed)), REFUSED
            else:
                pending, wanted = buffered_messages(store, deadline), ACK
            unanswered = send_all(endpoint, given.name, pending, wanted, deadline)
    finally:
        store.close()
    log.info(OVER, what=given.what, unanswered=unanswered)


def send_all(endpoint: str, name: str, pending: dict[str, list[list[bytes]]], wanted: bytes, deadline: float) -> int:
    """How many of `pending` (id -> messages, the last of which has that id) were not answered by `wanted`."""
    on_wire: set[str] = set()
    names = (f"{name}.{number}".encode() for number in itertools.count())  # a new one a connection: no mix-up
    dealer, heard = Dealer(endpoint, "buffer", next(names)), time.monotonic()
    try:
        while pending and time.monotonic() < deadline:
            if dealer.is_disconnected() or time.monotonic() - heard > _SILENCE_SECONDS:
                dealer.close()
                on_wire.clear()
                dealer, heard = Dealer(endpoint, "buffer", next(names)), time.monotonic()
            for message_id in [each for each in pending if each not in on_wire][: _WINDOW - len(on_wire)]:
                if not dealer.send(pending[message_id][0]):
                    break
                if len(pending[message_id]) > 1:  # once: it may cost the connection
                    del pending[message_id][0]
                    break
                on_wire.add(message_id)
            dealer.wait(0.5, to_send=len(on_wire) < min(_WINDOW, len(pending)))
            while (frames := dealer.receive()) is not None:
                heard = time.monotonic()
                if frames[0] == wanted and len(frames) > 1:
                    for answered in frames[1].decode(errors="replace").split("\n"):
                        pending.pop(answered, None)
                        on_wire.discard(answered)
    finally:
        dealer.close()
    return len(pending)


def false_messages(name: str, rng: Random) -> dict[str, list[list[bytes]]]:
    """Id -> messages: one that is refused by this id, and often one in front that has no id to refuse."""
    found = {}
    for number in range(_NUM_MESSAGES):
        message_id = f"{_NEVER_ISSUED}@{name}.{number}"
        size = rng.choice((0, 1, 4, 60, 1000))
        payload = rng.choice((b"", b"vct1", b"\x80\x04\x95", b"PK\x03\x04", b"vct1\xff\xff\xff\x7f")) + rng.randbytes(
            size
        )
        messages = [[TRAJECTORY, message_id.encode(), payload]]
        if rng.random() < 0.5:
            messages.insert(0, rng.choice(_formless(rng)))
        found[message_id] = messages
    return found


def _formless(rng: Random) -> list[list[bytes]]:
    return [
        [b""],
        [rng.randbytes(20)] * rng.choice((1, 4, 40)),
        [TRAJECTORY],
        [TRAJECTORY, b"\x1b[2J\n", b"x"],
        [TRAJECTORY, b"x" * 4000, b"x"],
        [OVERSIZED, b"a@b.0", b"x", rng.choice((b"9" * 40, b"-1", b"\xb2"))],
        [TRAJECTORY, b"a@b.0", bytes(_OVERSIZE_BYTES)],
    ]


def buffered_messages(store: RunStore, deadline: float) -> dict[str, list[list[bytes]]]:
    """Trajectory id -> the message that brought what is buffered now; empty when none was until the deadline."""
    while time.monotonic() < deadline:
        found = [entry for entry in store.outstanding() if entry.state == "buffered" and entry.trajectory_id]
        try:
            payloads = store.payloads([entry.prompt_id for entry in found])
        except StoreError:  # one was committed meanwhile
            continue
        if found:
            return {
                str(entry.trajectory_id): [[TRAJECTORY, str(entry.trajectory_id).encode(), payload]]
                for entry, payload in zip(found, payloads, strict=True)
            }
        store.wait_for_append(1.0)
    return {}


def call_falsely(store: RunStore, generator: str, rng: Random, deadline: float) -> int:
    """How many false calls were not answered with an error."""
    endpoint = _endpoint_of(store, generator)
    if endpoint is None:
        return len(FALSE_CALLS)
    _whisper(endpoint, rng)
    unanswered = 0
    for method, arguments in rng.sample(FALSE_CALLS, len(FALSE_CALLS)):
        unanswered += not _is_refused(lambda: _endpoint_of(store, generator), method, arguments, deadline)
    return unanswered


FALSE_CALLS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("__class__", {}),
    ("\x1b[2J" * 100, {"x": [[[]]]}),
    ("status", {"verbose": True}),
    ("canary", {"token_ids": [10**9] * 8, "prompt_length": 2}),
    ("canary", {"token_ids": [-1] * 8, "prompt_length": 2}),
    ("canary", {"token_ids": [2**31] * 8, "prompt_length": 2}),
    ("canary", {"token_ids": [1.5] * 8, "prompt_length": 2}),
    ("canary", {"token_ids": [], "prompt_length": 0}),
    ("canary", {"token_ids": [1] * 60_000, "prompt_length": 2}),
    ("canary", {"token_ids": [1] * 8, "prompt_length": 8}),
    ("canary", {"token_ids": [1] * 8, "prompt_length": 2, "lengths": [4, 5]}),
    ("canary", {"token_ids": [1] * 8, "prompt_length": 2, "num_sampled": 10**9}),
    ("finish_weight_update", {"policy_version": "7"}),
    ("update_weights", {"update_info": None}),
    ("init_weight_transfer_engine", {"init_info": [1]}),
    ("pause", {"for_ever": True}),
    ("dismiss", {}),
    ("resume", {"policy_version": 1}),
    ("abort", {"reason": "none"}),
]
"""None of them can be right, in whatever state the generator is."""


def _is_refused(endpoint: Callable[[], str | None], method: str, arguments: dict[str, Any], deadline: float) -> bool:
    """Whether the generator answers with an error, before the deadline; one that is away is asked again."""
    while time.monotonic() < deadline:
        if (address := endpoint()) is None:
            time.sleep(0.5)  # its entry has run out: it is being started again
            continue
        client = ControlClient(address)
        try:
            client.call(method, arguments, _CALL_SECONDS)
            return False
        except ControlTimeout:
            continue
        except ControlError as error:
            if "the connection was lost" not in str(error):
                return True
        finally:
            client.close()
    return False


def _endpoint_of(store: RunStore, generator: str) -> str | None:
    found = [member.control_endpoint for member in store.members("generator") if member.id == generator]
    return found[0] if found else None


def _whisper(endpoint: str, rng: Random) -> None:
    """Frames that are no call: nobody can be answered."""
    dealer = Dealer(endpoint, "generator")
    try:
        dealer.wait(_CALL_SECONDS, to_send=True)
        for _ in range(50):
            dealer.send([rng.randbytes(rng.choice((0, 16, 70)))] * rng.choice((1, 2, 3, 9)))
        dealer.wait(1.0)
    finally:
        dealer.close()
    _shout(endpoint, rng)


def _shout(endpoint: str, rng: Random) -> None:
    """Connections that do not speak ZeroMQ, or only its first half."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
    for words in _words(rng, greeting):
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=2) as peer:
            peer.sendall(words)


def _words(rng: Random, greeting: bytes) -> Iterator[bytes]:
    yield from (greeting, greeting[:20], b"GET / HTTP/1.1\r\n\r\n", rng.randbytes(3000), b"")


if __name__ == "__main__":
    sys.exit(main())
