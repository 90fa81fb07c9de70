"""One write feeds all sinks; Prometheus sees it over HTTP."""

from __future__ import annotations

import re
import socket
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import MetricsError
from vcppo.common.telemetry.metric_sinks import PrometheusSink
from vcppo.common.telemetry.metrics import MetricsWriter, open_metrics
from vcppo.common.trackers.wanted import missing_trackers


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset({"service": "learner", "run": "r", **labels}.items())


def test_prometheus_sees_what_is_written(tmp_path: Path) -> None:
    sink = PrometheusSink("127.0.0.1", 0, "learner", "r")
    writer = MetricsWriter(tmp_path, "learner", "r", [sink])
    assert key("vcppo_reward_mean") not in scrape(sink.port)
    writer.write(1, {"reward/mean": 0.5, "time/claim": 2.0, "stage": "rl", "explained_variance/token": 0.25})
    writer.write(2, {"reward/mean": 0.75, "explained_variance/token": float("nan"), "brand/new": 1})
    seen = scrape(sink.port)
    assert seen[key("vcppo_reward_mean")] == 0.75
    assert seen[key("vcppo_phase_seconds", phase="claim")] == 2.0
    assert seen[key("vcppo_step")] == 2
    assert seen[key("vcppo_brand_new")] == 1
    assert key("vcppo_explained_variance_token") not in seen  # undefined now: no old value is shown for it
    assert any(name == "process_start_time_seconds" for name, _ in seen)
    writer.close()
    with pytest.raises(urllib.error.URLError):
        scrape(sink.port)


def test_counters_only_grow(tmp_path: Path) -> None:
    sink = PrometheusSink("127.0.0.1", 0, "learner", "r")
    writer = MetricsWriter(tmp_path, "learner", "r", [sink])
    for rollouts, accepted in ((3, 10), (4, 12)):
        writer.write(1, {"generator/rollouts": rollouts, "buffer/accepted": accepted})
    seen = scrape(sink.port)
    assert seen[key("vcppo_generator_rollouts_total")] == 7  # counted since the line before
    assert seen[key("vcppo_buffer_messages_total", result="accepted")] == 12  # counted since the process began
    writer.close()


def config(folder: Path, **metrics: Any) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {"run": {"name": "r", "folder": folder}, "model": {"path": "m"}, "metrics": metrics,
         "logging": {"tensorboard": False}}
    )  # fmt: skip


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MetricsError, match=f"metrics.prometheus_port = {port}: can't be used on 127.0.0.1"):
            open_metrics(config(tmp_path, prometheus_port=port, prometheus_host="127.0.0.1"), "learner", "steps_of_run")


def test_nothing_is_served_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcppo.common.telemetry.metrics.PrometheusSink", lambda *_: pytest.fail("served"))
    open_metrics(config(tmp_path), "learner", "steps_of_run").close()


TRACKERS = {"wandb_project": "wandb", "mlflow_experiment": "mlflow", "trackio_project": "trackio"}


@pytest.mark.parametrize("setting", TRACKERS)
def test_a_tracker_that_is_not_installed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    package = TRACKERS[setting]
    monkeypatch.setitem(sys.modules, package, None)
    text = f"metrics.{setting} = 'p': {package} is not installed: pip install vcppo[{package}], or leave it null"
    with pytest.raises(MetricsError, match=f"^{re.escape(text)}$"):
        open_metrics(config(tmp_path, **{setting: "p"}), "learner", "steps_of_run")


def test_a_folder_that_a_tracker_left_is_not_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MetricsError, match="wandb is not installed"):
        open_metrics(config(tmp_path, wandb_project="p"), "learner", "steps_of_run")


def test_mlflow_needs_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one it would write a database into the folder a process happens to be in."""
    monkeypatch.setattr("vcppo.common.trackers.wanted._is_installed", lambda package: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    wanted = config(tmp_path, mlflow_experiment="e")
    with pytest.raises(MetricsError, match=r"^metrics.mlflow_experiment = 'e': nothing says where .*MLFLOW_TRACKING_U"):
        open_metrics(wanted, "learner", "steps_of_run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert not list(missing_trackers(wanted))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert not list(missing_trackers(config(tmp_path, mlflow_experiment="e", mlflow_uri="http://127.0.0.1:1")))
