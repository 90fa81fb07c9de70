"""A child in the place of one that ended, as soon as there is room for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from vcppo.common.files.room import shortage_of

log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
Child = TypeVar("Child")


async def spawn_patiently(spawn: Callable[[], Awaitable[Child]], what: str) -> Child:
    """What `spawn` gives; asked again while memory, processes or files have run out, with one line that says so.

    Args:
        what: is spawned, with its article.

    Raises:
        OSError, VcppoError: `spawn` failed for another reason.
    """
    told = False
    while True:
        try:
            return await spawn()
        except OSError as error:
            shortage = shortage_of(error, starting=True)
            if shortage is None:
                raise
            if not told:
                log.warning("waiting_for_room", what=what, **shortage.as_fields())
                told = True
        await asyncio.sleep(_RETRY_SECONDS)  # nobody tells when there is room
