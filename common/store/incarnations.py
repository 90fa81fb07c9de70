"""Who acts for a run: each start of a learner, a buffer, a generator or a launcher is an *incarnation* of that name.

Entering makes a key; the key of the incarnation before it is deleted in the same script. Whoever entered gives his keys
to every script, which refuses him once one is gone (``FENCED``, `lua/_library.lua`). So a process that was frozen, cut
off or forgotten changes nothing once it has a successor, on whatever machine; nor does it write into a store that was
emptied, or restored from a copy of an earlier day.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.store.redis_connection import StoreError

LAUNCH_VARIABLE = "VCPPO_LAUNCH"
"""In the environment of a launcher's children: the launcher's incarnation, for which they act too."""

LEARNER, LAUNCHER = "learner", "launcher"
_ENTRY = re.compile(r"(\d{1,15}):([0-9a-f]{1,32}):(.*)", re.ASCII | re.DOTALL)
_MAX_SHOWN = 80


class Fenced(StoreError):
    """The store does not take this process for the one that acts for the run; the text says why, and what to do.

    Starting the process again would not help.
    """

    exit_code = EXIT_REFUSED


class Superseded(Fenced):
    """Another process has taken this one's place."""


class StoreChanged(Fenced):
    """The store is not the one that this process has worked with: emptied, of an earlier day, or another run's."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of one process of a run.

    Attributes:
        name: ``learner``, ``launcher``, or the id of a generator or a buffer.
        number: from 1 on, for each name.
        token: hex digits, different for every start, in whatever store.
    """

    name: str
    number: int
    token: str

    @property
    def key(self) -> str:
        """Of the store, below the run's prefix: it is there as long as nobody has come after."""
        return f"{key_prefix(self.name)}{self.number}:{self.token}"

    def as_text(self) -> str:
        """For the environment of children."""
        return f"{self.name}:{self.number}:{self.token}"

    @classmethod
    def of_launch(cls) -> Incarnation | None:
        """The launcher's that started this process; None: no launcher did."""
        text = os.environ.get(LAUNCH_VARIABLE)
        if not text:
            return None
        name, _, rest = text.partition(":")
        if (found := _ENTRY.fullmatch(f"{rest}:")) is None:
            raise StoreError(f"{LAUNCH_VARIABLE} = {text!r} in the environment is no launch: unset it")
        return cls(name, int(found[1]), found[2])


def key_prefix(name: str) -> str:
    """Of the keys of all incarnations of this name."""
    return f"incarnation:{name}:"


def new_token() -> str:
    """16 hex digits that nobody had before."""
    return secrets.token_hex(8)


def about_us() -> str:
    """Who enters, for the error of whom he supersedes: JSON of ``host``, ``pid`` and ``since`` (seconds)."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time(), 3)})


def why_fenced(mine: Incarnation, entries: Mapping[str, str], where: str) -> Fenced | None:
    """What has become of `mine`; None: it still is the newest.

    Args:
        entries: name -> ``number:token:JSON`` of the newest incarnation of each name, as the store has them.
        where: the run and its store, for the text.
    """
    if (found := _ENTRY.fullmatch(entries.get(mine.name, ""))) is None:
        return StoreChanged(
            f"{where} was emptied, or is another one: it does not know {mine.name} number {mine.number} any more."
            " Stop the run. Then restore the store's data and start the run again. Started without them it goes on from"
            " its newest checkpoint, without the prompts that were open; its ledger counts from zero"
        )
    number, token = int(found[1]), found[2]
    if number < mine.number:
        return earlier_day(where, f"it knows {mine.name} number {number}, and this is {mine.number}")
    if (number, token) == (mine.number, mine.token):
        return None
    who = f"{mine.name} number {number}{_described(found[3])}"
    return Superseded(
        f"{mine.name} number {mine.number} (pid {os.getpid()}) was superseded by {who}: this one ends, and changes"
        " nothing more. Nothing needs to be done, unless both should run: then give each its own run.name or --id"
    )


def earlier_day(where: str, how: str) -> StoreChanged:
    """The error for a store that was restored from a copy; `how` it shows."""
    return StoreChanged(
        f"{where} holds data of an earlier day: {how}. Stop the run. Then restore the store's newest data,"
        " or the run folder of the same day, and start the run again"
    )


def _described(text: str) -> str:
    """Whoever can write to the store can write here: nothing is believed, and little shown."""
    try:
        about = json.loads(text)
        since = datetime.fromtimestamp(float(about["since"])).astimezone().isoformat(" ", "seconds")
        return f" (pid {int(about['pid'])} on {str(about['host'])[:_MAX_SHOWN]!r}, since {since})"
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return ""
