"""The buffer's end: takes messages from any number of senders and acknowledges them when told to.

Sizes: a message above ``transport.max_message_mib`` is reported (`Received.error`) and can be refused, up to
twice that limit; ZeroMQ itself cuts the connection of a peer that sends more, before it is in memory. Our
own senders never get there: of an oversized payload they send only the beginning.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vcppo.common.config import TransportConfig
from vcppo.common.transport.frames import ACK, OVERSIZED, REFUSED, TRAJECTORY
from vcppo.common.transport.sockets import Router

_MIB = 1 << 20
_BATCH_MESSAGES = 256
_BATCH_BYTES = 8 * _MIB
_MAX_ID_BYTES = 256


@dataclass(frozen=True, slots=True)
class Received:
    """One message.

    Attributes:
        sender: the sender's id, as it calls itself.
        message_id: empty when the message was too broken to have one; then it can't be acknowledged.
        payload: as sent; of a broken message, what there is of it.
        error: why it can't be a trajectory; empty: nothing wrong so far.
        identity: the sender's address for the ack.
    """

    sender: str
    message_id: str
    payload: bytes
    error: str = ""
    identity: bytes = b""


class TrajectoryReceiver:
    """Binds `endpoint`; raises `TransportError` when it can't."""

    def __init__(self, endpoint: str, config: TransportConfig) -> None:
        self._max_bytes = int(config.max_message_mib * _MIB)
        self._router = Router(endpoint, "generator", 2 * self._max_bytes, config.credit_window)
        self.endpoint = self._router.endpoint

    def poll(self, timeout_seconds: float) -> list[Received]:
        """What has arrived, up to a batch; waits for the first up to `timeout_seconds`."""
        received: list[Received] = []
        num_bytes = 0
        if self._router.wait(timeout_seconds):
            while len(received) < _BATCH_MESSAGES and num_bytes < _BATCH_BYTES:
                frames = self._router.receive()
                if frames is None:
                    break
                received.append(self._parse(frames))
                num_bytes += len(received[-1].payload)
        return received

    def ack(self, received: Iterable[Received]) -> None:
        """Tell the senders that these are safe. Call it only when they are."""
        by_peer: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for one in received:
            if one.message_id:
                by_peer[one.identity].append(one.message_id.encode())
        for identity, ids in by_peer.items():
            self._router.send([identity, ACK, b"\n".join(ids)])

    def refuse(self, received: Received, reason: str) -> None:
        """Tell the sender that this will never be accepted; it logs the reason and forgets it."""
        if received.message_id:
            self._router.send([received.identity, REFUSED, received.message_id.encode(), reason.encode()[:1024]])

    def restart(self) -> None:
        """Cut every connection; what was not received yet is freed, and sent again by senders that keep it."""
        self._router.restart()

    def close(self) -> None:
        """Stop listening. Senders keep what was not acknowledged and send it again."""
        self._router.close()

    def _parse(self, frames: list[bytes]) -> Received:
        identity, *rest = frames
        sender = identity.decode(errors="backslashreplace")
        sender = sender if sender.isprintable() else ascii(sender)[1:-1]
        match rest:
            case [kind, raw_id, payload] if kind == TRAJECTORY:
                error = ""
                if len(payload) > self._max_bytes:
                    error = self._too_large(len(payload))
            case [kind, raw_id, payload, size] if kind == OVERSIZED:
                error = self._too_large(int(size)) if size.isdigit() and len(size) < 20 else "oversized, size unknown"
            case _:
                text = f"{len(rest)} frames beginning with {rest[0][:32]!r}" if rest else "no frames"
                return Received(sender, "", b"".join(rest)[:_BATCH_BYTES], f"no trajectory message: {text}", identity)
        message_id = _message_id(raw_id)
        if not message_id:
            error = f"message id: not 1 to {_MAX_ID_BYTES} bytes of printable UTF-8"
        return Received(sender, message_id, payload, error, identity)

    def _too_large(self, size: int) -> str:
        return f"{size} bytes, transport.max_message_mib allows {self._max_bytes}"


def _message_id(raw: bytes) -> str:
    try:
        text = raw.decode() if len(raw) <= _MAX_ID_BYTES else ""
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""
