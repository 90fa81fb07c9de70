"""Control calls: the learner asks, a generator answers. Each call has a deadline; a late answer is dropped.

    request  [call id, msgpack {method, args, incarnation}]     reply  [call id, msgpack {ok, result | error}]

Each call says which incarnation of the learner makes it. A server that has heard of a newer one refuses it
(`superseded` in the reply): so an old learner that wakes up moves no generator.

Arguments and results are what msgpack has (None, numbers, text, bytes, lists, maps) and numpy arrays;
dataclasses go as maps, tuples arrive as lists.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack
import numpy as np
import structlog

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.process.memory_guard import MemoryGuard
from vcppo.common.transport.generator_calls import Answer, Call
from vcppo.common.transport.sockets import CONTROL_BYTES, KEYS_DIFFER, AsyncRouter, Dealer, has_key_before

log = structlog.get_logger(__name__)

_ARRAY = 1  # msgpack extension code
_MOST_INCARNATIONS = 10**15  # as the store counts them
_MAX_CALLS = 32  # running at once per server
_MAX_ERROR = 4096
_QUEUE = 8  # calls read ahead per peer
_CHECK_SECONDS = 0.5  # how often, at least, the memory is looked at
_MAX_LIST = 1 << 20  # msgpack makes room for what a list declares, before there is any of it
# By their text: numpy evaluates what looks like a type with a shape, and raises nearly anything on the way.
_DTYPES = frozenset(np.dtype(kind).newbyteorder("<").str for kind in "?bBhHiIlLqQefdg")


class ControlError(VcppoError):
    """A call failed; the text names the endpoint, the method and what the other side said."""


class ControlTimeout(ControlError):
    """No answer by the deadline."""


class CallerSuperseded(ControlError):
    """The server knows a newer learner than the one that calls."""

    exit_code = EXIT_REFUSED


class Callers:
    """Which learner a server obeys: the newest that it has heard of.

    Attributes:
        newest: number of its incarnation; 0: of none yet.
    """

    def __init__(self) -> None:
        self.newest = 0

    def heard_of(self, incarnation: int) -> None:
        """A learner of this number is there: those before it are refused from now on."""
        self.newest = max(self.newest, incarnation)

    def admit(self, incarnation: int) -> None:
        """Raises CallerSuperseded for an earlier one than the newest."""
        self.heard_of(incarnation)
        if incarnation < self.newest:
            raise CallerSuperseded(
                f"learner number {incarnation} was superseded by number {self.newest}: it is not obeyed any more"
            )


class _Refused(ControlError):
    """The handshake failed."""


class ControlServer:
    """Answers calls on a port of its own choosing on `host`. Make it in the event loop.

    Attributes:
        endpoint: where it listens.
        callers: whom it obeys.
    """

    def __init__(self, host: str, receive_memory_mib: float = 2048.0) -> None:
        """
        Args:
            receive_memory_mib: once callers have made the process grow by this much, all connections are cut.
        """
        self.callers = Callers()
        self._router = AsyncRouter(f"tcp://{host}:*", "learner", CONTROL_BYTES, _QUEUE)
        self.endpoint = self._router.endpoint
        self._memory = MemoryGuard(receive_memory_mib)
        self._num_running = 0

    async def serve(self, handlers: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        """Run the handler a call names, with the call's args as keywords, until cancelled.

        Calls run beside each other. What a handler raises is logged here and told to the caller.
        """
        places = asyncio.Semaphore(_MAX_CALLS)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    frames = await self._router.next(_CHECK_SECONDS)
                    if self._memory.is_exceeded(busy=self._num_running > 0):
                        self._router.restart()
                    if frames is None:
                        continue
                    await places.acquire()
                    self._num_running += 1
                    task = tasks.create_task(self._answer(frames, handlers))
                    task.add_done_callback(lambda _: self._ended(places))
        finally:
            self._router.close()

    def _ended(self, places: asyncio.Semaphore) -> None:
        self._num_running -= 1
        places.release()

    async def _answer(self, frames: list[bytes], handlers: Mapping[str, Callable[..., Awaitable[Any]]]) -> None:
        if len(frames) != 3 or len(frames[1]) > 64:
            log.warning("control_message_malformed", num_frames=len(frames))
            return
        identity, call_id, request = frames
        method = ""
        try:
            method, arguments, incarnation = _parse_request(request)
            self.callers.admit(incarnation)
            if method not in handlers:
                raise ControlError(f"no method {method[:64]!r}, there are {', '.join(sorted(handlers))}")
            reply = pack({"ok": True, "result": await handlers[method](**arguments)})
        except Exception as error:  # whatever it is, the caller is waiting to hear of it
            log.warning("control_call_failed", method=method, error=str(error), exc_info=not _is_plain(error))
            text = f"{type(error).__name__}: {error}"[:_MAX_ERROR].encode(errors="replace").decode()
            reply = pack({"ok": False, "error": text, "superseded": isinstance(error, CallerSuperseded)})
        self._router.send([identity, call_id, reply])


class ControlClient:
    """Calls one server. Any number of threads may call at once.

    Args:
        incarnation: of the learner that calls, as the store counts them; 0: of none that entered.
    """

    def __init__(self, endpoint: str, incarnation: int = 0) -> None:
        self.endpoint = endpoint
        self._incarnation = incarnation
        self._idle: list[Dealer] = []  # one socket per call in flight; one that failed is never used again
        self._lock = threading.Lock()
        self._closed = False

    def call(self, method: str, args: Mapping[str, Any] | None = None, deadline_seconds: float = 60.0) -> Any:
        """The result of `method(**args)`.

        Raises:
            CallerSuperseded: the server obeys a newer learner.
            ControlTimeout: no answer by the deadline.
            ControlError: the call failed.
        """
        deadline = time.monotonic() + deadline_seconds
        call_id = uuid.uuid4().bytes
        request = [call_id, pack({"method": method, "args": dict(args or {}), "incarnation": self._incarnation})]
        for key_before in (False, True):
            socket = self._idle_socket() or Dealer(self.endpoint, "generator", key_before=key_before)
            try:
                reply = self._exchange(socket, request, deadline)
                break
            except BaseException as error:
                socket.close()
                if key_before or not isinstance(error, _Refused) or not has_key_before("generator"):
                    raise
        if reply is None:
            text = "no answer" if socket.was_connected else "nobody answers there"
            if socket.was_refused:
                text = f"refused: {KEYS_DIFFER}"
            socket.close()
            raise ControlTimeout(f"{self.endpoint} {method}: {text} after {deadline_seconds:g} s")
        self._keep(socket)
        if not reply.get("ok"):
            kind = CallerSuperseded if reply.get("superseded") is True else ControlError
            raise kind(f"{self.endpoint} {method}: {str(reply.get('error', 'unknown error'))[:_MAX_ERROR]}")
        return reply.get("result")

    def ask(self, call: Call[Answer], deadline_seconds: float = 60.0) -> Answer:
        """As `call`, typed: the answer to one of `generator_calls`. Raises `ControlError` on one that is none, too."""
        value = self.call(call.method, call.arguments(), deadline_seconds)
        try:
            return call.read_answer(value)
        except ValueError as error:
            raise ControlError(f"{self.endpoint} {call.method}: {error}") from error

    def release(self) -> None:
        """Give up idle connections: nobody reads what a broken server may send there. The next call makes its own."""
        with self._lock:
            for socket in self._idle:
                socket.close()
            self._idle.clear()

    def close(self) -> None:
        """Close idle connections. Calls in flight end by their own deadlines."""
        self._closed = True
        self.release()

    def _idle_socket(self) -> Dealer | None:
        with self._lock:
            while self._idle:
                socket = self._idle.pop()
                if not socket.is_disconnected():
                    return socket
                socket.close()
        return None

    def _keep(self, socket: Dealer) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(socket)
                return
        socket.close()

    def _exchange(self, socket: Dealer, request: list[bytes], deadline: float) -> dict[str, Any] | None:
        """Send, and wait for the reply with our call id; None at the deadline."""
        sent = False
        while True:
            if not sent:
                sent = socket.send(request)
            while (frames := socket.receive()) is not None:
                if len(frames) == 2 and frames[0] == request[0]:
                    return _parse_reply(frames[1], self.endpoint)
            if socket.is_disconnected():
                if socket.was_refused:
                    raise _Refused(f"{self.endpoint}: refused: {KEYS_DIFFER}")
                raise ControlError(f"{self.endpoint}: the connection was lost, its process may have died")
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return None
            socket.wait(remaining, to_send=not sent)


def pack(value: Any) -> bytes:
    """msgpack, with numpy arrays as raw bytes. TypeError for anything else."""
    packed: bytes = msgpack.packb(value, default=_pack_other)
    return packed


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; arrays are read-only. ValueError for anything malformed."""
    try:
        return msgpack.unpackb(data, ext_hook=_unpack_array, max_array_len=_MAX_LIST)
    except (TypeError, OverflowError, MemoryError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"not a control message: {error}") from error


