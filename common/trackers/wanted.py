"""Which trackers the config asks for, and whether they can be had."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from vcppo.common.errors import MetricsError
from vcppo.common.run_folder import RunFolder
from vcppo.common.trackers.feed import Feed, Source, Trackers
from vcppo.common.trackers.mlflow_tracker import MlflowTracker
from vcppo.common.trackers.position import Axis
from vcppo.common.trackers.sample_tables import SampleTables
from vcppo.common.trackers.tracker import TrackedRun, Tracker
from vcppo.common.trackers.trackio_tracker import TrackioTracker
from vcppo.common.trackers.wandb_tracker import WandbTracker

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig


class Wanted(NamedTuple):
    """A tracker that the config names.

    Attributes:
        setting: which names it, and its value there.
        package: the import name and the extra's.
    """

    setting: str
    value: str
    package: str
    make: Callable[[], Tracker]

    def __str__(self) -> str:
        return f"{self.setting} = {self.value!r}"


class Missing(NamedTuple):
    """Why a tracker can't be had, and what to do."""

    text: str
    remedy: str


def wanted_trackers(config: VcppoConfig) -> list[Wanted]:
    """In the order of the settings."""
    metrics, found = config.metrics, []
    if (project := metrics.wandb_project) is not None:
        found.append(Wanted("metrics.wandb_project", project, "wandb", lambda: WandbTracker(project)))
    if (experiment := metrics.mlflow_experiment) is not None:
        uri = metrics.mlflow_uri
        found.append(Wanted("metrics.mlflow_experiment", experiment, "mlflow", lambda: MlflowTracker(experiment, uri)))
    if (board := metrics.trackio_project) is not None:
        found.append(Wanted("metrics.trackio_project", board, "trackio", lambda: TrackioTracker(board)))
    return found


def missing_trackers(config: VcppoConfig) -> Iterator[Missing]:
    """What each wanted tracker lacks."""
    for wanted in wanted_trackers(config):
        if not _is_installed(wanted.package):
            text = f"{wanted}: {wanted.package} is not installed"
            yield Missing(text, f"pip install vcppo[{wanted.package}], or leave it null")
        elif wanted.package == "mlflow" and not (config.metrics.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")):
            remedy = "give metrics.mlflow_uri, or MLFLOW_TRACKING_URI in the environment"
            yield Missing(f"{wanted}: nothing says where the MLflow server is", remedy)


def open_trackers(config: VcppoConfig, service: str, axis: Axis) -> Trackers | None:
    """The sink that tells them of the service's metrics file; None: no tracker is wanted.

    Raises:
        MetricsError: the package of one is not installed.
    """
    for text, remedy in missing_trackers(config):
        raise MetricsError(f"{text}: {remedy}")
    folder, metrics = RunFolder(config.run.path), config.metrics
    tables = None
    if axis == "steps_of_run" and metrics.tracker_samples and metrics.samples_per_step:
        tables = SampleTables(folder.samples, metrics.tracker_samples)
    feeds = []
    for wanted in wanted_trackers(config):
        run = TrackedRun("", config.run.name, service, folder.path / wanted.package, config.model_dump(mode="json"))
        position = folder.tracker_position(service, wanted.package)
        feeds.append(Feed(wanted.make(), run, Source(folder.metrics_file(service), axis, position, tables)))
    return Trackers(feeds) if feeds else None


def _is_installed(package: str) -> bool:
    """A folder of that name, as wandb and MLflow leave behind where they were run, is none of its modules."""
    found = find_spec(package)
    return found is not None and found.origin is not None
