"""Lines of `vcppo check`: what a check is, and what it found.

A check is a function of one context object. It returns or yields `Result`s. A check that raises is itself a failed
line: nothing a check meets may end the command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

from vcppo.common.errors import VcppoError
from vcppo.common.text.yaml_text import one_line

Status = Literal["passed", "warned", "failed", "skipped"]
STATUSES: tuple[Status, ...] = get_args(Status)
_MAX_TEXT = 2000

ContextT = TypeVar("ContextT")


class NotPossible(VcppoError):
    """A check can't run because something it needs failed before, which has a line of its own."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found.

    Attributes:
        text: what is so, with its figures.
        remedy: what to do about it; empty when there is nothing to do.
        details: more lines, shown below it.
    """

    status: Status
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()


def passed(text: str, *details: str) -> Result:
    """A `Result` in order; `details` are more lines below its text."""
    return Result("passed", text, "", details)


def warned(text: str, remedy: str, *details: str) -> Result:
    """A `Result` that stops nobody, but that a person should look at; `remedy` says what to do."""
    return Result("warned", text, remedy, details)


def failed(text: str, remedy: str, *details: str) -> Result:
    """A `Result` that makes the command fail; `remedy` says what to do."""
    return Result("failed", text, remedy, details)


def skipped(text: str) -> Result:
    """A `Result` of a check that did not apply or could not run; `text` says why."""
    return Result("skipped", text)


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One line of the command: a `Result`, where it belongs, and how long it took to find."""

    group: str
    name: str
    status: Status
    text: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON wants it: what `from_dict` reads; seconds to the millisecond."""
        return asdict(self) | {"details": list(self.details), "seconds": round(self.seconds, 3)}

    @classmethod
    def from_dict(cls, found: Any) -> CheckLine:
        """The line in a child's JSON. Raises ValueError when it is none."""
        if not isinstance(found, dict) or found.get("status") not in STATUSES:
            raise ValueError(f"no line of a check: {str(found)[:80]}")
        texts = {name: str(found.get(name, "")) for name in ("group", "name", "text", "remedy")}
        details = tuple(map(str, found.get("details", ())))
        return cls(**texts, status=found["status"], details=details, seconds=float(found.get("seconds", 0.0)))


@dataclass(frozen=True)
class Check(Generic[ContextT]):
    """One check.

    Attributes:
        group: heading it stands under.
        name: what is checked, in a word or two.
        run: the function; it yields results, or returns one.
        deadline_seconds: of a check in a child program; later, the program is ended and the check has failed.
    """

    group: str
    name: str
    run: Callable[[ContextT], Iterable[Result] | Result]
    deadline_seconds: float = 60.0

    def lines(self, context: ContextT) -> Iterator[CheckLine]:
        """Run it. Every exception becomes a line."""
        began = time.monotonic()
        try:
            found = self.run(context)
            for result in [found] if isinstance(found, Result) else found:
                yield self.line(result, time.monotonic() - began)
                began = time.monotonic()
        except NotPossible as error:
            yield self.line(skipped(str(error)), time.monotonic() - began)
        except VcppoError as error:  # its text names the field, the value and the remedy
            yield self.line(failed(str(error), ""), time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  (a check meets broken models and other people's code)
            text = one_line(f"{type(error).__name__}: {error}", _MAX_TEXT)
            remedy = "the check itself ended with this error, so what it looks at is not as expected: see docs/check.md"
            yield self.line(failed(text, remedy), time.monotonic() - began)

    def line(self, result: Result, seconds: float) -> CheckLine:
        """The result of this check as a line of its group."""
        return CheckLine(self.group, self.name, result.status, result.text, result.remedy, result.details, seconds)