def _pack_other(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        data = value.astype(value.dtype.newbyteorder("<"), order="C", copy=False)
        return msgpack.ExtType(_ARRAY, msgpack.packb([data.dtype.str, list(data.shape), data.tobytes()]))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"a {type(value).__name__} can't go over the control port")


def _unpack_array(code: int, data: bytes) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    kind, shape, raw = msgpack.unpackb(data)
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"arrays of {str(kind)[:20]!r} are not accepted")
    return np.frombuffer(raw, np.dtype(kind)).reshape(shape)


def _parse_request(request: bytes) -> tuple[str, dict[str, Any], int]:
    call = unpack(request)
    if not isinstance(call, dict) or not isinstance(call.get("method"), str) or not isinstance(call.get("args"), dict):
        raise ControlError("malformed call: no map of method and args")
    incarnation = call.get("incarnation", 0)
    if type(incarnation) is not int or not 0 <= incarnation < _MOST_INCARNATIONS:
        raise ControlError("malformed call: its incarnation is no number of a learner")
    return call["method"], call["args"], incarnation


def _parse_reply(data: bytes, endpoint: str) -> dict[str, Any]:
    try:
        reply = unpack(data)
    except ValueError as error:
        raise ControlError(f"{endpoint}: malformed reply: {error}") from error
    if not isinstance(reply, dict):
        raise ControlError(f"{endpoint}: malformed reply")
    return reply


def _is_plain(error: Exception) -> bool:
    """Whether the text says it all, without a traceback."""
    return isinstance(error, VcppoError | ValueError)
