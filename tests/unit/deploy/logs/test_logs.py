"""`vcppo logs`: lines of any origin become records, and filters find one trajectory's life."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.paths import ROOT
from tests.unit.rig.fake_run import config_of, make_run
from vcppo.common.files.json_lines import MAX_LINE_BYTES
from vcppo.common.records.trained_log import read_trained_log
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.chaos.watch import Watch
from vcppo.deploy.logs.log_lines import LineSplitter, LogSink, Screen, parse_line, prefix
from vcppo.deploy.logs.logs_command import LogFilter, from_folder, from_text, newest_from_folder
from vcppo.deploy.report import write_report
from vcppo.deploy.run.run_data import JsonLinesTail, RunData
from vcppo.deploy.terminal.display import ProgressLines
from vcppo.deploy.terminal.live_view import LiveView


def line(event: str, second: int = 0, **fields: object) -> str:
    return json.dumps({"time": f"2026-01-02T03:04:{second:02d}.000Z", "level": "info", "event": event, **fields})


class TestLines:
    def test_splitter_joins_pieces(self) -> None:
        splitter = LineSplitter()
        assert list(splitter.feed(b'{"a"')) == []
        assert list(splitter.feed(b": 1}\nrest")) == ['{"a": 1}']
        assert list(splitter.rest()) == ["rest"]
        assert list(splitter.rest()) == []

    def test_splitter_cuts_endless_lines(self) -> None:
        splitter = LineSplitter()
        assert [len(each) for each in splitter.feed(b"x" * (3 << 20))] == [3 << 20]

    @pytest.mark.parametrize(
        ("text", "level"),
        [
            ("all is well", "info"),
            ("UserWarning: hm", "warning"),
            ("Traceback (most recent call last):", "error"),
            ("ValueError: no", "error"),
            ('{"not": "a log line"}', "info"),
            ('{"event": torn', "info"),
        ],
    )
    def test_any_text_becomes_a_record(self, text: str, level: str) -> None:
        record = parse_line(text, "learner", "run")
        assert (record["event"], record["level"], record["service"]) == (text, level, "learner")

    @pytest.mark.parametrize(
        ("text", "level", "event", "fields"),
        [
            (
                "[W1124 15:28:50.994821790 utils.cpp:68] Warning: NUMA binding",
                "warning", "Warning: NUMA binding", {"location": "utils.cpp:68"},
            ),
            (
                "[rank1]:[E1124 10:00:00.123456789 ProcessGroupGloo.cpp:148] timed out",
                "error", "timed out", {"rank": 1, "location": "ProcessGroupGloo.cpp:148"},
            ),
            (
                "W1124 10:00:00.123000 4711 torch/distributed/run.py:852] Setting OMP_NUM_THREADS",
                "warning", "Setting OMP_NUM_THREADS", {"location": "torch/distributed/run.py:852"},
            ),
            ("I1124 10:00:00.1 run.py:1] starting", "info", "starting", {"location": "run.py:1"}),
            ("F1124 10:00:00.1 a.cc:1] gone", "critical", "gone", {"location": "a.cc:1"}),
            (
                "(EngineCore pid=12) ERROR 11-24 10:00:00 [core.py:9] EngineCore failed",
                "error", "EngineCore failed", {"process": "EngineCore", "location": "core.py:9"},
            ),
            (
                "[2026-11-24 10:00:00,123] [WARNING] [real_accelerator.py:209:get] no accelerator",
                "warning", "no accelerator", {"location": "real_accelerator.py:209:get"},
            ),
            ("7:M 24 Nov 2026 10:20:39.679 * Ready to accept connections", "info", "Ready to accept connections", {}),
            ("7:M 24 Nov 2026 10:20:39.679 # WARNING Memory overcommit", "warning", "WARNING Memory overcommit", {}),
            ("7:M 24 Nov 2026 10:20:39.679 - Accepted 1.2.3.4:5", "debug", "Accepted 1.2.3.4:5", {}),
            ("terminate called after throwing an instance of 'std::runtime_error'", "error", None, {}),
            ("Fatal Python error: Segmentation fault", "error", None, {}),
            ("[W1124 torn", "info", None, {}),
        ],
    )  # fmt: skip
    def test_marks_of_others_say_the_level(
        self, text: str, level: str, event: str | None, fields: dict[str, object]
    ) -> None:
        record = parse_line(text, "learner", "run")
        assert (record["level"], record["event"]) == (level, event or text)
        assert {name: record[name] for name in ("rank", "location", "process") if name in record} == fields
        assert record["unstructured"] is True

    def test_colour_codes_are_taken_out(self) -> None:
        assert parse_line("\x1b[31mred\x1b[0m", "x", "r")["event"] == "red"

    def test_sink_keeps_valid_json_only(self, tmp_path: Path) -> None:
        sink = LogSink(tmp_path, "run")
        for text in ("plain", line("event"), "", '{"half":'):
            sink.line("learner", text)
        sink.close()
        events = [json.loads(each)["event"] for each in (tmp_path / "learner.jsonl").read_text().splitlines()]
        assert events == ["plain", "event", '{"half":']

    def test_screen_prefixes_and_filters(self) -> None:
        stream = io.StringIO()
        screen = Screen(stream, level="warning")
        screen.show("generator-1", {"event": "quiet", "level": "info"})
        screen.show("generator-1", {"event": "late", "level": "warning", "seconds": 2})
        assert stream.getvalue().startswith("generator-1 │ ")
        assert "late" in stream.getvalue()
        assert "quiet" not in stream.getvalue()

    def test_generators_have_colours_of_their_own(self) -> None:
        assert prefix("generator-0", 11, True).split("m")[0] != prefix("generator-1", 11, True).split("m")[0]


DEEP = "[" * 5000
DEEP_BUT_READ = "[" * 900 + "]" * 900
HOSTILE = {
    "nested without end": '{"event": "x", "a": ' + DEEP,
    "nested and closed": '{"event": "x", "a": ' + DEEP + "]" * 5000 + "}",
    "nested as deep as Python reads": '{"event": "x", "a": ' + DEEP_BUT_READ + "}",
    "an integer of many digits": '{"event": "x", "a": ' + "9" * 5000 + "}",
    "a lone surrogate": r'{"event": "\ud800", "\udfff": "\ud800", "exception": "\ud800", "error": {"\ud800": 1}}',
    "numbers that are none": '{"event": "x", "a": NaN, "b": -Infinity, "c": 1e999}',
    "NUL bytes": '{"event": "x"\0\0\0',
    "NUL in text": r'{"event": "\u0000", "level": "\u001b[31m", "service": "\u001b[2J", "time": "\u001b[2J"}',
    "an event that is no text": '{"event": {"a": [1]}, "level": ["x"], "time": 5, "logger": null, "service": [2]}',
    "an empty event": '{"event": "", "level": "error"}',
    "a level that is no text": '{"event": "ready", "level": {"a": 1}, "error": [[]], "process": {}}',
    "an array": "[1, 2]",
    "line separators": '{"event": "a\u2028b\x85c"}',
    "not UTF-8": b'{"event": "\xff\xfe"}'.decode("utf-8", "replace"),
    "a megabyte of letters": "a" * (1 << 20),
    "a megabyte of marks": "[" + "rank1]:" * 150_000,
    "a megabyte of colours": "\x1b[1" * 250_000,
    "a megabyte of colons": "I1124 10:00:00.1 " + "x:1" * 350_000,
    "a megabyte of escapes": '{"event": "' + r"\u001b" * 170_000 + '"}',
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_no_line_ends_its_reader(tmp_path: Path, name: str) -> None:
    """What a child prints is kept as one line of valid JSON, and shown in every way there is; within seconds."""
    sink, data = LogSink(tmp_path / "logs", "run"), RunData(RunFolder(tmp_path), config_of(tmp_path))
    files = [(tmp_path / f"{way}.txt").open("w", encoding="utf-8") for way in ("plain", "json", "steps", "live")]
    console = Console(file=files[3], force_terminal=True, width=100)
    view = LiveView(data, lambda: (None, ()), console)
    shows = [
        Screen(files[0], level="debug").show, Screen(files[1], level="debug", as_json=True).show,
        ProgressLines(data, files[2]).show, view.show,
    ]  # fmt: skip
    watch = Watch(RunFolder(tmp_path))
    sink.show = lambda process, record: [show(process, record) for show in (*shows, watch.see)] and None
    started = time.monotonic()
    sink.line("generator-0", HOSTILE[name])
    sink.line("generator-0", line("fatal", error="the last one", level="critical"))
    console.print(view.render())
    assert sink.last_lines("generator-0") == ["the last one"]
    sink.close()
    for file in files:
        file.close()
    kept = (tmp_path / "logs" / "generator-0.jsonl").read_bytes()
    assert all(isinstance(json.loads(each), dict) for each in kept.split(b"\n") if each)
    assert [record["event"] for record in from_folder(tmp_path / "logs", follow=False)][-1] == "fatal"
    assert time.monotonic() - started < 20
    shown = (tmp_path / "plain.txt").read_text(encoding="utf-8")
    assert "\x1b" not in shown and "\0" not in shown


@pytest.mark.parametrize("name", HOSTILE)
def test_no_line_of_a_file_ends_its_reader(tmp_path: Path, name: str) -> None:
    """The same lines in files: another program, or a crash, may have put them there."""
    raw = HOSTILE[name].encode("utf-8", "surrogatepass").replace(b"\n", b" ")
    folder = make_run(tmp_path)
    for path in (folder.metrics_file("learner"), folder.metrics_file("generator-0"), folder.log_file("learner"),
                 folder.path / "stages.jsonl", folder.trained_log, folder.path / "ledger.json",
                 folder.value_pretraining / "decision.json"):  # fmt: skip
        with path.open("ab") as file:
            file.write(raw + b"\n\xff\xfe\n" + raw)
    data = RunData.load(folder)
    assert len(data.rl) == 30 and data.rl[-1]["step"] == 30
    assert data.stage_seconds()["up"] == 520.5
    assert len(read_metrics(folder.metrics_file("learner"))) >= 38
    assert read_trained_log(folder.trained_log) == {}
    screen = Screen((tmp_path / "out").open("w", encoding="utf-8"), level="debug")
    for record in from_folder(folder.logs, follow=False):
        screen.show(str(record.get("service", "")), record)


ROWS_OF_ANOTHER_KIND = (
    '{"time": 5, "step": 31, "stage": "rl"}',
    '{"time": "2026", "step": "31"}',
    '{"step": 31}',
    '{"time": "2026-01-02T03:04:05.678Z", "step": 31, "stage": ["rl"]}',
    '{"time": "2026-01-02T03:04:05.678Z", "step": null, "vp/recorded": "many"}',
)


def test_rows_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with folder.metrics_file("learner").open("a") as file:
        file.writelines(row + "\n" for row in ROWS_OF_ANOTHER_KIND)
    data = RunData.load(folder)
    assert data.rl[-1]["step"] == 30
    assert write_report(folder).exists()


def test_a_line_too_long_is_passed_over_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    tail = JsonLinesTail(path)
    with path.open("wb") as file:
        file.write(b'{"step": 1}\n{"step": "')
        for _ in range(40):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    assert tail.read() == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b'"}\n{"step": 2}\n{"st')
    assert tail.read() == [{"step": 2}]
    assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LINE_BYTES
    tracemalloc.stop()
    with path.open("ab") as file:
        file.write(b'ep": 3}')
    assert (tail.read(), tail.rest()) == ([], [{"step": 3}])


def test_what_is_piped_in_need_not_be_utf_8() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vcppo.deploy.cli", "logs"]
    done = subprocess.run(command, input=b"\xff\xfe broken\n" + line("whole").encode() + b"\n", capture_output=True,
                          env=environment, cwd=ROOT, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"broken" in done.stdout and b"whole" in done.stdout


class TestFilter:
    def test_service_by_name_or_kind(self) -> None:
        record = {"service": "generator-1"}
        assert LogFilter(service="generator").wants(record)
        assert LogFilter(service="generator-1").wants(record)
        assert not LogFilter(service="generator-0").wants(record)
        assert not LogFilter(service="gen").wants(record)
        assert LogFilter(service="generator").wants({"service": "generator-6d8f-x2x"})  # a container's host name

    def test_level_and_version(self) -> None:
        record = {"level": "warning", "policy_version": 3}
        assert LogFilter(level="info", policy_version=3).wants(record)
        assert not LogFilter(level="error").wants(record)
        assert not LogFilter(policy_version=4).wants(record)

    @pytest.mark.parametrize("asked", ["rl-1-2-3", "rl-1-2-3@generator-0.1"])
    def test_trajectory_is_followed_across_services(self, asked: str) -> None:
        wanted = LogFilter(trajectory=asked)
        assert wanted.wants({"prompt_id": "rl-1-2-3"})
        assert wanted.wants({"trajectory_id": "rl-1-2-3@generator-0.1"})
        assert wanted.wants({"prompt_ids": ["rl-1-2-2", "rl-1-2-3"]})
        assert not wanted.wants({"prompt_id": "rl-1-2-33"})
        assert not wanted.wants({})


class TestSources:
    def test_compose_output_and_plain_text(self) -> None:
        records = list(
            from_text([f"learner-1  | {line('step', service='learner')}\n", "redis-1 | * Ready\n", "\n", "bare\n"])
        )
        assert [(r["service"], r["event"]) for r in records] == [
            ("learner", "step"),
            ("redis-1", "* Ready"),
            ("", "bare"),
        ]

    def test_folder_is_merged_by_time(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(line("one", 1) + "\n" + line("three", 3) + "\n")
        (tmp_path / "b.jsonl").write_text(line("two", 2) + "\n")
        assert [r["event"] for r in from_folder(tmp_path, follow=False)] == ["one", "two", "three"]

    @given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=4), most_bytes=st.integers(0, 12_000))
    def test_newest_are_the_end_of_each_file(self, counts: list[int], most_bytes: int) -> None:
        """By time, within the bytes that are given; what small files leave of their share goes to larger ones."""
        with TemporaryDirectory() as name:
            folder, size = Path(name), len(line("10", 10, service="a0")) + 1
            files = [[line(str(i), i, service=f"a{number}") for i in range(10, 10 + count)]
                     for number, count in enumerate(counts)]  # fmt: skip
            for number, lines in enumerate(files):
                (folder / f"a{number}.jsonl").write_text("".join(f"{each}\n" for each in lines))
            sizes = [path.stat().st_size for path in folder.iterdir()]
            found, is_all = newest_from_folder(folder, most_bytes)
            assert [each["time"] for each in found] == sorted(each["time"] for each in found)
            for number, lines in enumerate(files):
                mine = [each["event"] for each in found if each["service"] == f"a{number}"]
                assert mine == [json.loads(each)["event"] for each in lines][len(lines) - len(mine) :]
            assert is_all == (sum(sizes) <= most_bytes) or len(found) == sum(counts)
            # Of each file that was cut a piece of a line is lost, and nothing else of what was given.
            whole = sum(len(json.dumps(each)) + 1 for each in found)
            assert min(sum(sizes), most_bytes) - 2 * size * len(files) <= whole <= most_bytes

    def test_follow_sees_new_lines_and_new_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text(line("old") + "\n")
        records = from_folder(tmp_path, follow=True)
        assert next(records)["event"] == "old"
        timer = threading.Timer(0.05, lambda: (tmp_path / "b.jsonl").write_text(line("new") + "\n"))
        timer.start()
        assert next(records)["event"] == "new"
        timer.join()

    def test_tail_waits_for_whole_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "m.jsonl"
        tail = JsonLinesTail(path)
        assert tail.read() == []
        path.write_text('{"step": 1}\n{"st')
        assert tail.read() == [{"step": 1}]
        path.write_text('{"step": 1}\n{"step": 2}\n')
        assert tail.read() == [{"step": 2}]
