"""A headless chromium spoken to in its own DevTools protocol: open a page, ask it, hear what it complains of."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_START_SECONDS, _ANSWER_SECONDS, _POLL_SECONDS = 60.0, 60.0, 0.1


class Refused(AssertionError):
    """The browser did not do what was asked, as while it goes to another page."""


class Page:
    """One tab.

    Attributes:
        complaints: errors of scripts, and what the page's security policy refused.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the protocol; events that come before its answer are looked at. Raises Refused."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(_ANSWER_SECONDS):
            while True:
                message = await self._socket.receive_json()
                if message.get("id") == self._number:
                    if "error" in message:
                        raise Refused(f"{method}: {message['error']}")
                    result: dict[str, Any] = message["result"]
                    return result
                self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(message["params"]["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(message["params"]["entry"]["text"]))

    async def ask(self, script: str) -> Any:
        """The value of an expression."""
        found = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    async def open(self, url: str, until: str) -> None:
        """Go there, and wait until the expression is true. Raises AssertionError after a minute."""
        self.complaints.clear()
        await self.call("Page.navigate", url=url)
        await self.wait(until)

    async def wait(self, until: str) -> None:
        """Until the expression is true. Raises AssertionError after a minute."""
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not await self._holds(until):
            assert time.monotonic() < deadline, f"{until} did not come; {self.complaints}"
            await asyncio.sleep(_POLL_SECONDS)

    async def _holds(self, condition: str) -> bool:
        try:
            return bool(await self.ask(f"document.readyState === 'complete' && !!({condition})"))
        except Refused:  # a page that is left answers nothing more
            return False


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A tab of a browser of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
               f"--user-data-dir={profile}", "--window-size=1280,1000", "about:blank"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port = await _port(profile / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = [each for each in await answer.json() if each["type"] == "page"]
                address = tabs[0]["webSocketDebuggerUrl"]
                async with session.ws_connect(address, max_msg_size=2**26) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await page.call(f"{domain}.enable")
                    yield page
        finally:
            process.terminate()
            process.wait(20)


async def _port(file: Path) -> int:
    deadline = time.monotonic() + _START_SECONDS
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < deadline, "chromium did not start"
        await asyncio.sleep(_POLL_SECONDS)
    return int(file.read_text().split()[0])
