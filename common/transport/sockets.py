"""The three kinds of ZeroMQ socket there are, and every option they have. With `keys` the only importer of zmq.

Nothing lingers, nothing blocks without a deadline, and every frame has a size limit. The connecting side sends
ZMTP heartbeats, so that a peer which is stopped, or whose machine is gone, counts as disconnected on both sides. The
bound side sends none of its own: libzmq 4.3 aborts the process when one is due on a connection that broke while its
receiving queue was full, as when a generator is killed while the buffer waits for Redis (libzmq issue 4841).
"""

from __future__ import annotations

import itertools
import os
import socket as os_socket
import threading
import weakref
from collections.abc import Sequence

import structlog
import zmq
import zmq.asyncio
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from vcppo.common.errors import VcppoError
from vcppo.common.telemetry.rate_limit import RateLimit
from vcppo.common.transport.keys import Keys, Role

log = structlog.get_logger(__name__)

HEARTBEAT_SECONDS = 2.0
HEARTBEAT_DEADLINE_SECONDS = 10.0
MAX_FRAMES = 8
"""Frames of one message beyond this are read and thrown away."""
_ACK_QUEUE = 10_000  # acks waiting for a slow peer; one that is dropped is made up for by the peer's resending
CONTROL_BYTES = 64 << 20
"""A frame of a control call is no larger."""
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)
KEYS_DIFFER = "one side has other keys, or none (security.curve, security.keys)"
"""What `Dealer.was_refused` means, with the settings to look at."""
_HANDSHAKES = zmq.EVENT_HANDSHAKE_SUCCEEDED | _REFUSALS[0] | _REFUSALS[1] | _REFUSALS[2]
_UNBIND_SECONDS = 5


class TransportError(VcppoError):
    """A socket can't be made: the text names the endpoint and the remedy."""


