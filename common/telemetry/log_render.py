"""Two renderings of a log line: JSON for machines, one coloured line for people (`vcppo logs`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np

OUR_LOGGERS = ("vcppo", "__main__")
"""First parts of the names of loggers of this project."""
LEADING_FIELDS = ("time", "level", "service", "run_id", "event", "logger")
_MAX_ARRAY_ITEMS = 64  # a longer array is logged as its shape and type
_MAX_DEPTH = 8
_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_RED, _GREEN, _YELLOW = "\x1b[31m", "\x1b[32m", "\x1b[33m"
_COLOURS = {"debug": _DIM, "info": _GREEN, "warning": _YELLOW, "error": _RED, "critical": _BOLD + _RED}


def to_json(line: Mapping[str, Any]) -> str:
    """One line of valid JSON, leading fields first. Never fails: an odd value becomes its text."""
    return json.dumps(plain(line), ensure_ascii=False, allow_nan=False)


def plain(line: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON can say them, whoever made them: no lone surrogate, no NaN, nothing nested without end."""
    leading = {name: _plain(line[name]) for name in LEADING_FIELDS if name in line}
    return leading | {_text(name): _plain(value) for name, value in line.items() if name not in LEADING_FIELDS}


def render_line(line: Mapping[str, Any], colour: bool = False) -> str:
    """``03:04:05.678 info    learner      weights_broadcast policy_version=3 seconds=0.2``, traceback below.

    Args:
        line: a parsed JSON log line; no field is required.
        colour: ANSI colours.
    """
    level = printable(str(line.get("level", "")))
    time = str(line.get("time", ""))
    head = [
        _paint(printable(time[11:23] if len(time) >= 23 else time), _DIM, colour),
        _paint(f"{level:<8}", _COLOURS.get(level, ""), colour),
        *([f"{printable(str(line['service'])):<12}"] if "service" in line else []),  # absent: a prefix says it already
        _paint(printable(str(line.get("event", ""))), _BOLD, colour),
    ]
    hidden = {"time", "level", "service", "run_id", "event", "exception", "stack"}
    # Our loggers need no naming: the event says it. A library's does.
    if str(line.get("logger", "")).split(".")[0] in (*OUR_LOGGERS, "None"):
        hidden.add("logger")
    shown = [(name, value) for name, value in line.items() if name not in hidden]
    fields = [_paint(f"{printable(name)}=", _DIM, colour) + _short(value) for name, value in shown]
    text = " ".join([*head, *fields]).rstrip()
    trace = "\n".join(printable(str(line[name])) for name in ("stack", "exception") if line.get(name))
    return f"{text}\n{trace}" if trace else text


def _plain(value: Any, depth: int = 0) -> Any:
    """The nearest thing JSON can say; NaN and infinity, which it can't, as text."""
    if value is None or (isinstance(value, bool | int) and not isinstance(value, Enum)):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # lone surrogates would break a utf-8 stdout
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _MAX_DEPTH:
        return _text(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), depth + 1)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), depth + 1) if value.size <= _MAX_ARRAY_ITEMS else _shape(value)
    if isinstance(value, Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, Mapping):
        return {_text(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in value]
    return _text(value)


def _shape(array: np.ndarray[Any, Any]) -> str:
    return f"<{array.dtype} array of shape {array.shape}>"


def _text(value: Any) -> str:
    try:
        text = str(value) if isinstance(value, str | PurePath | BaseException) else repr(value)
    except Exception as error:  # noqa: BLE001  (a log line must not fail because of a broken __repr__)
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    return text.encode("utf-8", "replace").decode()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value and value.isprintable() and not set(value) & set(' "'):
        return value
    text = json.dumps(_plain(value), ensure_ascii=False)
    return (
        text if text.isprintable() else json.dumps(_plain(value))
    )  # what a peer called itself must not steer a terminal


def printable(text: str) -> str:
    """Of several lines, as a library's event may be; nothing else that is no character gets to a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def _paint(text: str, code: str, colour: bool) -> str:
    return f"{code}{text}{_RESET}" if colour and code else text
