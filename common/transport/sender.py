"""The generator's end: sends trajectories and keeps each until a buffer says that Redis has it.

The I/O thread consumes the spool's line and acks, waits for either (at most until the next deadline), and
is unblocked by `send`, by an ack, or by the loss of the peer::

    send() ─▶ spool ─▶ at most `credit_window` on the wire ─▶ buffer ─▶ Redis
                ▲                    │ ack: forgotten          │
                └── peer lost, or no ack by the deadline ◀─────┘
"""

from __future__ import annotations

import socket as os_socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from vcppo.common.config import TransportConfig
from vcppo.common.transport.frames import ACK, OVERSIZED, REFUSED, TRAJECTORY
from vcppo.common.transport.sockets import KEYS_DIFFER, Dealer, TransportError
from vcppo.common.transport.spool import Spool

log = structlog.get_logger(__name__)

_MIB = 1 << 20
_IDLE_SECONDS = 60.0
_OVERSIZED_HEAD_BYTES = 4096
_PAUSE_SECONDS = 0.1
_MAX_PAUSE_DOUBLINGS = 4  # 1.6 s


class TrajectorySender:
    """Never loses a message: an ack removes it, nothing else.

    `sender_id` must be the generator's id: buffers let a sender's broken messages end only its own leases.
    """

    def __init__(self, endpoints: Sequence[str], sender_id: str, config: TransportConfig, spool_folder: Path) -> None:
        """Starts the I/O thread, which first sends what an earlier process left in `spool_folder`."""
        if not endpoints:
            raise TransportError("transport.endpoints: empty, name at least one buffer")
        self._endpoints = list(endpoints)
        self._endpoint_index = 0
        self._identity = sender_id.encode()
        self._window = config.credit_window
        self._deadline_seconds = config.ack_deadline_seconds
        self._max_bytes = int(config.max_message_mib * _MIB)
        self._spool = Spool(spool_folder, int(config.spool_memory_mib * _MIB), int(config.spool_disk_mib * _MIB))
        self._on_wire: dict[str, float] = {}  # id -> when sent, in that order; the I/O thread's own
        self._progress_at = time.monotonic()
        self._num_losses = 0  # connections lost since the last ack
        self._wake_up_reader, self._wake_up_writer = os_socket.socketpair()
        self._wake_up_reader.setblocking(False)
        self._wake_up_writer.setblocking(False)
        self._stopping = threading.Event()
        self._socket = self._connect()  # here, so that a wrong endpoint is an error of the caller
        self._thread = threading.Thread(target=self._run, name="trajectory-sender", daemon=True)
        self._thread.start()

    @property
    def num_unacked(self) -> int:
        """Trajectories kept because no ack has come yet: in memory, on disk or on the wire."""
        return len(self._spool)

    @property
    def is_full(self) -> bool:
        """The spool has used up its disk quota and memory: take no more prompts until this is False."""
        return self._spool.is_full

    def send(self, message_id: str, payload: bytes) -> None:
        """Hand over a message; returns at once. One that is unacked under the same id is not sent twice."""
        if self._stopping.is_set():
            raise TransportError(f"the sender is closed: {message_id} can't be sent")
        if not self._thread.is_alive():
            raise TransportError("the sender's I/O thread died, see the log: restart this generator")
        self._spool.add(message_id, payload)
        self._wake_up()

    def drain(self, timeout_seconds: float) -> bool:
        """Wait until everything is acked; False when it is not in time."""
        return self._spool.wait_until_empty(timeout_seconds)

    def close(self) -> None:
        """Stop. What is unacked stays on disk and is sent by the next sender on this folder."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake_up()
        self._thread.join(self._deadline_seconds)
        self._spool.persist()
        self._wake_up_reader.close()
        self._wake_up_writer.close()
        if len(self._spool):
            log.info("spool_kept", count=len(self._spool), remedy="sent when this generator starts again")

    # ------------------------------------------------------------------ I/O thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            to_send = self._spool.has_waiting and len(self._on_wire) < self._window
            self._socket.wait(self._seconds_to_deadline(), to_send=to_send, wake_up=self._wake_up_reader)
            self._clear_wake_up()
            self._receive()
            if self._socket.is_disconnected():
                self._num_losses += 1
                self._reconnect("buffer_lost", self._pause_seconds())
            self._fill_window()
            self._check_deadlines()
        self._socket.close()

    def _receive(self) -> None:
        while (frames := self._socket.receive()) is not None:
            match frames:
                case [kind, ids] if kind == ACK:
                    for message_id in ids.decode(errors="replace").split("\n"):
                        self._settle(message_id)
                case [kind, raw, reason] if kind == REFUSED:
                    message_id = raw.decode(errors="replace")
                    log.error("trajectory_refused", trajectory_id=message_id, reason=reason.decode(errors="replace"))
                    self._settle(message_id)
                case _:
                    log.warning("unknown_reply", endpoint=self._socket.endpoint, first=frames[0][:32])

    def _settle(self, message_id: str) -> None:
        self._on_wire.pop(message_id, None)
        self._spool.remove(message_id)
        self._progress_at = time.monotonic()
        self._num_losses = 0

    def _fill_window(self) -> None:
        while len(self._on_wire) < self._window and (message := self._spool.take()) is not None:
            message_id, payload = message
            if not self._on_wire:
                self._progress_at = time.monotonic()
            if not self._socket.send(self._frames(message_id, payload)):
                self._spool.put_back([message_id])
                return
            self._on_wire[message_id] = time.monotonic()

    def _frames(self, message_id: str, payload: bytes) -> list[bytes]:
        """The message; of one that is too large only its beginning, so that the buffer can refuse it by name."""
        if len(payload) <= self._max_bytes:
            return [TRAJECTORY, message_id.encode(), payload]
        return [OVERSIZED, message_id.encode(), payload[:_OVERSIZED_HEAD_BYTES], b"%d" % len(payload)]

    def _seconds_to_deadline(self) -> float:
        if not self._on_wire and not self._spool.has_waiting:
            return _IDLE_SECONDS
        oldest = next(iter(self._on_wire.values()), self._progress_at)
        return min(oldest, self._progress_at) + self._deadline_seconds - time.monotonic()

    def _check_deadlines(self) -> None:
        """No ack at all: try the next endpoint. Acks, but not for the oldest: send those again."""
        if not self._on_wire and not self._spool.has_waiting:
            self._progress_at = time.monotonic()
            return
        late_since = time.monotonic() - self._deadline_seconds
        if self._progress_at <= late_since:
            self._reconnect("waiting_for_acks")
            return
        late = [message_id for message_id, sent_at in self._on_wire.items() if sent_at <= late_since]
        for message_id in late:
            del self._on_wire[message_id]
        self._spool.put_back(late)

    def _pause_seconds(self) -> float:
        """None until every endpoint was lost once; then doubling: a new socket has no pauses of its own yet."""
        num_rounds = self._num_losses // len(self._endpoints)
        return _PAUSE_SECONDS * 2 ** min(num_rounds - 1, _MAX_PAUSE_DOUBLINGS) if num_rounds else 0.0

    def _reconnect(self, reason: str, pause_seconds: float = 0.0) -> None:
        """Start over with the next endpoint; a new socket, so that nothing is queued twice."""
        log.warning(
            reason,
            endpoint=self._socket.endpoint,
            next_endpoint=self._endpoints[(self._endpoint_index + 1) % len(self._endpoints)],
            num_unacked=len(self._spool),
            was_connected=self._socket.was_connected,
            **({"refused": KEYS_DIFFER} if self._socket.was_refused else {}),
        )
        self._socket.close()
        self._stopping.wait(pause_seconds)
        self._endpoint_index = (self._endpoint_index + 1) % len(self._endpoints)
        self._socket = self._connect()
        self._on_wire.clear()
        self._spool.restart()
        self._progress_at = time.monotonic()

    def _connect(self) -> Dealer:
        return Dealer(self._endpoints[self._endpoint_index], "buffer", self._identity, self._window)

    def _wake_up(self) -> None:
        try:
            self._wake_up_writer.send(b"\0")
        except BlockingIOError:  # full of wake-ups that are not read yet: one is enough
            return

    def _clear_wake_up(self) -> None:
        try:
            self._wake_up_reader.recv(4096)
        except BlockingIOError:
            return
