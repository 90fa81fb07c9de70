"""What a command that starts processes needs: a log sink, the launcher's own log lines in it, and a display."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.files.json_lines import append_line
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.access import connect_store
from vcppo.common.store.ledger import Ledger, Member
from vcppo.common.store.run_store import RunStore, StoreError
from vcppo.common.telemetry.log import to_json
from vcppo.deploy.logs.log_lines import LogSink, Screen, timestamp
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.terminal.display import ProgressLines
from vcppo.deploy.terminal.live_view import LiveView

log = structlog.get_logger(__name__)

Mode = Literal["follow", "watch", "lines", "silent"]


@dataclass
class Session:
    """The open log sink, and what to call about once a second."""

    config: VcppoConfig
    sink: LogSink
    tick: Callable[[], None] | None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; its wall time is noted in <run>/stages.jsonl however it ends."""
        started = time.monotonic()
        try:
            yield
        finally:
            note = {"stage": name, "seconds": round(time.monotonic() - started, 3), "ended": time.time()}
            path = RunFolder(self.config.run.path).path / "stages.jsonl"
            try:
                append_line(path, json.dumps(note).encode() + b"\n")
            except OSError as error:  # a note for the report: the stage's own end counts
                log.warning("stage_not_noted", file=str(path), error=str(error), **note)


class StoreReader:
    """Ledger and members of a run for a display: (None, ()) while the store is away."""

    def __init__(self, config: VcppoConfig) -> None:
        self.config, self.folder = config, RunFolder(config.run.path)
        self._store: RunStore | None = None

    def __call__(self) -> tuple[Ledger | None, Sequence[Member]]:
        embedded = self.config.redis.url is None
        if embedded and not redis_server.is_running(self.folder.redis):
            self._store = None
            return None, ()
        try:
            if self._store is None:
                url = self.config.redis.url or redis_server.url(self.folder.redis)
                self._store = connect_store(self.config, url=url, deadline_seconds=1.0)
            return self._store.ledger(), self._store.members("generator")
        except StoreError:
            self._store = None
            return None, ()


@contextmanager
def open_session(config: VcppoConfig, mode: Mode, run: RunData | None = None) -> Iterator[Session]:
    """Keep the logs of a run's processes and show the run on the terminal.

    Args:
        mode: ``follow`` every log line, ``watch`` the live view (``lines`` without a terminal), ``lines`` one a step,
            ``silent`` nothing: the caller speaks.
        run: what to show progress of; default: the run of `config`.
    """
    folder = RunFolder(config.run.path)
    data = run or RunData(folder, config)
    sink = LogSink(folder.logs, config.run.name)
    terminal = sys.stdout.isatty()
    with closing(sink), own_logs_to(sink):
        if mode == "follow":
            as_json = config.logging.format == "json" or (config.logging.format == "auto" and not terminal)
            sink.show = Screen(level=config.logging.level, as_json=as_json).show
            yield Session(config, sink, None)
        elif mode == "silent":
            yield Session(config, sink, None)
        elif terminal and mode == "watch":
            with LiveView(data, StoreReader(config)) as view:
                sink.show = view.show
                yield Session(config, sink, view.tick)
        else:
            lines = ProgressLines(data)
            lines.data = data.refresh()  # what is there already is not news
            sink.show = lines.show
            yield Session(config, sink, lines.tick)
            lines.tick()


@contextmanager
def own_logs_to(sink: LogSink, service: str = "launcher") -> Iterator[None]:
    """The log lines of the process that supervises others go where theirs go, under the name `service`; afterwards
    they go where they went before."""

    def to_sink(logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        sink.line(service, to_json(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _identity(sink.run_id, service),
            structlog.processors.format_exc_info,
            to_sink,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _identity(run_id: str, service: str) -> structlog.typing.Processor:
    def add(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {"time": timestamp(), "service": service, "run_id": run_id, "logger": "vcppo.deploy", **event}

    return add


def write_ledger(folder: Path, ledger: Ledger) -> None:
    """Note the ledger in <run>/ledger.json, for the report of a run whose store is down."""
    (folder / "ledger.json").write_text(json.dumps(ledger.as_dict()) + "\n", encoding="utf-8")
