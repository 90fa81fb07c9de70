"""Weights & Biases. The only file that imports wandb.

Whether it is sent at all is wandb's own setting: ``WANDB_MODE=offline`` keeps it in the run folder, for `wandb sync`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vcppo.common.trackers.tracker import SAMPLES, STEP, Table, TrackedRun


class WandbTracker:
    """Runs of one project; services of one of our runs are a group."""

    name = "wandb"

    def __init__(self, project: str) -> None:
        self._project = project
        self._run: Any = None

    def open(self, run: TrackedRun) -> None:
        """Begin or resume the run of this id. Waits half a minute for a server at most."""
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project, dir=str(run.folder), group=run.run, name=run.service, id=run.id, resume="allow",
            reinit="finish_previous", settings=wandb.Settings(console="off", silent=True, init_timeout=30),
        )  # fmt: skip
        self._run.config.update({"run_id": run.run, "service": run.service, **run.flat_settings}, allow_val_change=True)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, values: Mapping[str, float | int], wall_time: float) -> None:
        """Our step is a number among the others: wandb's own must only grow."""
        self._run.log({STEP: step, **values})

    def log_table(self, step: int, table: Table) -> None:
        """A ``wandb.Table``."""
        import wandb

        data = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        self._run.log({STEP: step, SAMPLES: data})

    def close(self) -> None:
        """Blocks until all is uploaded."""
        self._run.finish()
