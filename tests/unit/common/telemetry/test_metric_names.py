"""Names of metrics: declared once, the same everywhere, and all that the dashboard asks for is exported."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT
from tests.unit.rig.fake_run import rl_row
from vcppo.common.store.ledger import Ledger, Member
from vcppo.common.store.run_store import Memory
from vcppo.common.telemetry.metric_names import METRICS, exposed_name, render_markdown, series_of
from vcppo.learner.buffer.store_metrics import StoreState, store_metrics

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "vcppo.json").read_text(encoding="utf-8"))
WRITERS = (
    "learner/rl/step_metrics.py", "learner/buffer/store_metrics.py",
    "learner/value_pretraining/critic_pretrainer.py", "learner/value_pretraining/recording.py",
    "learner/value_pretraining/recording_stats.py",
    "learner/cold_start/sft.py", "generator/rollout/heartbeat.py", "learner/buffer/bridge.py",
)  # fmt: skip
CURVES = {"advantages/by_position", "values/by_position", "explained_variance/by_position"}  # JSON lines only
SUMS = {
    "policy/policy_loss",
    "policy/clipped",
    "policy/ratio",
    "policy/num_positive",
    "critic/value_loss",
}  # within the learner's update
PROCESS = {"process_start_time_seconds", "process_resident_memory_bytes"}  # prometheus_client's own


def names_written(path: Path) -> set[str]:
    """Every ``group/name`` in the source; a placeholder of an f-string reads ``x``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if re.fullmatch(r"[a-z_]+(/\w+)*/\w*[a-z]", text):
            found.add(text)
    return found


@pytest.mark.parametrize("writer", WRITERS)
def test_what_services_write_is_declared(writer: str) -> None:
    names = names_written(ROOT / writer) - CURVES - SUMS
    assert names
    # Of a name whose middle is computed, rl_row shows the instances.
    assert {name for name in names if series_of(name).metric not in METRICS and "/x/" not in name} == set()


def test_names_in_prometheus() -> None:
    assert series_of("reward/mean").family == "vcppo_reward_mean"
    assert series_of("time/claim")[1:] == ("vcppo_phase_seconds", "claim")
    assert series_of("store/queue/leased")[1:] == ("vcppo_store_prompts", "leased")
    assert series_of("buffer/bytes")[1:] == ("vcppo_buffer_bytes", "")
    assert series_of("buffer/accepted")[1:] == ("vcppo_buffer_messages", "accepted")
    assert series_of("staleness/ratio_mean_2")[1:] == ("vcppo_staleness_ratio_mean", "2")
    assert series_of("time/").metric.label == ""
    assert series_of("brand/new-one").family == "vcppo_brand_new_one"
    assert len({exposed_name(metric) for metric in METRICS}) == len(METRICS)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", exposed_name(metric)) for metric in METRICS)


def test_the_page_is_fresh() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == render_markdown()


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def test_the_dashboard_asks_only_for_what_is_exported() -> None:
    queries = [*expressions(), DASHBOARD["templating"]["list"][0]["definition"]]
    asked = {name for query in queries for name in re.findall(r"\b(?:vcppo|process)_\w+", query)}
    assert asked - {exposed_name(metric) for metric in METRICS} - PROCESS == set()
    assert len(asked) > 30


def test_the_dashboard_asks_for_labels_that_exist() -> None:
    labels = {exposed_name(metric): {"run", "service", metric.label} for metric in METRICS}
    for query in expressions():
        for name, selector in re.findall(r"\b(vcppo_\w+)\{([^}]*)\}", query):
            assert set(re.findall(r"(\w+)(?:=|!)", selector)) <= labels[name], query


def test_panels_have_room_and_ids_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_provisioning_fits_together() -> None:
    (source,) = yaml.safe_load((MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    asked = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}
    assert asked == {source["uid"]}
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = next(job for job in jobs if job["job_name"] == "vcppo")["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["buffer", "generator", "learner"], 9400)


def test_a_step_of_the_learner_is_all_declared() -> None:
    scalars = {name for name, value in rl_row(3).items() if isinstance(value, int | float)}
    assert {name for name in scalars if series_of(name).metric not in METRICS} == set()


def test_store_metrics() -> None:
    ledger = Ledger(issued=20, queued=1, leased=2, buffered=3, claimed=4, trained=5, rejected=2, expired=1)
    members = [Member("g", "generator"), Member("h", "generator"), Member("b", "buffer")]
    values = store_metrics(StoreState(ledger, Memory(100, 0), 7, members), num_credits=16)
    assert values["store/credits_used"] == 6
    assert values["store/ledger_difference"] == 2
    assert (values["store/members/generator"], values["store/members/buffer"]) == (2, 1)
    assert (values["store/queue/claimed"], values["store/settled/trained"], values["store/dead_letters"]) == (4, 5, 7)
    assert {name for name in values if series_of(name).metric not in METRICS} == set()