class _Guard:
    """Decides who is let in, by the domain of the socket (the role it serves) and the public key that was shown."""

    def __init__(self) -> None:
        self.keys: Keys | None = None
        self._lock = threading.Lock()
        self._complaints = RateLimit(20, 60.0)  # a stranger tries several times a second
        self._authenticators: dict[int, ThreadAuthenticator] = {}  # one per context: ZeroMQ allows no more

    def watch(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Have the connections of `context` asked about."""
        with self._lock:
            if context.underlying in self._authenticators:
                return
            authenticator = ThreadAuthenticator(context)
            authenticator.start()
            for role in ("generator", "learner"):
                authenticator.configure_curve_callback(role, self)
            self._authenticators[context.underlying] = authenticator

    def callback(self, domain: Role, key: bytes) -> bool:
        """pyzmq's interface of a credentials provider; `key` in Z85."""
        known = self.keys is not None and key in self.keys.peers.get(domain, ())
        if not known and (held_back := self._complaints.take()) is not None:
            log.warning("peer_refused", wanted=domain, public_key=key.decode(errors="replace"), held_back=held_back,
                        remedy="give it the keys of this run (security.keys)")  # fmt: skip
        return known


_guard = _Guard()


def identify(keys: Keys | None) -> None:
    """Who this process is, for sockets made from now on; None: they are open."""
    _guard.keys = keys


def has_key_before(peer: Role) -> bool:
    """Whether the peer's keys were rotated: one that was not yet restarted still has the key from before."""
    return _guard.keys is not None and len(_guard.keys.peers[peer]) > 1


class _Events:
    """What happens to a socket, to be read.

    ZeroMQ's only I/O thread waits for ever where the reader is gone, or has not read for long, and every socket of the
    process is dead with it (libzmq issue 3575). So the queue has no end, and the events end before their reader and
    their socket: also where the owner of both is dropped and not closed.
    """

    def __init__(self, owner: object, socket: zmq.Socket[bytes], kinds: int) -> None:
        """
        Args:
            owner: whose `socket` it is; once it is gone nobody reads.
            kinds: of events, ``zmq.EVENT_…`` added up.
        """
        endpoint = f"inproc://events-{next(_numbers)}"
        socket.monitor(endpoint, kinds)
        self.reader: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
        self.reader.set(zmq.RCVHWM, 0)
        self.reader.connect(endpoint)
        self.end = weakref.finalize(owner, _end_events, socket, self.reader, os.getpid())
        self.end.atexit = False  # a thread may still wait for it


_numbers = itertools.count()


def _end_events(socket: zmq.Socket[bytes], reader: zmq.Socket[bytes], process: int) -> None:
    if os.getpid() == process and not socket.closed:  # in a forked child they are its parent's
        socket.disable_monitor()
        reader.close(0)


class Dealer:
    """The connecting side: one peer, whose loss shows in `is_disconnected`."""

    def __init__(
        self, endpoint: str, peer: Role, identity: bytes = b"", queue: int = 64, *, key_before: bool = False
    ) -> None:
        """
        Args:
            endpoint: e.g. ``tcp://host:5755``.
            peer: who must answer there, and be able to show it.
            key_before: it is to show the key it had before the last rotation (see `has_key_before`).
            identity: how the peer's ROUTER names us; empty: it makes one up.
            queue: messages accepted by `send` that are not yet on the wire. None are before the peer answers.
        """
        self.endpoint = endpoint
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        _configure(self._socket)
        self._events = _Events(self, self._socket, zmq.EVENT_DISCONNECTED | _HANDSHAKES)
        try:
            _as_client(self._socket, peer, int(key_before))
            if identity:
                self._socket.set(zmq.ROUTING_ID, identity)
            self._socket.set(zmq.SNDHWM, queue)
            self._socket.set(
                zmq.RCVHWM, 0
            )  # a full queue and a heartbeat don't go together, see above; replies are small
            self._socket.set(zmq.MAXMSGSIZE, CONTROL_BYTES)
            self._socket.set(zmq.IMMEDIATE, 1)
            self._socket.set(zmq.HEARTBEAT_IVL, int(HEARTBEAT_SECONDS * 1000))
            self._socket.set(zmq.HEARTBEAT_TIMEOUT, int(HEARTBEAT_DEADLINE_SECONDS * 1000))
            self._socket.set(zmq.HEARTBEAT_TTL, int(HEARTBEAT_DEADLINE_SECONDS * 1000))  # for the other side
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise TransportError(f"{endpoint}: can't connect: {error}; write it as tcp://host:port") from error
        self._is_lost = False
        self.was_connected = False
        self.was_refused = False  # the handshake failed: not the keys the other side wants, or not the ones we do

    def wait(self, seconds: float, *, to_send: bool = False, wake_up: os_socket.socket | None = None) -> None:
        """Return when something arrived, the peer was lost, `wake_up` is readable or (with `to_send`) we may send."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if to_send else 0))
        poller.register(self._events.reader, zmq.POLLIN)
        if wake_up is not None:
            poller.register(wake_up, zmq.POLLIN)
        poller.poll(max(0, int(seconds * 1000) + 1))

    def send(self, frames: Sequence[bytes]) -> bool:
        """False when it can't be sent now: the peer is not there, or not taking."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        """The next message, if one is here."""
        return _receive(self._socket)

    def is_disconnected(self) -> bool:
        """Whether a connection was lost since this socket was made; what was in flight then is lost too."""
        while self._events.reader.poll(0):
            event = recv_monitor_message(self._events.reader)["event"]
            self.was_connected |= event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.was_refused |= event in _REFUSALS
            self._is_lost |= event == zmq.EVENT_DISCONNECTED
        return self._is_lost

    def close(self) -> None:
        """Close at once; unsent messages are dropped."""
        self._events.end()
        self._socket.close(0)


class Router:
    """The bound side: any number of peers; each message comes with its sender's identity in front."""

    def __init__(self, endpoint: str, peer: Role, max_frame_bytes: int, queue: int) -> None:
        """Raises `TransportError`.

        Args:
            peer: who is let in.
            queue: messages read ahead per peer; above it the peer waits.
        """
        self._peer: Role = peer
        self._max_frame_bytes = max_frame_bytes
        self._queue = queue
        self._listen(endpoint)

    def _listen(self, endpoint: str) -> None:
        self._socket = self._open()
        self._is_closed = False
        _configure(self._socket)
        _as_server(self._socket, self._peer)
        self._socket.set(zmq.RCVHWM, self._queue)
        self._socket.set(zmq.SNDHWM, _ACK_QUEUE)
        self._socket.set(zmq.MAXMSGSIZE, self._max_frame_bytes)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)  # a peer that reconnects takes its identity over
        # From the beginning: when `restart` needs it there may be no file left to open.
        self._events = _Events(self, self._socket, zmq.EVENT_CLOSED)
        try:
            self.endpoint = _bind(self._socket, endpoint)
        except TransportError:
            self.close()
            raise

    def _open(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        return socket

    def restart(self) -> None:
        """Cut every connection and listen anew: frees what has arrived and was not received. Raises `TransportError`.

        The only way to be rid of a message that never ends: ZeroMQ limits frames, not how many make a message.
        """
        self._socket.unbind(self.endpoint)
        is_free = self._events.reader.poll(_UNBIND_SECONDS * 1000)
        self.close()
        if not is_free:
            raise TransportError(f"{self.endpoint}: still in use {_UNBIND_SECONDS} s after it was given up")
        self._listen(self.endpoint)

    def wait(self, seconds: float) -> bool:
        """Whether a message is there, or came within `seconds`."""
        return bool(self._socket.poll(max(0, int(seconds * 1000))))

    def receive(self) -> list[bytes] | None:
        """Frames of the next message, the sender's identity first; None: there is none now."""
        return _receive(self._socket)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send to the peer named in the first frame; dropped when that peer is gone."""
        try:
            self._socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.ZMQError:  # the peer's queue is full or it left just now: it will ask again
            return

    def close(self) -> None:
        """Close at once and drop unsent messages. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._events.end()
        self._close_socket()

    def _close_socket(self) -> None:
        self._socket.close(0)


class AsyncRouter(Router):
    """`Router` for asyncio. Make it in the event loop."""

    def _open(self) -> zmq.Socket[bytes]:
        # The socket is asyncio's; `_socket` is a view of it. The other way round the owner would not learn that it is
        # closed, and closes whichever socket has its place in memory when it is collected.
        self._async = zmq.asyncio.Socket(zmq.Context.instance(), zmq.ROUTER)
        view: zmq.Socket[bytes] = zmq.Socket.shadow(self._async.underlying)
        view.context = zmq.Context.instance()
        return view

    async def next(self, seconds: float) -> list[bytes] | None:
        """The next message; None when none came in time."""
        if not await self._async.poll(int(seconds * 1000)):
            return None
        return self.receive()

    def _close_socket(self) -> None:
        self._async.close(0)


def _configure(socket: zmq.Socket[bytes]) -> None:
    """Options of every socket."""
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RECONNECT_IVL, 100)
    socket.set(zmq.RECONNECT_IVL_MAX, 2000)


