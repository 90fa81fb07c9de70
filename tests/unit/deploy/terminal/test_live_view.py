"""The live view and the progress lines that stand in for it without a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from tests.unit.rig.fake_run import make_closed_run, make_run
from vcppo.common.store.ledger import Ledger, Member
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.terminal.display import ProgressLines, clock, number
from vcppo.deploy.terminal.live_view import LiveView, sparkline

LEDGER = Ledger(issued=2000, queued=30, leased=100, buffered=50, claimed=64, trained=1756)


def shown(data: RunData, ledger: Ledger | None = LEDGER, members: tuple[Member, ...] = ()) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    view = LiveView(data, lambda: (ledger, members), console)
    view.show("learner", {"event": "member_dropped", "level": "warning", "time": "2026-01-02T03:04:05.678Z"})
    console.print(view.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_run_at_rl(tmp_path: Path) -> None:
    text = shown(RunData.load(make_run(tmp_path)), members=(Member("generator-0", "generator", policy_version=3),))
    for word in (
        "trained 1,756",
        "180 of 256 credits",
        "exact",
        "30 of 30",
        "accuracy",
        "generator-0",
        "v3",
        "member_dropped",
    ):
        assert word in text


def test_held_out_accuracy_and_mismatch_are_shown_where_they_were_measured(tmp_path: Path) -> None:
    data = RunData.load(make_run(tmp_path))
    assert "held out" not in shown(data) and "mismatch KL" not in shown(data)
    for step, accuracy in ((10, 0.4), (20, 0.514)):
        ends = {"eval/accuracy_low": accuracy - 0.1, "eval/accuracy_high": accuracy + 0.1}
        data.evaluations.append({"step": step, "eval/accuracy": accuracy, **ends, "eval/aime/accuracy": 0.125})
    data.rl[-1]["off_policy/mismatch_kl"] = 8.3e-6
    text = " ".join(shown(data).split())
    assert "held out 51.4 % (95 %: 41.4 to 61.4) after step 20 ▄▅" in text.replace("▃", "▄")
    assert "aime 12.5 % after step 20" in text and "mismatch KL 8.3e-06" in text and "explained variance 0." in text


def test_a_source_of_rewards_that_is_away_is_seen(tmp_path: Path) -> None:
    data = RunData.load(make_run(tmp_path))
    assert "reward source" not in shown(data)
    data.generators["generator-0"][-1]["reward_source/away"] = 34.2
    assert "reward source away for 34 s, leasing paused" in shown(data)


def test_run_at_value_pretraining(tmp_path: Path) -> None:
    text = shown(RunData.load(make_run(tmp_path, num_steps=0)))
    assert "held-out EV" in text
    assert "≥ 0.3  passed" in text
    assert "reinforcement" not in text


def test_run_that_ended_at_the_gate_shows_why(tmp_path: Path) -> None:
    data = RunData.load(make_closed_run(tmp_path))
    assert [row["step"] for row in data.value_pretraining] == [0, 5, 10]  # not those of a critic trained before
    text = " ".join(shown(data).split())
    for words in (
        "14 correct (5.5 %)",
        "57 cut by length (22.3 %)",
        "3 prompts with right and other responses",
        "0.100 (90 %: 0.00 to 0.20)",
        "FAILED",
        "32 held-out responses to 8 prompts, 2 right",
        "raise value_pretraining.max_steps to 200",
    ):
        assert words.replace(" %", "%") in text.replace(" %", "%"), words


def test_store_away_and_nothing_written(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    for path in [*folder.metrics.iterdir(), folder.path / "ledger.json"]:
        path.unlink()
    assert "does not answer yet" in shown(RunData.load(folder), ledger=None)


def test_inexact_ledger_is_loud(tmp_path: Path) -> None:
    assert "NOT EXACT, off by 1" in shown(RunData.load(make_run(tmp_path)), Ledger(issued=2, trained=1))


def test_sparkline() -> None:
    assert sparkline([0, 0.5, 1], 10) == "▁▅█"
    assert sparkline([0, 1], 1) == "▁"
    assert sparkline([], 5) == ""
    assert sparkline([3, 3], 5) == "▁▁"
    assert sparkline([-5, 5], 5, 0, 1) == "▁█"


def test_progress_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    lines = ProgressLines(RunData(folder := make_run(tmp_path, num_steps=2), RunData.load(folder).config), stream)
    lines.show("learner", {"event": "lost", "level": "error", "why": "x"})
    lines.show("generator-0", {"event": "chatter", "level": "info"})
    lines.show("generator-0", {"event": "noise", "level": "warning", "logger": "vllm.engine"})
    lines.tick()
    text = stream.getvalue().splitlines()
    assert text[0].endswith("learner: lost why=x")
    assert len(text) == 1 + 8 + 2
    assert "rl   2/30" in text[-1]
    assert "explained variance 0." in text[-1]


def test_numbers() -> None:
    assert clock(247) == "4:07"
    assert clock(3847) == "1:04:07"
    assert number(None) == "–"
    assert number(0.5, "{:.0%}") == "50%"
