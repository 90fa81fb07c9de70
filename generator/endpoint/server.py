"""The port: an OpenAI-compatible endpoint, on this machine's loopback by default, for the agents of its rollouts.

    request ─▶ key ─▶ body ─▶ its session's queue ─▶ (the rollout samples) ─▶ reply
               ╰ no session's: refused before the body is read

A session begins and ends with its rollout. What it asks waits in its queue, one after the other. Who is refused is told
why, in the form of OpenAI's errors.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from vcppo.common.environments.agent import Endpoint
from vcppo.common.tasks.interface import TaskError
from vcppo.common.text.yaml_text import one_line
from vcppo.generator.endpoint.chat_form import MODEL, ChatRequest, Chunks, Reply, completion, read_request
from vcppo.generator.endpoint.refusal import Refusal, invalid
from vcppo.generator.endpoint.session_keys import SessionKeys

log = structlog.get_logger(__name__)

_MAX_BODY = 2 << 20
_BODY_SECONDS = 30.0
_MOST_WAITING = 16  # requests of one session
# A stranger's broken requests are no lines of ours. A logger that logging does not know of: when a library such as vLLM
# sets logging up, known ones that were silenced speak again.
_SILENT = logging.Logger(f"{__name__}.http")
_SILENT.addHandler(logging.NullHandler())
_ERRORS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Call:
    """A request that waits for its reply."""

    def __init__(self, request: ChatRequest) -> None:
        self.request = request
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[str] = asyncio.Queue()

    def say(self, text: str) -> None:
        """Some of the reply's text, ahead of the reply."""
        if text and self.is_wanted:
            self.pieces.put_nowait(text)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits: a client that has gone does not."""
        return not self.reply.done()

    def answer(self, reply: Reply) -> None:
        """Give it its reply, if it is still wanted."""
        if self.is_wanted:
            self.reply.set_result(reply)

    def refuse(self, refusal: Refusal) -> None:
        """Tell why there is none, if anybody still waits."""
        if self.is_wanted:
            self.reply.set_exception(refusal)


@dataclass(eq=False)
class Session:
    """One rollout's, while it lasts.

    Attributes:
        endpoint: what its agent is given.
        calls: what it has asked and nobody has begun to answer.
    """

    endpoint: Endpoint
    calls: asyncio.Queue[Call] = field(default_factory=lambda: asyncio.Queue(_MOST_WAITING))
    pending: set[Call] = field(default_factory=set)


class EndpointServer:
    """Make it, ``await start()``, ``open()`` sessions, ``await close()``.

    Attributes:
        host: ``task.endpoint_host``: it listens there, and agents are told to ask there.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self._keys = SessionKeys()
        self._numbers = itertools.count(1)
        self._sessions: dict[int, Session] = {}
        self._runner: web.AppRunner | None = None
        self._base_url = ""

    async def start(self) -> None:
        """Listen on a port of the system's choice. Raises TaskError where this machine has no such address."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[self._guard])
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        # A client that has gone ends its handler: what it asked is then sampled for nobody, or not at all.
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, logger=_SILENT, shutdown_timeout=1.0
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self.host, 0).start()
        except OSError as error:
            await self._runner.cleanup()
            raise TaskError(
                f"task.endpoint_host = {self.host!r}: the endpoint can't listen there ({error.strerror or error}): name"
                " an address of this machine"
            ) from error
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self._base_url = f"http://{shown}:{self._runner.addresses[0][1]}/v1"
        log.info("endpoint_ready", address=self._base_url)

    async def close(self) -> None:
        """Stop listening, and end what is open."""
        if self._runner is not None:
            await self._runner.cleanup()

    @contextmanager
    def open(self) -> Iterator[Session]:
        """A session; with the context its key is used up, and what it still asks is refused."""
        number = next(self._numbers)
        session = self._sessions[number] = Session(Endpoint(self._base_url, self._keys.make(number), MODEL))
        try:
            yield session
        finally:
            del self._sessions[number]
            for call in session.pending:
                call.refuse(_over())

    def _session(self, request: web.Request) -> Session:
        number = self._keys.number(request.headers.get("Authorization"))
        if (session := self._sessions.get(number)) is None:
            raise _over()
        return session

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._session(request)
            return await handler(request)
        except Refusal as refusal:
            return _refused(refusal)
        except web.HTTPException as error:  # no such path, no such method, a body that is too large
            return _refused(
                Refusal("not_served", f"{request.method} {one_line(request.path, 80)}: {error.reason}", error.status)
            )
        except Exception:  # a bug of ours must not end unheard
            log.exception("endpoint_failed", path=one_line(request.path, 80))
            return _refused(Refusal("failed", "the endpoint failed: see the generator's log", 500))

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vcppo"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await request.read()
        except TimeoutError:
            raise invalid(f"body: not all of it came in {_BODY_SECONDS:g} s") from None
        asked = read_request(body)
        session, call = self._session(request), Call(asked)
        try:
            session.calls.put_nowait(call)
        except asyncio.QueueFull:
            raise Refusal("too_many_calls", f"{_MOST_WAITING} calls of this session wait already", 429) from None
        session.pending.add(call)
        try:
            if asked.stream:
                return await _streamed(request, call)
            return web.json_response(completion(_name(), await call.reply, int(time.time())))
        finally:
            call.reply.cancel()  # whoever waited has gone: what is not answered yet is sampled for nobody
            session.pending.discard(call)


async def _streamed(request: web.Request, call: Call) -> web.StreamResponse:
    """A reply in pieces, as they come. Raises Refusal while nothing has been said."""
    chunks = Chunks(_name(), int(time.time()), with_usage=call.request.with_usage)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        async for text in _pieces(call):
            if not response.prepared:
                await response.prepare(request)
            await response.write(chunks.piece(text))
        end = await _end(call, chunks, is_begun=response.prepared)
        if not response.prepared:
            await response.prepare(request)
        await response.write(end)
        await response.write_eof()
    except ConnectionError:  # the client has gone
        log.debug("stream_broken_off")
    return response


async def _end(call: Call, chunks: Chunks, *, is_begun: bool) -> bytes:
    try:
        return chunks.end(await call.reply)
    except Refusal as refusal:
        if not is_begun:
            raise
        return chunks.broken(refusal.code, str(refusal))


async def _pieces(call: Call) -> AsyncIterator[str]:
    """Of its text, until the reply is there."""
    while not call.reply.done():
        coming = asyncio.ensure_future(call.pieces.get())
        try:
            await asyncio.wait((coming, call.reply), return_when=asyncio.FIRST_COMPLETED)
        finally:
            coming.cancel()
        if coming.done() and not coming.cancelled():
            yield coming.result()


def _name() -> str:
    return f"chatcmpl-{secrets.token_hex(8)}"


def _refused(refusal: Refusal) -> web.Response:
    kind = _ERRORS.get(refusal.status, "invalid_request_error")
    error = {"message": str(refusal), "type": kind, "param": None, "code": refusal.code}
    return web.Response(text=json.dumps({"error": error}), content_type="application/json", status=refusal.status)


def _over() -> Refusal:
    return Refusal("session_over", "the session is over: its rollout has ended, or was dropped", 410)
