"""The report of a run: finished, half-way and hardly begun."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.unit.rig.fake_run import make_closed_run, make_run, rl_row
from vcppo.common.evaluation.intervals import wilson
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.deploy.demo import find_problems
from vcppo.deploy.evaluation.explainable_results import read_rows
from vcppo.deploy.evaluation.workers import EvalResult, gain, parse_result
from vcppo.deploy.report import write_report
from vcppo.deploy.report.figures import (
    FIGURES,
    FigureData,
    explainable_by_position,
    explained_variance,
    reward_components,
)
from vcppo.deploy.run.run_data import RunData, is_exact


def result(share: float, count: int = 512, name: str = "model") -> EvalResult:
    return EvalResult(name, share, *wilson(share * count, count), None, 1, None, count)


class TestReport:
    def test_page_is_self_contained_with_every_figure_and_its_data(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path)
        page = write_report(folder).read_text()
        assert page.count("data:image/png;base64,") == len(FIGURES)
        assert not re.search(r"(src|href)='?\"?https?://", page)
        for word in ("34.0% → 86.0%", "exact", "rl.batch_size", "explained variance"):
            assert word in page
        for name in [*FIGURES, "summary"]:
            assert (folder.report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        with (folder.report / "rl.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 30
        assert "advantages/by_position/9" in rows[0]
        assert (folder.report / "value_pretraining.csv").exists()
        assert (folder.report / "evaluation.csv").exists()
        assert len((folder.report / "explainable.csv").read_text().splitlines()) == 7

    def test_every_part_of_the_reward_has_a_curve_and_nothing_else_is_one(self, tmp_path: Path) -> None:
        rows = [
            {**rl_row(step), "step": step, "reward/base": 0.5, "reward/kl": 0.1, "reward/num_responses": 8}
            for step in (1, 2)
        ]
        data = FigureData(replace(RunData.load(make_run(tmp_path)), rl=rows), [])
        ax = Figure().subplots()
        assert reward_components(ax, data)
        assert [line.get_label() for line in ax.lines] == ["base", "brevity"]
        plain = [{"step": 1, "reward/mean": 0.5, "reward/accuracy": 0.5}]
        assert not reward_components(Figure().subplots(), FigureData(replace(data.run, rl=plain), []))

    def test_explainable_variance_is_drawn_where_it_was_measured_and_nowhere_else(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path)
        data = FigureData(RunData.load(folder), [], read_rows(folder))
        ax = Figure().subplots()
        assert explained_variance(ax, data)
        marks = [bar.lines[0] for bar in ax.containers]
        assert [(float(m.get_xdata()[0]), round(float(m.get_ydata()[0]), 3)) for m in marks] == [(0, 0.65), (20, 0.39)]
        ax = Figure().subplots()
        assert explainable_by_position(ax, data) and ax.get_title().endswith("version 20")
        drawn = {bar.get_label(): [list(map(float, axis)) for axis in bar.lines[0].get_data()] for bar in ax.containers}
        assert drawn["explainable"] == [[0, 60, 120], pytest.approx([0.12, 0.3, 0.48])]
        assert drawn["critic"] == [[0, 60, 120], pytest.approx([0.06, 0.15, 0.24])]
        assert not explainable_by_position(Figure().subplots(), FigureData(data.run, []))
        ax = Figure().subplots()
        assert explained_variance(ax, FigureData(data.run, [])) and not ax.containers

    def test_run_that_has_hardly_begun(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path, num_steps=1)
        for path in [*folder.metrics.iterdir(), *folder.eval.iterdir(), folder.path / "ledger.json"]:
            path.unlink()
        assert "Not evaluated yet" in write_report(folder).read_text()

    def test_run_without_undefined_metrics_in_the_way(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path, num_steps=2)  # within_prompt is null in both rows
        assert (folder.report / "report.html") == write_report(folder)


class TestRunData:
    def test_step_done_again_after_a_crash_counts_once(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path, num_steps=6)
        writer = MetricsWriter(folder.path, "learner", "fake")
        writer.write(5, {**rl_row(5), "reward/mean": 0.125})
        writer.close()
        data = RunData.load(folder)
        assert [row["step"] for row in data.rl] == [1, 2, 3, 4, 5, 6]
        assert data.rl[4]["reward/mean"] == 0.125

    def test_refresh_reads_only_what_is_new(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path, num_steps=3)
        data = RunData.load(folder)
        assert len(data.new) == 11
        assert data.refresh().new == []
        assert len(data.generators["generator-0"]) == 20

    def test_facts(self, tmp_path: Path) -> None:
        data = RunData.load(make_run(tmp_path))
        assert data.num_broadcasts == 30
        assert data.max_staleness == 1
        assert data.ledger is not None
        assert is_exact(data.ledger)
        assert not is_exact({**data.ledger, "queued": 1})
        assert data.stage_seconds() == {"sft": 130.0, "up": 520.5, "eval": 90.0}
        assert not data.finished  # no exported model


class TestEvaluation:
    def test_gain_is_significant_only_beyond_both_errors(self) -> None:
        assert gain(result(0.34), result(0.86)) == (pytest.approx(0.52), True)
        assert gain(result(0.34), result(0.36))[1] is False
        assert gain(result(0.86), result(0.34))[1] is False

    def test_interval_of_the_evaluator_wins(self) -> None:
        found = {"pass_at_1": 0.5, "num_problems": 10, "pass_at_1_interval": [0.4, 0.6], "k": 4, "pass_at_k": 0.9}
        parsed = parse_result(found, "m")
        assert (parsed.low, parsed.high, parsed.pass_at_k, parsed.k) == (0.4, 0.6, 0.9, 4)


def test_the_report_of_a_run_that_ended_at_the_gate_shows_why(tmp_path: Path) -> None:
    folder = make_closed_run(tmp_path)
    page = write_report(folder).read_text(encoding="utf-8")
    for words in (
        "<td>correct</td><td class=n>14</td><td class=n>5.5%</td>",
        "<td>cut by length</td><td class=n>57</td><td class=n>22.3%</td>",
        "0.120 (90 %: -0.20 to 0.31), gate 0.3: not passed",
        "max_steps = 100 reached while it still got better",
        "32 held-out responses to 8 prompts, 2 right, 1 prompts with both",
        "&lt;too little&gt;: raise value_pretraining.max_steps to 200",
        "value pretraining did not pass its gate",
    ):
        assert words in page, words
    assert (folder.report / "value_pretraining.png").exists()


class TestVerdict:
    def test_good_run_has_no_problems(self, tmp_path: Path) -> None:
        assert find_problems(RunData.load(make_run(tmp_path)), result(0.34), result(0.86)) == []

    def test_every_broken_promise_is_named(self, tmp_path: Path) -> None:
        folder: RunFolder = make_run(tmp_path)
        ledger = json.loads((folder.path / "ledger.json").read_text())
        (folder.path / "ledger.json").write_text(json.dumps({**ledger, "trained": 1}))
        (folder.value_pretraining / "decision.json").write_text(json.dumps({"passed": False}))
        writer = MetricsWriter(folder.path, "learner", "fake")
        writer.write(7, {**rl_row(7), "staleness/max": 2.0})
        writer.close()
        problems = find_problems(RunData.load(folder), result(0.34), result(0.35))
        assert [p.split()[0:3] for p in problems] == [
            ["the", "ledger", "is"],
            ["value", "pretraining", "did"],
            ["accuracy", "did", "not"],
            ["a", "trajectory", "of"],
        ]
