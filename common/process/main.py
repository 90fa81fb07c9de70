"""What every process of a run does around its work: read the config, set logging and the watchdog up, say why it ends.

    parse ─▶ config ─▶ logging ─▶ watchdog ─▶ its note among the living ─▶ the work ─▶ exit code
                                    └─ VcppoError ─▶ one ``fatal`` line, the error's exit code

A full disk, no more open files and the like are said in one line too, with exit code 75: trying again may help.
Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import structlog

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_OK, VcppoError
from vcppo.common.files.room import exhausted, shortage_of
from vcppo.common.process import watchdog
from vcppo.common.process.living import noted
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.log import configure_logging
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)


def process_parser(prog: str, about: str | None) -> argparse.ArgumentParser:
    """A parser of what every process takes: ``--config FILE [section.field=value ...]``. The caller adds its own."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    return parser


def run_process(
    given: argparse.Namespace,
    service: str | Callable[[VcppoConfig], str],
    work: Callable[[VcppoConfig], int | None],
    *,
    stacks: str | None = None,
    waiting_for: Sequence[str] = (),
    at_end: Callable[[], None] | None = None,
    holds_run: bool = True,
) -> int:
    """Do `work` with the config that `given` names.

    Args:
        given: of a `process_parser`.
        service: how the process is called in logs and in the run folder.
        work: the process itself; it returns an exit code, or None for 0.
        stacks: name of the file of stacks, where several processes have the same `service`.
        waiting_for: what the watchdog names if the process does not get past its start.
        at_end: called last, also after an error.
        holds_run: while it lives no launcher starts the run again; False for one that only reads what the run made.

    Returns:
        The exit code.
    """
    try:
        config = load_config(given.config, given.overrides)
        name = service if isinstance(service, str) else service(config)
        configure_logging(config.logging, name, config.run.name)
        folder = RunFolder(config.run.path).create()
        watchdog.start(config.watchdog, folder.stacks_file(stacks or name))
        watchdog.stage("start", waiting_for=waiting_for)
        with noted(folder.processes, name) if holds_run else nullcontext():
            return work(config) or EXIT_OK
    except VcppoError as error:
        return _fatal(error)
    except Exception as error:
        if (shortage := shortage_of(error)) is None:
            raise
        return _fatal(exhausted(shortage, one_line(error)[:300]))
    finally:
        watchdog.stop()
        if at_end is not None:
            at_end()


def _fatal(error: VcppoError) -> int:
    resource = getattr(error, "resource", None)  # which has run out
    log.critical(
        "fatal", error=str(error), exit_code=error.exit_code, **({} if resource is None else {"resource": resource})
    )
    return error.exit_code
