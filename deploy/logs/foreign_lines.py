"""Lines that are not ours: what level they have, by the marks their writers put on them. Pure; no I/O.

Known: C++ (glog: PyTorch, gloo, NCCL) and torchrun, which marks lines of the same form; Python's logging as vLLM and
DeepSpeed set it up; Redis. Of any other text the words decide.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class ForeignLine(NamedTuple):
    """A line taken apart.

    Attributes:
        level: as our lines have it.
        event: the text without its marks.
        fields: what the marks said beside the level.
    """

    level: str
    event: str
    fields: dict[str, Any]


_RANK = re.compile(r"^\[(?:rank|default)(\d+)\]:\s?")
_PROCESS = re.compile(r"^\((?P<process>[\w-]+)(?: pid=(?P<pid>\d+))?\) ")
_GLOG = re.compile(
    r"^\[?(?P<level>[DIWEF])\d{4} \d\d:\d\d:\d\d\.\d+ +(?:(?P<pid>\d+) )?(?P<location>[^\s\]]+:\d+)\] (?P<event>.*)$"
)
_NAME = r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
_PYTHON = (  # vLLM's form, DeepSpeed's form
    re.compile(rf"^{_NAME} \d\d-\d\d \d\d:\d\d:\d\d \[(?P<location>[^\]]+)\] (?P<event>.*)$"),
    re.compile(rf"^\[[\d-]+ [\d:,]+\] \[{_NAME}\] \[(?P<location>[^\]]+)\] (?P<event>.*)$"),
)
_REDIS = re.compile(r"^(?P<pid>\d+):[A-Z] \d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d+ (?P<level>[.*#-]) (?P<event>.*)$")
_ERROR = re.compile(
    r"\b(ERROR|CRITICAL|FATAL|Traceback)\b|^\w*(Error|Exception):|^terminate called|^Fatal Python error"
)
_WARNING = re.compile(r"\bWARN(ING)?\b|Warning:")

_GLOG_LEVELS = {"D": "debug", "I": "info", "W": "warning", "E": "error", "F": "critical"}
_REDIS_LEVELS = {".": "debug", "-": "debug", "*": "info", "#": "info"}  # 6.2 marks half of its start with #


def parse_foreign(text: str) -> ForeignLine:
    """Take one line apart."""
    fields: dict[str, Any] = {}
    if (rank := _RANK.match(text)) is not None:
        fields["rank"], text = int(rank[1]), text[rank.end() :]
    if (process := _PROCESS.match(text)) is not None:
        fields["process"], text = process["process"], text[process.end() :]
    if (found := _GLOG.match(text)) is not None:
        return ForeignLine(_GLOG_LEVELS[found["level"]], found["event"], {**fields, "location": found["location"]})
    for form in _PYTHON:
        if (found := form.match(text)) is not None:
            return ForeignLine(found["level"].lower(), found["event"], {**fields, "location": found["location"]})
    if (found := _REDIS.match(text)) is not None:
        words = _by_words(found["event"])
        return ForeignLine(_REDIS_LEVELS[found["level"]] if words == "info" else words, found["event"], fields)
    return ForeignLine(_by_words(text), text, fields)


def _by_words(text: str) -> str:
    return "error" if _ERROR.search(text) else "warning" if _WARNING.search(text) else "info"
