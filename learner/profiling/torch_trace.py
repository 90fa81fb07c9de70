"""A trace of this process by torch's profiler: each operator, each CUDA kernel, on a time axis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
import torch
from torch.profiler import ProfilerActivity, profile

from vcppo.common.files.whole_file import move
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)


@contextmanager
def torch_trace(path: Path) -> Iterator[None]:
    """Writes what ran in it to `path`, which ends in ``.json.gz``; open it at chrome://tracing or in Perfetto.

    Nothing is written when the block raises.
    """
    profiler = _started(path)
    try:
        yield
    finally:
        is_whole = profiler is not None and _stopped(profiler, path)
    if profiler is not None and is_whole:
        _write(profiler, path)


def _started(path: Path) -> profile | None:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    try:
        profiler = profile(activities=activities)
        profiler.start()
    except Exception as error:  # noqa: BLE001  (CUPTI that somebody else holds, say: the step goes on without a trace)
        _give_up(path, error)
        return None
    return profiler


def _stopped(profiler: profile, path: Path) -> bool:
    try:
        profiler.stop()
    except Exception as error:  # noqa: BLE001  (as above)
        _give_up(path, error)
        return False
    return True


def _write(profiler: profile, path: Path) -> None:
    partial = path.with_name(f".partial-{path.name}")  # the ending says how it is written
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(partial))
        move(partial, path)
    except Exception as error:  # noqa: BLE001  (a full disk is an error of kineto's own kind)
        _give_up(path, error)
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _give_up(path: Path, error: Exception) -> None:
    log.warning("trace_not_written", file=str(path), error=one_line(error)[:300])
