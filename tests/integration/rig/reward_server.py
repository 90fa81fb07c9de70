"""A real HTTP server that grades responses or judges them, and misbehaves request by request as it is told."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiohttp import web

from vcppo.common.transport.ports import free_port

T = TypeVar("T")
LATE_SECONDS = 1.5


def reward_of(item_id: str) -> float:
    """What this server gives: each item its own."""
    number = item_id.rpartition("-")[2]
    return int(number) / 1024 if number.isdecimal() else 0.0


class RewardServer:
    """In a thread of its own, on one port for as long as it lives, whether it is up or down.

    Attributes:
        modes: how the next requests are answered, the first one first; then all are answered well.
        poison: item ids that make a request fail with status 500.
        nan: item ids that are always answered with NaN.
        outcome: said of every item.
        key: what requests must bring; None: anything.
        requests: the bodies, as they came.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.port, self.tls = free_port(), tls
        self.modes: list[str] = []
        self.poison: set[str] = set()
        self.nan: set[str] = set()
        self.outcome: str | None = None
        self.key: str | None = None
        self.requests: list[Any] = []
        self.replies: list[str] = []  # of the judge, the next first
        self._runner: web.AppRunner | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.up()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def up(self) -> None:
        self._run(self._up())

    def down(self) -> None:
        if self._runner is not None:
            self._run(self._runner.cleanup())
            self._runner = None

    def close(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _up(self) -> None:
        app = web.Application()
        app.router.add_post("/reward", self._reward)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True).start()

    async def _reward(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if (refused := await self._misbehave(request)) is not None:
            return refused
        mode = self.modes.pop(0) if self.modes else "good"
        if self.poison & {item["id"] for item in body["items"]}:
            return web.Response(status=500, text="CUDA error: device-side assert triggered")
        found = answered(body["items"], mode, self.nan)
        if self.outcome is not None:
            found = [each | {"outcome": self.outcome} for each in found]
        return web.json_response({"items": found})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        if (refused := await self._misbehave(request)) is not None:
            return refused
        text = self.replies.pop(0) if self.replies else "It is fine.\n0.75"
        return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})

    async def _misbehave(self, request: web.Request) -> web.StreamResponse | None:
        """For what has nothing to do with the items: hang, status, drop, garbage, redirect."""
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401, text="who are you?")
        mode = self.modes[0] if self.modes else "good"
        if mode in ("good", "nan", "twice", "half", "strange"):
            return None
        self.modes.pop(0)
        if mode == "hang":
            await asyncio.sleep(3600)
        if mode == "drop":
            assert request.transport is not None
            request.transport.abort()
        if mode == "late":
            await asyncio.sleep(LATE_SECONDS)
            return web.json_response({"items": []})
        if mode == "endless":
            return web.Response(text="[" * 10_000_000)
        if mode == "moved":
            raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/elsewhere")
        return web.Response(status=500) if mode == "500" else web.Response(text="<html>busy</html>")


def answered(items: list[Any], mode: str, nan: set[str]) -> list[Any]:
    """One answer for each, but for what the mode does to the first."""
    found: list[dict[str, Any]] = [
        {"id": item["id"], "reward": float("nan") if item["id"] in nan else reward_of(item["id"])} for item in items
    ]
    if mode == "nan":
        found[0]["reward"] = float("nan")
    if mode == "twice":
        found.append(found[0])
    if mode == "strange":
        found.append({"id": "nobody", "reward": 1.0})
    return found[1:] if mode == "half" else found[::-1]
