"""Errors whose text is meant for the user: it names what is wrong, where, and the remedy.

A process's main catches `VcppoError` and nothing else, logs ``fatal`` with the text and exits non-zero;
anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3  # something a person must look at: starting the process again would end the same way
EXIT_STUCK = 4  # the watchdog ended a process that did not get on
EXIT_EXHAUSTED = 75  # a resource has run out: trying again later may help (EX_TEMPFAIL of sysexits.h)
EXIT_INTERRUPTED = 130


class VcppoError(Exception):
    """Base of every error that is explained by its text alone.

    Attributes:
        exit_code: what a process that can't go on because of it exits with.
    """

    exit_code: int = EXIT_FAILURE


class ConfigError(VcppoError):
    """The config can't be used. One line per problem: source, dotted field, value, remedy."""

    exit_code = EXIT_USAGE

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class DeadlineExceeded(VcppoError):
    """A wait ran past its deadline; the text names who was waited for."""


class ResourceExhausted(VcppoError):
    """A resource has run out (`vcppo.common.files.room`); the text names it, where, and the remedy.

    Attributes:
        resource: its name, e.g. ``disk space``.
    """

    exit_code = EXIT_EXHAUSTED

    def __init__(self, text: str, resource: str) -> None:
        super().__init__(text)
        self.resource = resource


class MetricsError(VcppoError):
    """A metrics file can't be read."""