def _as_client(socket: zmq.Socket[bytes], peer: Role, key: int) -> None:
    keys = _guard.keys
    if keys is not None:
        socket.set(zmq.CURVE_PUBLICKEY, keys.public)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        socket.set(zmq.CURVE_SERVERKEY, keys.peers[peer][key])


def _as_server(socket: zmq.Socket[bytes], peer: Role) -> None:
    keys = _guard.keys
    if keys is not None:
        _guard.watch(socket.context)
        socket.set(zmq.CURVE_SERVER, 1)
        socket.set(zmq.CURVE_SECRETKEY, keys.secret)
        socket.set(zmq.ZAP_DOMAIN, peer.encode())
        socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is let in while nobody decides


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind; the endpoint as bound. Raises `TransportError` with a remedy."""
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        if error.errno == zmq.EADDRINUSE:
            remedy = "another process listens there: stop it, or choose another port in transport.endpoints"
        else:
            remedy = "it must be tcp://<an address of this machine>:<port>"
        raise TransportError(f"{endpoint}: can't listen: {error}; {remedy}") from error
    bound = socket.get(zmq.LAST_ENDPOINT)
    return bound.decode() if isinstance(bound, bytes) else endpoint


def _receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """One message, its frames beyond `MAX_FRAMES` thrown away."""
    try:
        frames = [socket.recv(zmq.DONTWAIT)]
    except zmq.Again:
        return None
    while socket.get(zmq.RCVMORE):
        frame = socket.recv()  # never blocks: a message arrives whole
        if len(frames) <= MAX_FRAMES:
            frames.append(frame)
    return frames
