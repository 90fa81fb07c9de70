"""JSON over HTTP, one request at a time of many: the one file that talks to the HTTP library."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

import aiohttp

from vcppo.common.errors import ConfigError
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.text.yaml_text import one_line
from vcppo.generator.reward_sources.items import RequestFailed

# The source was reached and refuses or fails: its own words of being away, busy, or not for us are not among these.
_BY_ITEMS = frozenset({400, 413, 422, 500})
_MAX_QUOTED = 200


class HttpPost:
    """Posts to one address. Make it within an event loop; `close` it.

    Args:
        setting: the config section that is spoken for, in errors.
        key: sent as a bearer token; None: none. It goes to `url` only: redirects are not followed.
        ca_file: certificates instead of the system's.

    Raises:
        ConfigError: `ca_file` can't be used.
    """

    def __init__(
        self, setting: str, url: str, *, key: str | None, ca_file: str | None, deadline_seconds: float, concurrency: int
    ) -> None:
        self._url, self._deadline = url, deadline_seconds
        try:
            trust = ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{setting}.ca_file = {ca_file!r} can't be used ({error}): name a PEM file") from None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trust, limit=concurrency),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None),  # ours, below: one deadline over all of it
            trust_env=True,
        )

    async def post(self, body: object, most_bytes: int) -> Any:
        """The JSON that `body` is answered with.

        Raises:
            RequestFailed: no connection, late, a status other than 200, more than `most_bytes`, or no JSON.
        """
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._deadline):
                async with self._session.post(self._url, data=data, headers=headers, allow_redirects=False) as answer:
                    text = await _read(answer, most_bytes)
                    status = answer.status
        except TimeoutError:
            raise RequestFailed(f"no answer in {self._deadline:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise RequestFailed(f"{type(error).__name__}: {one_line(error, _MAX_QUOTED)}") from error
        if status != 200:
            words = one_line(text[:_MAX_QUOTED].decode(errors="replace"), _MAX_QUOTED)
            raise RequestFailed(f"status {status}: {words}", by_items=status in _BY_ITEMS)
        if len(text) > most_bytes:
            raise RequestFailed(f"an answer of more than {most_bytes} bytes", by_items=True)
        try:
            return parse_json(text)
        except JsonError as error:
            raise RequestFailed(str(error), by_items=True) from error

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


async def _read(answer: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """All of it, or its first `most_bytes` and a bit."""
    text = bytearray()
    async for piece in answer.content.iter_any():
        text += piece
        if len(text) > most_bytes:
            break
    return bytes(text)
