"""Metrics survive crashes, odd numbers and the absence of torch."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.paths import ROOT
from tests.unit.common.files.test_kept_lines import SmallDisk
from vcppo.common.errors import MetricsError
from vcppo.common.files import json_lines
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metric_sinks import TensorBoardSink
from vcppo.common.telemetry.metrics import MetricsWriter, read_metrics


def test_write_then_read(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "learner", "run-1")
    writer.write(
        1, {"reward/mean": 0.5, "tokens/step": 7, "stage": "rl", "advantages/by_position": [0.1, float("inf")]}
    )
    writer.write(2, {"a": float("nan"), "b": None, "c": np.float32(0.25), "d": np.arange(2)})
    writer.close()
    writer.close()
    first, second = read_metrics(RunFolder(tmp_path).metrics_file("learner"))
    assert (first["service"], first["run_id"], first["step"], first["stage"]) == ("learner", "run-1", 1, "rl")
    assert first["time"].endswith("Z")
    assert (first["reward/mean"], first["tokens/step"], first["advantages/by_position"]) == (0.5, 7, [0.1, None])
    assert (second["a"], second["b"], second["c"], second["d"]) == (None, None, 0.25, [0, 1])


def test_each_line_is_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "learner", "r")
    writer.write(1, {"a": 1.0})
    assert [line["a"] for line in read_metrics(RunFolder(tmp_path).metrics_file("learner"))] == [1.0]
    writer.close()


class Heard:
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []

    def write(self, step: int, values: dict[str, float], undefined: list[str], wall_time: float) -> None:
        self.steps.append((step, values))

    def close(self) -> None: ...


def test_a_line_is_on_disk_at_once_and_sinks_hear_of_it_once(tmp_path: Path) -> None:
    heard = Heard()
    writer = MetricsWriter(tmp_path, "learner", "r", [heard])
    writer.write(1, {"a": 1.0, "b": 2.0})
    assert [line["step"] for line in read_metrics(RunFolder(tmp_path).metrics_file("learner"))] == [1]
    writer.close()
    assert heard.steps == [(1, {"a": 1.0, "b": 2.0})]


def test_a_torn_last_line_is_reported_and_the_next_writer_goes_on(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).metrics_file("learner")
    path.parent.mkdir()
    path.write_text('{"step": 1}\n{"step": 2, "a": 0.')
    with capture_logs() as logs:
        assert read_metrics(path) == [{"step": 1}]
    assert [(each["event"], each["line"]) for each in logs] == [("metrics_line_torn", 2)]
    writer = MetricsWriter(tmp_path, "learner", "r")
    writer.write(3, {})
    writer.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 3]


def test_missing_and_unreadable(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none.jsonl") == []
    with pytest.raises(MetricsError, match="can't be read"):
        read_metrics(tmp_path)


def test_tensorboard_holds_the_scalars(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "learner", "r", [TensorBoardSink(RunFolder(tmp_path).tensorboard / "learner")])
    writer.write(1, {"reward/mean": 0.5, "stage": "rl", "curve": [1.0], "undefined": None, "bad": float("nan")})
    writer.write(2, {"reward/mean": 0.75})
    writer.close()
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (path,) = (RunFolder(tmp_path).tensorboard / "learner").iterdir()
    events = list(EventFileLoader(str(path)).Load())
    seen = [(event.step, value.tag, value.tensor.float_val[0]) for event in events for value in event.summary.value]
    assert seen == [(1, "reward/mean", 0.5), (2, "reward/mean", 0.75)]


def test_writing_needs_neither_torch_nor_tensorflow(tmp_path: Path) -> None:
    code = f"""
import sys, json
from pathlib import Path
import vcppo.common.config, vcppo.common.telemetry.log
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.common.telemetry.metric_sinks import PrometheusSink, TensorBoardSink
sinks = [TensorBoardSink(Path({str(tmp_path)!r}) / "events"), PrometheusSink("127.0.0.1", 0, "s", "r")]
writer = MetricsWriter(Path({str(tmp_path)!r}), "s", "r", sinks)
writer.write(1, {{"a": 1.0}})
writer.close()
print(json.dumps(sorted({{"torch", "tensorflow", "vllm", "deepspeed", "transformers"}} & set(sys.modules))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1] if done.stdout else "null")) == (0, []), (
        done.stderr
    )


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> type[SmallDisk]:
    monkeypatch.setattr(json_lines, "FileIO", SmallDisk)
    SmallDisk.room = 1 << 30
    return SmallDisk


def test_a_full_disk_costs_no_row(small_files: type[SmallDisk], tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, "learner", "r")
    writer.write(1, {"reward/mean": 1.0})
    small_files.room = 10
    with capture_logs() as lines:
        writer.write(2, {"reward/mean": 2.0})
        writer.write(3, {"reward/mean": 3.0})
        small_files.room = 1 << 20
        writer.write(4, {"reward/mean": 4.0})
    writer.close()
    assert [line["step"] for line in read_metrics(RunFolder(tmp_path).metrics_file("learner"))] == [1, 2, 3, 4]
    assert [line["event"] for line in lines] == ["waiting_for_room", "room_again"]
    assert (lines[0]["resource"], lines[0]["folder"]) == ("disk space", str(tmp_path / "metrics"))


def test_a_sink_that_lacks_room_costs_the_others_nothing(tmp_path: Path) -> None:
    class Full:
        def write(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    writer = MetricsWriter(tmp_path, "learner", "r", [Full()])
    with capture_logs() as lines:
        writer.write(1, {"reward/mean": 1.0})
    writer.close()
    assert [line["event"] for line in lines] == ["metrics_not_written"]
    assert len(read_metrics(RunFolder(tmp_path).metrics_file("learner"))) == 1


def test_tensorboard_begins_anew_after_a_full_disk(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path)
    assert sink._writer is not None
    sink._writer._async_writer._worker.exception = OSError(
        errno.ENOSPC, "No space left on device"
    )  # as its thread does
    with pytest.raises(OSError, match="No space"):
        sink.write(1, {"a": 1.0}, [], 0.0)
    sink.write(2, {"a": 2.0}, [], 0.0)
    sink.close()
    assert len(list(tmp_path.glob("events*"))) == 2
