"""A child process with everything it starts: asked by pipes, ended as a whole, and waited for as a process.

    family = await Family.start([sys.executable, "-m", …])
    await family.send(line);  line = await family.receive_line(limit)
    await family.end()                  # all of them, within `END_SECONDS`, whatever they do

asyncio's own subprocesses are waited for by their pipes, which a grandchild may hold for ever; and killing a child, or
its process group, leaves behind whoever left it. Here a guardian (`common.process.guardian`) stands between.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

GUARDIAN = str(Path(__file__).with_name("guardian.py"))
END_SECONDS = 2.0
"""How long `end` waits for the guardian to bury the family. Who is left then hangs in the kernel."""


def guarded(command: Sequence[str]) -> list[str]:
    """The command that runs `command` under a guardian, a child of this process: SIGTERM to it ends the family."""
    return [sys.executable, "-I", "-S", GUARDIAN, str(os.getpid()), *command]


class Family:
    """One program and its descendants. Make it by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, ended: asyncio.Event) -> None:
        self._process = process
        self._reader = reader
        self._ended = ended

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], line_bytes: int) -> Family:
        """Start a program with pipes for its stdin and stdout.

        Args:
            line_bytes: the longest line that `receive_line` takes.

        Raises:
            OSError: no process could be started.
        """
        loop = asyncio.get_running_loop()
        process = subprocess.Popen(
            guarded(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in a terminal is for us: we end them when we are done
        )
        ended = asyncio.Event()

        def wait() -> None:
            process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=wait, daemon=True).start()  # a pidfd would do, where a container's seccomp allows it
        reader = asyncio.StreamReader(limit=line_bytes)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return cls(process, reader, ended)

    @property
    def pid(self) -> int:
        """Of the guardian."""
        return self._process.pid

    async def send(self, data: bytes) -> None:
        """All of it. Raises BrokenPipeError when nobody reads any more."""
        assert self._process.stdin is not None
        descriptor, view = self._process.stdin.fileno(), memoryview(data)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                await _writable(descriptor)

    async def receive_line(self) -> bytes:
        """With its end; empty when there is none any more. Raises ValueError on one that is too long."""
        return await self._reader.readline()

    async def end(self) -> bool:
        """End everybody and wait for it, at most `END_SECONDS`. Returns whether all are gone; a line says when not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._signal(signal.SIGTERM)
        if not await self._wait(END_SECONDS):
            log.error("family_not_ended", pid=self.pid, seconds=END_SECONDS, effect="its processes are left behind")
            self._signal(signal.SIGKILL)
            return False
        return True

    def kill_soon(self) -> None:
        """Ask the guardian to end everybody; `end` waits for it."""
        self._signal(signal.SIGTERM)

    async def _wait(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        return self._ended.is_set()

    def _signal(self, number: int) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def _writable(descriptor: int) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)
