"""A run's store, for commands that look at it or change it, whether the run is up or down."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from vcppo.common.config import VcppoConfig
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.access import connect_store
from vcppo.common.store.run_store import RunStore
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.supervisor import Supervisor
from vcppo.deploy.run.run_config import RunError, exclusive


@contextmanager
def open_store(config: VcppoConfig, *, to_write: bool = False) -> Iterator[RunStore]:
    """The run's store. Is its embedded server down, one is brought up meanwhile.

    Args:
        to_write: it serves the run's own data, which nobody else may use until the block ends. Else it serves a copy:
            reading changes nothing.

    Raises:
        VcppoError: no server, no data, or (to write) the run is just coming up or going down.
    """
    data, deadline = RunFolder(config.run.path).redis, config.redis.connect_deadline_seconds
    if config.redis.url is not None or redis_server.is_running(data):
        yield connect_store(config, url=config.redis.url or redis_server.url(data), deadline_seconds=deadline)
        return
    if not data.is_dir() or not any(data.iterdir()):
        raise RunError(f"run {config.run.name!r} has no store yet ({data} is empty): it was never brought up")
    with exclusive(config.run.path) if to_write else nullcontext():
        with tempfile.TemporaryDirectory(prefix="vcppo-store-") as name:
            served = data if to_write else _copy(data, Path(name) / "redis")
            with Supervisor(
                LogSink(Path(name) / "logs", config.run.name), stop_deadline_seconds=10, start_deadline_seconds=60
            ) as supervisor:
                supervisor.start(redis_server.redis_spec(served))
                supervisor.wait_ready(["redis"])
                yield RunStore.connect(redis_server.url(served), config.run.name, deadline)


def _copy(data: Path, copy: Path) -> Path:
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.sock", "*.pid"))
    return copy
