"""The quick checks: what can be known without loading the model, in about a second.

`require` opens every start: `vcppo up`, the demo, a container. Nothing is written before it has passed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import structlog

from vcppo.common.check.check_lines import Check, CheckLine
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_FAILURE, EXIT_USAGE
from vcppo.deploy.check import devices, files, network, settings
from vcppo.deploy.check.machine import Machine, Setup
from vcppo.deploy.run.run_config import RunError

log = structlog.get_logger(__name__)

QUICK: tuple[Check[Setup], ...] = (
    Check("settings", "config", settings.warnings),
    Check("settings", "rewards", settings.rewards),
    Check("settings", "trackers", settings.trackers),
    Check("machine", "torch", devices.torch),
    Check("machine", "devices", devices.gpus),
    Check("machine", "memory", devices.memory),
    Check("machine", "dtype", devices.dtype),
    Check("machine", "open files", devices.limits),
    Check("files", "model", files.model_files),
    Check("files", "run folder", files.run_folder),
    Check("files", "space", files.space),
    Check("network", "endpoints", network.endpoints),
    Check("network", "metrics", network.metrics_ports),
    Check("network", "redis", network.redis),
    Check("network", "keys", network.keys),
)

# What each start looks at. A launcher that runs has its run's lock itself; a container has ports and keys of its own.
UP = frozenset({
    "config", "rewards", "trackers", "torch", "devices", "memory", "dtype", "open files", "model", "space", "endpoints",
    "metrics", "redis", "keys",
})  # fmt: skip
BEFORE_UP = UP | {"run folder"}
CONTAINER = {
    "prepare": frozenset({"config", "space", "open files"}),
    "buffer": frozenset({"trackers", "open files"}),
    "generator": frozenset({"trackers", "torch", "dtype", "model", "open files"}),
    "learner": frozenset({"trackers", "torch", "dtype", "model", "space", "open files"}),
}


MENDED_ELSEWHERE = frozenset({"redis", "space"})  # another try may do, with the same config


class StartRefused(RunError):
    """The quick checks found why the run can't be started; nothing was."""

    def __init__(self, failed: Sequence[CheckLine]) -> None:
        super().__init__("\n".join(map(in_words, failed)))
        self.exit_code = EXIT_FAILURE if {line.name for line in failed} <= MENDED_ELSEWHERE else EXIT_USAGE


def require(config: VcppoConfig, names: Collection[str] = UP) -> None:
    """Run these checks and log what they warn of. Raises StartRefused with a line for each that failed."""
    lines = refuse_start(config, names)
    for line in lines:
        if line.status == "warned":
            log.warning("check", what=line.name, text=in_words(line))


def refuse_start(config: VcppoConfig, names: Collection[str]) -> list[CheckLine]:
    """Run these checks. Raises StartRefused with a line for each that failed."""
    setup = Setup(config, Machine.look(), starting=True)
    lines = [line for check in QUICK if check.name in names for line in check.lines(setup)]
    problems = [line for line in lines if line.status == "failed"]
    if problems:
        raise StartRefused(problems)
    return lines


def in_words(line: CheckLine) -> str:
    """Text and remedy after each other."""
    if not line.remedy:
        return line.text
    if line.text.endswith(("?", ".")):
        return f"{line.text} {line.remedy[0].upper()}{line.remedy[1:]}"
    return f"{line.text}: {line.remedy}"
