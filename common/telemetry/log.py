"""One log pipeline per process: every line, ours or a library's, is one JSON object on stdout.

    structlog.get_logger(__name__).info("weights_broadcast", policy_version=3)  ─┐
    logging.getLogger("vllm.engine").warning("…")                                ├─▶ root handler ─▶ stdout
    warnings.warn("…"), an uncaught exception in any thread                      ─┘

Each line has ``time`` (UTC, ISO, ms), ``level``, ``service``, ``run_id``, ``event``, ``logger`` and what
``structlog.contextvars`` binds (policy_version, trajectory_id, …). On a terminal the same lines are pretty.
Libraries that hang handlers of their own on their loggers (vLLM, DeepSpeed, transformers) are kept from it,
and vLLM's child processes join the pipeline through ``common/telemetry/vllm_logging.json`` and the environment.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from vcppo.common.files.room import shortage_of
from vcppo.common.telemetry.log_render import render_line, to_json

if TYPE_CHECKING:
    from vcppo.common.config import LoggingConfig

__all__ = ["configure_logging", "inherit_logging", "render_line", "to_json"]

# Libraries that attach their own handlers, at import or later.
_LIBRARY_LOGGERS = ("vllm", "DeepSpeed", "transformers", "huggingface_hub", "ray", "py.warnings")
# Chatty at info without telling a user anything.
_QUIET_LOGGERS = ("httpx", "httpx2", "httpcore", "urllib3", "filelock", "asyncio", "matplotlib", "numba", "fsspec")
_ENVIRONMENT = {"service": "VCPPO_LOG_SERVICE", "run_id": "VCPPO_LOG_RUN_ID", "level": "VCPPO_LOG_LEVEL"}
_FORMAT_VARIABLE = "VCPPO_LOG_FORMAT"


def configure_logging(config: LoggingConfig, service: str, run_id: str) -> None:
    """Set this process up to log; call it first thing in a main, before vllm or deepspeed are imported.

    Args:
        config: lowest level and format.
        service: who is speaking: ``learner``, ``generator-0``, ``buffer``, …
        run_id: the run's name.

    May be called again (a test, a child after fork); the last call wins.
    """
    pretty = config.format == "pretty" or (config.format == "auto" and sys.stdout.isatty())
    _install(service, run_id, config.level, pretty)
    _silence_progress_bars()
    _announce_to_children(service, run_id, config.level, pretty)


def inherit_logging() -> logging.Handler:
    """Set up a child process as its parent was, from the environment; the handler factory of vllm_logging.json.

    vLLM applies that file with ``dictConfig`` when an engine starts, in this process and in each child it
    spawns (engine core, workers). A plugin that logs before that may call this itself: it is idempotent.
    Returns the root handler, so that ``dictConfig`` has one to name.
    """
    handler = _root_handler()
    if handler is None:
        values = {name: os.environ.get(variable, "") for name, variable in _ENVIRONMENT.items()}
        pretty = os.environ.get(_FORMAT_VARIABLE) == "pretty"
        handler = _install(values["service"] or "vllm", values["run_id"], values["level"] or "info", pretty)
    return handler


def _install(service: str, run_id: str, level: str, pretty: bool) -> logging.Handler:
    """Point structlog, logging, warnings and the exception hooks at one handler on stdout."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _shorten_time,
        _Identity(service, run_id),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a logger made at import time must follow a later configure_logging
    )
    render = _render_pretty if pretty else _render_json
    handler = _StdoutHandler()
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[_add_child_process, ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    for existing in [each for each in root.handlers if isinstance(each, _StdoutHandler)] + _plain_stream_handlers(root):
        root.removeHandler(existing)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _route_libraries(level)
    _install_hooks()
    return handler


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stdout`` is now, so that redirection (and pytest's capture) is honoured.

    Where that is a file on a full disk, lines are lost until there is room: a log must not fill stderr with tracebacks.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stdout")

    def handleError(self, record: logging.LogRecord) -> None:
        """Called within `emit`, where an error is being handled."""
        error = sys.exc_info()[1]
        if error is None or shortage_of(error) is None:
            super().handleError(record)


class _Identity:
    """Adds who is speaking to every line."""

    def __init__(self, service: str, run_id: str) -> None:
        self._fields = {"service": service, "run_id": run_id}

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        return {**self._fields, **event_dict}


class RoutedLogger(logging.Logger):
    """A library's top logger that keeps no handler and always propagates, whatever the library asks for."""

    @property
    def propagate(self) -> bool:
        """Always: the root handler is what writes JSON."""
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass  # the library wants its own handler to be the only one: see addHandler

    def addHandler(self, hdlr: logging.Handler) -> None:
        """Ignored, so that no line is written twice."""
        pass  # its lines reach stdout through the root handler, as JSON


def _route_libraries(level: str) -> None:
    for name in _LIBRARY_LOGGERS:
        library_logger = logging.getLogger(name)
        for handler in list(library_logger.handlers):
            library_logger.removeHandler(handler)
        # Not setLoggerClass: loggers that exist already must change too.
        library_logger.__class__ = RoutedLogger
    quiet = max(logging.WARNING, logging.getLevelName(level.upper()))
    logging.getLogger("vllm").setLevel(_vllm_level(level))
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(quiet)


def _vllm_level(level: str) -> str:
    """vLLM says a hundred things at info while it starts; they are there when ours is debug."""
    return "WARNING" if level == "info" else level.upper()


def _plain_stream_handlers(root: logging.Logger) -> list[logging.Handler]:
    """Handlers a ``basicConfig`` of some library left on the root logger; they would write each line twice."""
    return [each for each in root.handlers if type(each) is logging.StreamHandler]


def _root_handler() -> logging.Handler | None:
    return next((each for each in logging.getLogger().handlers if isinstance(each, _StdoutHandler)), None)


def _silence_progress_bars() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _announce_to_children(service: str, run_id: str, level: str, pretty: bool) -> None:
    """Leave in the environment what `inherit_logging` needs, and point vLLM at it."""
    for name, value in {"service": service, "run_id": run_id, "level": level}.items():
        os.environ[_ENVIRONMENT[name]] = value
    os.environ[_FORMAT_VARIABLE] = "pretty" if pretty else "json"
    os.environ["VLLM_CONFIGURE_LOGGING"] = "1"
    os.environ["VLLM_LOGGING_LEVEL"] = _vllm_level(level)
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(Path(__file__).with_name("vllm_logging.json"))


def _install_hooks() -> None:
    logging.captureWarnings(False)  # undo a former capture, which would bypass `_show_warning`
    warnings.showwarning = _show_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    logging.getLogger("py.warnings").warning(
        "%s", message, extra={"category": category.__name__, "location": f"{filename}:{lineno}"}
    )


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        structlog.get_logger("vcppo.common.telemetry.log").warning("interrupted")
        return
    structlog.get_logger("vcppo.common.telemetry.log").critical(
        "uncaught_exception", error=str(error), exc_info=(kind, error, trace)
    )


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    error = args.exc_value or args.exc_type()
    if (shortage := shortage_of(error)) is not None:  # no bug of anybody's, so no traceback
        structlog.get_logger("vcppo.common.telemetry.log").error(
            "thread_ended", thread=args.thread.name if args.thread else None, error=str(error), **shortage.as_fields()
        )
        return
    structlog.get_logger("vcppo.common.telemetry.log").critical(
        "uncaught_exception",
        error=str(error),
        thread=args.thread.name if args.thread else None,
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def _log_unraisable(args: Any) -> None:
    error = args.exc_value or args.exc_type()
    structlog.get_logger("vcppo.common.telemetry.log").error(
        "unraisable_exception",
        error=str(error),
        source=repr(args.object),
        exc_info=(args.exc_type, error, args.exc_traceback),
    )


def _shorten_time(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Microseconds to milliseconds: 2026-01-02T03:04:05.678Z."""
    time = str(event_dict["time"])
    event_dict["time"] = time[:23] + "Z" if "." in time else time
    return event_dict


def _add_child_process(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Name the process a line comes from when it is not the main one (vLLM's EngineCore, a worker)."""
    record = event_dict.get("_record")
    name = getattr(record, "vllm_process_name", None) or getattr(record, "processName", None)
    if name and name != "MainProcess":
        event_dict["process"] = name
    for leftover in ("vllm_process_name", "fileinfo"):
        event_dict.pop(leftover, None)
    return event_dict


def _render_json(logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
    return to_json(dict(event_dict))


def _render_pretty(logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
    return render_line(dict(event_dict), colour=sys.stdout.isatty())
