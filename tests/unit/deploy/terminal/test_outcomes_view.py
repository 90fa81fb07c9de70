"""Counts behind rates, where a person looks: progress lines, live view, report."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.unit.rig.fake_run import make_run, rl_row
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.deploy.report import write_report
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.terminal import outcomes_view
from vcppo.deploy.terminal.display import progress_line
from vcppo.deploy.terminal.live_view import LiveView

# 64 responses: 8 right, 40 wrong, 12 unparsable, 3 timeouts, 1 crash; 10 of them cut.
STEP = {
    **rl_row(31), "reward/accuracy": 0.125, "reward/num_responses": 64, "outcome/correct": 8 / 64,
    "outcome/wrong": 40 / 64, "outcome/unparsable": 12 / 64, "outcome/timeout": 3 / 64, "outcome/crash": 1 / 64,
    "length/truncated_fraction": 10 / 64,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = make_run(tmp_path)
    writer = MetricsWriter(folder.path, "learner", "fake")
    writer.write(31, STEP)
    writer.close()
    (folder.eval / "export.json").write_text(
        '{"pass_at_1": 0.25, "num_problems": 32, "k": 1, "responses": {"correct": {"count": 16, "of": 64},'
        ' "unparsable": {"count": 3, "of": 64}, "timeout": {"count": 2, "of": 64}, "crash": {"count": 1, "of": 64},'
        ' "wrong": {"count": 42, "of": 64}, "cut": {"count": "?"}}}'
    )
    return folder


def test_rates_have_their_counts() -> None:
    assert outcomes_view.accuracy(STEP, 128) == "12.5% (8 of 64)"
    assert outcomes_view.accuracy_interval(STEP, 128) == "95 %: 6.5 to 22.8"  # Wilson of 8 in 64
    others = "40 wrong · 12 unparsable · 3 timeout · 1 crash · 10 cut by length"
    assert outcomes_view.others_line(STEP, 128) == others
    assert outcomes_view.counts([STEP, STEP], 128)[0]["right"] == 16
    assert outcomes_view.counts([STEP, STEP], 128)[1] == 128


def test_of_an_older_run_the_batch_size_counts_and_of_nothing_there_is_a_dash() -> None:
    old = {"reward/accuracy": 0.5, "outcome/correct": 0.5, "outcome/wrong": 0.5}
    assert outcomes_view.accuracy(old, 128) == "50.0% (64 of 128)"
    assert outcomes_view.accuracy({}, 128) == "–"
    assert outcomes_view.accuracy({"reward/accuracy": float("nan")}, 128) == "–"
    assert outcomes_view.rate(0, 0) == "–"
    assert outcomes_view.others_line({}, 128) == ""


def test_progress_line(run: RunFolder) -> None:
    line = progress_line(STEP | {"step": 31}, RunData.load(run))
    assert "accuracy 12.5% (8 of 64) · 12 unparsable · 3 timeout · 1 crash · 10 cut by length ·" in line


def test_live_view(run: RunFolder) -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(LiveView(RunData.load(run), lambda: (None, ()), console).render())
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "12.5% (8 of 64) right, 95 %: 6.5 to 22.8" in text
    assert "40 wrong · 12 unparsable · 3 timeout · 1 crash · 10 cut by length" in text


def test_report(run: RunFolder) -> None:
    page = re.sub(r"<[^>]+>", " ", write_report(run).read_text(encoding="utf-8"))
    text = " ".join(page.split())
    assert "Reinforcement learning outcome first 5 steps last 5 steps all steps right " in text
    of_all = 30 * 128 + 64
    assert re.search(
        rf"unparsable [\d.]+% \(\d+ of 640\) [\d.]+% \(\d+ of 576\) [\d.]+% \([\d,]+ of {of_all:,}\)", text
    )
    assert "vcppo samples" in text
    assert "after RL 0.250 25.0% (16 of 64) 4.7% (3 of 64) 4.7% (3 of 64) –" in text  # cut: damaged, so a dash
