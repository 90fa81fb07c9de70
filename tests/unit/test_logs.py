"""`vcppo logs`: lines of any origin become records, and filters find one trajectory's life."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest

from deploy.log_lines import LineSplitter, LogSink, Screen, parse_line, prefix
from deploy.logs import LogFilter, from_folder, from_text
from deploy.run_data import JsonLinesTail


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
