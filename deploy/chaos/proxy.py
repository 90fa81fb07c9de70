"""A TCP proxy whose connections can be cut or made silent: how chaos gets at links between processes.

One thread and one asyncio loop serve all links. Nothing is parsed: bytes go through as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

from vcppo.common.transport.ports import free_port

_CHUNK_BYTES = 1 << 16
_CALL_SECONDS = 10.0


class Address(NamedTuple):
    """Where a link leads: a Unix socket's path, or a TCP host and port."""

    path: str = ""
    host: str = ""
    port: int = 0


class Link:
    """One listening port that leads to one address.

    pass ─cut()─▶ connections reset, new ones refused ─restore()─▶ pass
    pass ─block()─▶ connections open, nothing goes through ─restore()─▶ what was held back goes through
    """

    def __init__(self, name: str, target: Address) -> None:
        self.name, self.target = name, target
        self.port = free_port()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Take connections on `port` of this machine; nothing to do when it does already."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Reset all connections and refuse new ones, until `restore`."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def block(self) -> None:
        """Let nothing through, either way, until `restore`; connections stay open, new ones too."""
        self._open.clear()

    async def restore(self) -> None:
        """End a cut or a block."""
        self._open.set()
        await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # either end may go at any time
                await self._open.wait()
                there_reader, there_writer = await self._connect()
                self._writers.add(there_writer)
                try:
                    await self._both_ways((reader, there_writer), (there_reader, writer))
                finally:
                    self._writers.discard(there_writer)
                    there_writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.target.path:
            return await asyncio.open_unix_connection(self.target.path)
        return await asyncio.open_connection(self.target.host, self.target.port)

    async def _both_ways(self, *pairs: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Until one direction ends: then the other has lost its peer too."""
        pumps = [asyncio.create_task(self._pump(reader, writer)) for reader, writer in pairs]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._open.wait()
            writer.write(chunk)
            await writer.drain()


class Links:
    """The thread that serves links. A context manager; its calls return when the change has taken effect."""

    def __init__(self, *links: Link) -> None:
        self._links = {link.name: link for link in links}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos-links", daemon=True)

    def __enter__(self) -> Links:
        self._thread.start()
        for link in self._links.values():
            self._do(link.listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self._links.values():
            self._do(link.cut())
        self._do(self._end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)

    def names(self, kind: str) -> list[str]:
        """Links whose name begins with this, e.g. ``redis-link``."""
        return [name for name in self._links if name.startswith(kind)]

    def cut(self, name: str) -> None:
        """See `Link.cut`."""
        self._do(self._links[name].cut())

    def block(self, name: str) -> None:
        """See `Link.block`."""
        self._do(self._links[name].block())

    def restore(self, name: str) -> None:
        """See `Link.restore`."""
        self._do(self._links[name].restore())

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _do(self, change: Coroutine[Any, Any, None]) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(change, self._loop)
        future.result(_CALL_SECONDS)
