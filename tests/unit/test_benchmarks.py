"""The harness of the benchmarks: goals, medians, ratios round by round, and the page they are kept on."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.cases.processes import CpuWatch
from benchmarks.rig import harness, performance_page
from benchmarks.rig.figures import Figure, at_least, at_most, seconds_text
from benchmarks.rig.harness import Timing, measure, peak_of, ratios
from vcppo.common.run_folder import RunFolder


def test_goals() -> None:
    assert Figure("a", "b", 6.0, goal=at_most(6)).met is True
    assert Figure("a", "b", 6.1, goal=at_most(6)).met is False
    assert Figure("a", "b", 399.0, goal=at_least(400)).met is False
    assert Figure("a", "b", math.nan, goal=at_most(6)).met is False
    assert Figure("a", "b", 1.0).met is None


def test_median_and_range() -> None:
    figure = Figure.of("a", "b", [3.0, 1.0, 2.0])
    assert (figure.value, figure.low, figure.high) == (2.0, 1.0, 3.0)


def test_ratios_are_of_one_round() -> None:
    fast, slow = Timing([1.0, 2.0], [1.0, 1.0], 0), Timing([10.0, 20.0], [4.0, 2.0], 0)
    assert ratios(slow, fast) == [10.0, 10.0]
    assert ratios(slow, fast, cpu=True) == [4.0, 2.0]


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert all(len(timing.wall) == 3 for timing in timings.values())
    assert calls.index("b") == 1
    turns = [name for i, name in enumerate(calls[2:]) if i == 0 or calls[i + 1] != name]
    assert turns[-6:] == ["a", "b"] * 3


def test_a_slow_first_call_does_not_make_a_sample_short(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]  # a clock of our own: on a busy machine every sleep is a slow one
    clock = SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: now[0])
    monkeypatch.setattr(harness, "time", clock)
    durations = iter([0.0, 0.009])  # the one whose peak memory is taken, and the first that is timed
    num_calls = 0

    def call() -> None:
        nonlocal num_calls
        num_calls += 1
        now[0] += next(durations, 0.0005)

    (timing,) = measure({"a": call}, rounds=1).values()
    assert len(timing.wall) == 1
    assert num_calls > 20  # trying: 1 + 1 + 2 + ...; and then a sample of some 17


def test_peak_memory_is_seen() -> None:
    assert 60 < peak_of(lambda: np.ones(64 << 17)) / 2**20 < 80


def test_figures_are_kept_by_benchmark_and_the_table_is_made_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance_page, "DOCS", tmp_path)
    (tmp_path / "performance.md").write_text(f"before\n{performance_page.BEGIN}\nold\n{performance_page.END}\nafter\n")
    performance_page.keep("wire", [Figure("encode", "memcpy", 2.0, goal=at_most(3), note="a word")], ["gae", "wire"])
    performance_page.keep("gae", [Figure("gae", "copy", 7.0, goal=at_most(6))], ["gae", "wire"])
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert text.index("benchmarks gae") < text.index("benchmarks wire")
    assert "| gae | copy | 7 × |  | ≤ 6 | NO |" in text
    assert "- encode: a word" in text
    kept = json.loads((tmp_path / "performance.json").read_text())
    assert Figure.from_dict(kept["wire"]["figures"][0]).goal == at_most(3)


def test_a_page_without_its_marks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_page, "DOCS", tmp_path)
    (tmp_path / "performance.md").write_text("nothing here")
    with pytest.raises(ValueError, match="lacks the lines"):
        performance_page.keep("gae", [], ["gae"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (17.1e-6, "17.1 µs"), (5e-9, "5 ns")]
)
def test_seconds_read_well(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_cpu_of_generators_is_counted_a_token_after_the_warm_up(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    watch = CpuWatch(folder)
    watch()  # nothing is there yet
    started = [
        {"event": "process_started", "process": name, "pid": pid}
        for name, pid in (("generator-0", os.getpid()), ("learner", 2**22 + 1))
    ]  # the learner's is not asked for
    folder.log_file("launcher").write_text("".join(f"{json.dumps(event)}\n" for event in started))

    def reading(num_steps: int) -> None:
        folder.metrics_file("learner").write_text('{"time/step": 1.0}\n' * num_steps)
        watch()

    reading(1)
    reading(3)
    before = time.process_time()
    while time.process_time() < before + 0.2:
        pass
    reading(5)
    assert [steps for steps, _ in watch.readings] == [1, 3, 5]
    rows = [{"tokens/step": 10.0 * 2**step} for step in range(5)]
    assert watch.seconds_per_token(rows) == pytest.approx(0.2 / (80 + 160), abs=0.1 / 240)
