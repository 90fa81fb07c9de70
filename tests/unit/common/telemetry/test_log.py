"""Every line is one JSON object, whoever logs it and whatever is in it."""

from __future__ import annotations

import importlib
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import ROOT
from vcppo.common.config import LoggingConfig
from vcppo.common.telemetry.log import configure_logging
from vcppo.common.telemetry.log_render import LEADING_FIELDS, render_line, to_json

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def restore_logging() -> Iterator[None]:
    """Leave the process as it was: root handlers and level, hooks, environment, structlog."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning
    environment = dict(os.environ)
    yield
    root.handlers[:], root.level = handlers, level
    sys.excepthook, threading.excepthook, sys.unraisablehook, warnings.showwarning = hooks  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(environment)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


@pytest.fixture
def lines(restore_logging: None, capsys: pytest.CaptureFixture[str]) -> Lines:
    """Configure JSON logging; call it for the lines since the last call."""
    configure_logging(LoggingConfig(level="info"), "learner", "run-1")
    return lambda: [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_line_says_who_when_and_what(lines: Lines) -> None:
    structlog.contextvars.bind_contextvars(policy_version=3)
    structlog.get_logger("vcppo.learner.rl.loop").info("weights_broadcast", seconds=0.2, trajectory_id="t@g.0")
    (line,) = lines()
    assert list(line)[:6] == list(LEADING_FIELDS)
    assert line["time"].endswith("Z")
    assert len(line["time"]) == len("2026-01-02T03:04:05.678Z")
    assert (line["level"], line["service"], line["run_id"]) == ("info", "learner", "run-1")
    assert (line["event"], line["logger"]) == ("weights_broadcast", "vcppo.learner.rl.loop")
    assert (line["policy_version"], line["trajectory_id"], line["seconds"]) == (3, "t@g.0", 0.2)


def test_stdlib_loggers_and_their_levels(lines: Lines) -> None:
    logging.getLogger("some.library").error("bad %s", "thing", extra={"size": 3})
    logging.getLogger("some.library").debug("unseen")
    logging.getLogger("httpx").info("unseen too")
    (line,) = lines()
    assert (line["event"], line["level"], line["logger"], line["size"]) == ("bad thing", "error", "some.library", 3)


@pytest.mark.parametrize("name", ["vllm", "DeepSpeed", "transformers"])
def test_libraries_cannot_keep_handlers_of_their_own(lines: Lines, name: str) -> None:
    logger = logging.getLogger(name)  # what DeepSpeed and transformers do on import, vLLM by dictConfig
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.warning("once")
    logging.getLogger(f"{name}.deep.inside").warning("once too")
    assert [line["event"] for line in lines()] == ["once", "once too"]


def test_warnings(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = importlib.import_module(
            "vcppo.common.telemetry.log"
        )._show_warning  # catch_warnings resets it
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (line,) = lines()
    assert (line["event"], line["level"], line["category"]) == ("old", "warning", "DeprecationWarning")
    assert "test_log.py:" in line["location"]


def test_exceptions_are_one_field(lines: Lines) -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger("learner").exception("step_failed", step=3)
    (line,) = lines()
    assert (line["event"], line["level"], line["step"]) == ("step_failed", "error", 3)
    assert line["exception"].endswith("ValueError: two\nlines")


def test_uncaught_exceptions_in_main_and_threads(lines: Lines) -> None:
    error = RuntimeError("lost")
    sys.excepthook(RuntimeError, error, None)
    thread = threading.Thread(target=lambda: 1 / 0, name="broadcast")
    thread.start()
    thread.join()
    main, other = lines()
    assert (main["event"], main["level"], main["error"]) == ("uncaught_exception", "critical", "lost")
    assert (other["error"], other["thread"]) == ("division by zero", "broadcast")
    assert "ZeroDivisionError" in other["exception"]


def test_keyboard_interrupt_is_no_crash(lines: Lines) -> None:
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    (line,) = lines()
    assert (line["event"], line["level"]) == ("interrupted", "warning")


def test_configuring_twice_writes_once(lines: Lines) -> None:
    configure_logging(LoggingConfig(level="warning"), "buffer", "run-1")
    structlog.get_logger("x").info("unseen")
    structlog.get_logger("x").warning("seen")
    assert [(line["service"], line["event"]) for line in lines()] == [("buffer", "seen")]


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_odd_values_never_fail() -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    line = to_json(
        {
            "event": "odd",
            "path": Path("a/b"),
            "float32": np.float32(0.5),
            "int64": np.int64(7),
            "array": np.arange(3),
            "large": np.zeros((100, 100), np.float32),
            "nan": float("nan"),
            "bytes": b"\xff",
            "set": {1},
            "odd": Odd(),
            "cyclic": cyclic,
            "surrogate": "\ud800",
            "error": ValueError("why"),
            3: "key",
        }
    )
    parsed = json.loads(line)
    assert (parsed["path"], parsed["float32"], parsed["int64"], parsed["array"]) == ("a/b", 0.5, 7, [0, 1, 2])
    assert parsed["large"] == "<float32 array of shape (100, 100)>"
    assert (parsed["nan"], parsed["error"], parsed["set"], parsed["3"]) == ("nan", "why", [1], "key")
    assert parsed["odd"] == "<Odd whose repr raised RuntimeError>"
    line.encode()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(fields=st.dictionaries(st.text(max_size=8), _VALUES, max_size=4))
def test_any_line_is_one_line_of_json_and_can_be_rendered(fields: dict[str, Any]) -> None:
    text = to_json(fields)
    assert "\n" not in text
    assert isinstance(render_line(json.loads(text), colour=True), str)


def test_render_line() -> None:
    line = {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "service": "learner",
        "run_id": "r",
        "event": "weights_broadcast",
        "logger": "vcppo.learner.rl.loop",
        "policy_version": 3,
        "seconds": 0.20001,
        "note": "two words",
    }
    expected = '03:04:05.678 info     learner      weights_broadcast policy_version=3 seconds=0.2 note="two words"'
    assert render_line(line) == expected
    assert render_line({**line, "exception": "Traceback\nboom"}).endswith("\nTraceback\nboom")
    assert "logger=vllm.engine" in render_line({**line, "logger": "vllm.engine"})
    assert render_line({}).strip() == ""


CHILD = """
import json, logging, logging.config, os
config = json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"]))
logging.config.dictConfig(config)  # what vllm/logger.py does on import
logging.getLogger("vllm.engine").warning("loaded in %d s", 3)
import structlog
structlog.get_logger("vcppo.generator.vllm_engine.engine").info("weights_loaded")
"""


def test_vllm_children_log_like_their_parent(lines: Lines) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["event"], first["level"], first["logger"]) == ("loaded in 3 s", "warning", "vllm.engine")
    assert (first["service"], first["run_id"]) == ("learner", "run-1")
    assert second["event"] == "weights_loaded"
    assert done.stderr == ""
