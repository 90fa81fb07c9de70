"""What every process of a run does around its work: read the config, set logging and the watchdog up, say why it ends.

    parse ─▶ config ─▶ logging ─▶ watchdog ─▶ the work ─▶ exit code
                                    └─ VcppoError ─▶ one ``fatal`` line, the error's exit code

Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_OK, VcppoError
from vcppo.common.process import watchdog
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.log import configure_logging

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
) -> int:
    """Do `work` with the config that `given` names.

    Args:
        given: of a `process_parser`.
        service: how the process is called in logs and in the run folder.
        work: the process itself; it returns an exit code, or None for 0.
        stacks: name of the file of stacks, where several processes have the same `service`.
        waiting_for: what the watchdog names if the process does not get past its start.
        at_end: called last, also after an error.

    Returns:
        The exit code.
    """
    try:
        config = load_config(given.config, given.overrides)
        name = service if isinstance(service, str) else service(config)
        configure_logging(config.logging, name, config.run.name)
        watchdog.start(config.watchdog, RunFolder(config.run.path).create().stacks_file(stacks or name))
        watchdog.stage("start", waiting_for=waiting_for)
        return work(config) or EXIT_OK
    except VcppoError as error:
        log.critical("fatal", error=str(error))
        return error.exit_code
    finally:
        watchdog.stop()
        if at_end is not None:
            at_end()
