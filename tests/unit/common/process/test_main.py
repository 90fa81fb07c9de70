"""The frame of a process: which exit code and which last line it ends with."""

from __future__ import annotations

import argparse
import errno
import json
import threading
from pathlib import Path

import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_EXHAUSTED, EXIT_OK, EXIT_REFUSED, EXIT_USAGE, ResourceExhausted, VcppoError
from vcppo.common.process.main import process_parser, run_process


class Refused(VcppoError):
    exit_code = EXIT_REFUSED


@pytest.fixture
def given(tmp_path: Path) -> argparse.Namespace:
    (tmp_path / "run.yaml").write_text("model: {path: m}\n")
    overrides = [f"run.folder={tmp_path}", "run.name=r", "logging.format=json"]
    return process_parser("test", "words").parse_args(["--config", str(tmp_path / "run.yaml"), *overrides])


def is_watched() -> bool:
    return any(thread.name == "watchdog" and not thread.ended.is_set() for thread in threading.enumerate())  # type: ignore[attr-defined]


def test_work_is_done_under_the_watchdog_with_the_config(given: argparse.Namespace, tmp_path: Path) -> None:
    seen: list[object] = []

    def work(config: VcppoConfig) -> None:
        seen.extend([config.run.name, is_watched()])

    assert run_process(given, "buffer", work, at_end=lambda: seen.append(is_watched())) == EXIT_OK
    assert seen == ["r", True, False]
    assert (tmp_path / "r").is_dir()


def test_the_exit_code_is_that_of_the_work(given: argparse.Namespace) -> None:
    assert run_process(given, lambda config: config.run.name, lambda _: 143) == 143


def test_an_explained_error_is_one_fatal_line(given: argparse.Namespace, capsys: pytest.CaptureFixture[str]) -> None:
    ended: list[bool] = []

    def work(config: VcppoConfig) -> int:
        raise Refused("a person must look")

    assert run_process(given, "learner", work, at_end=lambda: ended.append(True)) == EXIT_REFUSED
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["level"], line["service"]) == ("fatal", "critical", "learner")
    assert line["error"] == "a person must look"
    assert ended == [True]


@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/r/export/model.safetensors"), "disk space"),
        (OSError(errno.EMFILE, "Too many open files"), "open files"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "disk space"),
        (MemoryError(), "memory"),
        (ResourceExhausted("stopped while it waited", "inodes"), "inodes"),
    ],
)
def test_a_resource_that_has_run_out_is_one_fatal_line_and_worth_another_try(
    given: argparse.Namespace, capsys: pytest.CaptureFixture[str], error: Exception, resource: str
) -> None:
    def work(config: VcppoConfig) -> int:
        raise error

    assert run_process(given, "learner", work) == EXIT_EXHAUSTED
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["resource"]) == ("fatal", resource)
    assert "\n" not in line["error"]


def test_a_config_that_cannot_be_used_ends_it_before_the_work(
    given: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    given.overrides = ["run.nmae=r"]
    assert run_process(given, "learner", lambda _: pytest.fail("did its work")) == EXIT_USAGE
    assert "run.nmae" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(given: argparse.Namespace) -> None:
    def work(config: VcppoConfig) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_process(given, "learner", work)
    assert not is_watched()
