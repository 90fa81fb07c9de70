"""MLflow: a tracking server. The only file that imports mlflow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from vcppo.common.trackers.tracker import SAMPLES, Table, TrackedRun

_ID_TAG = "vcppo.tracker_run"
_CHANGED = "changed."
_MOST_METRICS, _MOST_PARAMS, _MOST_CHARACTERS = 1000, 100, 500  # of a request twice, of a value
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")

# The feed tries again by itself, and says so in one line, not in one a try; and nothing we start reports home.
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

T = TypeVar("T")


class MlflowTracker:
    """Runs of one experiment, which is made where there is none.

    Args:
        uri: of the server; None: ``MLFLOW_TRACKING_URI``.
    """

    name = "mlflow"

    def __init__(self, experiment: str, uri: str | None) -> None:
        self._experiment, self._uri = experiment, uri
        self._client: Any = None
        self._run_id = ""

    def open(self, run: TrackedRun) -> None:
        """Begin the run, or go on with the one that is marked with our id."""
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.tracking import MlflowClient

        if self._uri is not None:
            mlflow.set_tracking_uri(self._uri)  # parts of the client ask for this one
        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        settings = {_named(name): str(value)[:_MOST_CHARACTERS] for name, value in run.flat_settings.items()}
        existing = self._client.search_runs([experiment], f"tags.`{_ID_TAG}` = '{run.id}'", max_results=1)
        if existing:
            self._run_id = existing[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            self._log_changes(existing[0].data.params, settings)
            return
        tags = {_ID_TAG: run.id, "vcppo.run": run.run, "vcppo.service": run.service}
        made = self._client.create_run(experiment, tags=tags, run_name=f"{run.run}/{run.service}")
        self._run_id = made.info.run_id
        self._log_params(settings)

    def log(self, step: int, values: Mapping[str, float | int], wall_time: float) -> None:
        """With the line's own time: the same line sent twice, since an answer was lost, is stored once."""
        from mlflow.entities import Metric

        milliseconds = int(wall_time * 1000)
        metrics = [Metric(_named(name), float(value), milliseconds, step) for name, value in values.items()]
        for part in _parts(metrics, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=part)

    def log_table(self, step: int, table: Table) -> None:
        """A file of its own each step: MLflow reads all of a file to add to it."""
        columns = {name: [row[number] for row in table.rows] for number, name in enumerate(table.columns)}
        self._client.log_table(self._run_id, columns, f"{SAMPLES}/step-{step:06d}.json")

    def close(self) -> None:
        """Nothing is held back: each call was answered."""
        self._client.set_terminated(self._run_id)

    def _log_params(self, settings: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for part in _parts([Param(name, value) for name, value in settings.items()], _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=part)

    def _log_changes(self, first: Mapping[str, str], settings: Mapping[str, str]) -> None:
        """MLflow's params are for ever: a setting that was changed since is a tag."""
        for name, value in settings.items():
            if first.get(name, value) != value:
                self._client.set_tag(self._run_id, _CHANGED + name, value)


def _named(name: str) -> str:
    return _NOT_IN_NAMES.sub("_", name)


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
