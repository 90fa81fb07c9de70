"""trackio: local, a server of your own, or a Space of Hugging Face. The only file that imports trackio.

Where it goes is trackio's own setting: ``TRACKIO_SERVER_URL``, ``TRACKIO_SPACE_ID``, or ``TRACKIO_DIR``, a folder.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping
from typing import Any

from vcppo.common.trackers.tracker import SAMPLES, Table, TrackedRun

_SERVER_SECONDS = 10.0


class TrackioTracker:
    """Runs of one project; services of one of our runs are a group."""

    name = "trackio"

    def __init__(self, project: str) -> None:
        self._project = project
        self._run: Any = None

    def open(self, run: TrackedRun) -> None:
        """Begin or resume the run of this name. Raises OSError when its server does not answer."""
        server = os.environ.get("TRACKIO_SERVER_URL")
        if server and not os.environ.get("TRACKIO_SPACE_ID"):
            # trackio would not find the run to resume, and begin another of the same name.
            urllib.request.urlopen(server, timeout=_SERVER_SECONDS).close()  # noqa: S310  (the user's own server)
        import trackio

        settings = {"run_id": run.run, "service": run.service, **run.flat_settings}
        self._run = trackio.init(
            project=self._project, name=run.id, group=run.run, config=settings, resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, step: int, values: Mapping[str, float | int], wall_time: float) -> None:
        """trackio keeps what its server does not take, and sends it later."""
        self._run.log(dict(values), step=step)
        self._store()

    def log_table(self, step: int, table: Table) -> None:
        """A ``trackio.Table``."""
        import trackio

        data = trackio.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        self._run.log({SAMPLES: data}, step=step)
        self._store()

    def close(self) -> None:
        """Waits until all is stored or sent, half a minute at most."""
        self._run.finish()

    def _store(self) -> None:
        """On this machine: store it now. trackio would keep it in memory for half a second, which a kill may cost."""
        run = self._run
        if getattr(run, "_is_local", False) and hasattr(run, "_flush_queues_inline"):  # it has no public way
            with run._client_lock:
                run._flush_queues_inline()
