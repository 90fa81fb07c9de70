"""Profiles of real work: a tiny policy's forward and backward, and processes that py-spy looks into."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import Qwen2ForCausalLM

from tests.unit.rig.learner_samples import VOCAB, tiny_config
from vcppo.common.config import VcppoConfig
from vcppo.common.process.living import noted
from vcppo.learner.profiling import flame_graphs as module
from vcppo.learner.profiling.flame_graphs import flame_graphs
from vcppo.learner.profiling.step_profile import StepProfile
from vcppo.learner.rl.phases import Phases

BUSY = "print(flush=True)\ndef spin_for_the_graph():\n while True: sum(range(1000))\nspin_for_the_graph()"


def profile_of(folder: Path, steps: list[int], rank: int = 0) -> StepProfile:
    config = VcppoConfig.model_validate(
        {"run": {"name": "r", "folder": folder}, "model": {"path": "m"}, "learner": {"profile_steps": steps}}
    )
    return StepProfile(config, rank)


def train_a_little(policy: torch.nn.Module) -> None:
    with Phases().phase("update"):
        tokens = torch.randint(0, VOCAB, (1, 16), generator=torch.Generator().manual_seed(0))
        policy(input_ids=tokens).logits.mean().backward()


def events_of(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return events


@pytest.fixture
def no_py_spy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_py_spy", lambda: None)


@pytest.mark.usefixtures("no_py_spy")
def test_a_trace_shows_phases_and_operators_of_the_step(tmp_path: Path) -> None:
    policy = Qwen2ForCausalLM(tiny_config())
    profile = profile_of(tmp_path, [2, 4], rank=1)
    for step in (1, 2, 3):
        with profile.of(step):
            train_a_little(policy)
    (file,) = (tmp_path / "r" / "profiles").iterdir()
    assert file.name == "step_2.learner.rank1.json.gz"
    events = events_of(file)
    (update,) = [each for each in events if each["name"] == "update" and each["ph"] == "X"]
    inside = {
        each["name"] for each in events
        if each["ph"] == "X" and update["ts"] <= each["ts"] <= update["ts"] + update["dur"]
    }  # fmt: skip
    assert "aten::mm" in inside
    assert any(name.startswith("autograd::engine::evaluate_function") for name in {each["name"] for each in events})


@pytest.mark.usefixtures("no_py_spy")
def test_a_step_that_raises_does_so_and_the_next_one_is_profiled(tmp_path: Path) -> None:
    profile = profile_of(tmp_path, [1, 2])
    with pytest.raises(ZeroDivisionError), profile.of(1):
        raise ZeroDivisionError
    with profile.of(2):
        torch.ones(2, 2).mm(torch.ones(2, 2))
    (file,) = (tmp_path / "r" / "profiles").iterdir()
    assert file.name == "step_2.learner.rank0.json.gz"


@pytest.mark.usefixtures("no_py_spy")
def test_a_place_that_can_not_be_written_costs_the_profile_alone(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "profiles").write_text("a file")
    with capture_logs() as logs, profile_of(tmp_path, [1]).of(1):
        pass
    assert [each["event"] for each in logs] == ["flame_graphs_left_out", "trace_not_written", "step_profiled"]
    assert "profiles" in logs[1]["error"]


@pytest.mark.usefixtures("no_py_spy")
def test_without_py_spy_the_remedy_is_said_once(tmp_path: Path) -> None:
    with capture_logs() as logs, flame_graphs(tmp_path, 1, tmp_path):
        pass
    (line,) = logs
    assert (line["event"], line["remedy"]) == ("flame_graphs_left_out", "pip install vcppo[profile]")


# py-spy itself


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[Path]:
    """Notes of two processes of a run that are at work; the folder of the notes."""
    notes = tmp_path / "notes"
    code = (
        f"import os, pathlib, sys\nfrom vcppo.common.process.living import noted\n"
        f"with noted(pathlib.Path({str(notes)!r}), sys.argv[1]): exec({BUSY!r})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE) for name in ("buffer", "learner")
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    yield notes
    for process in processes:
        process.kill()
        process.communicate()


def py_spy() -> str:
    found = module._py_spy()
    if found is None:
        pytest.skip("the optional extra vcppo[profile] is not installed")
    return found


def may_trace(program: str) -> bool:
    """Whether this machine lets us look into a process of ours."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        time.sleep(0.5)
        done = subprocess.run(
            [program, "dump", "--pid", str(process.pid)], capture_output=True, check=False, timeout=60
        )
        process.kill()
    return done.returncode == 0


def test_every_process_of_the_run_gets_a_flame_graph(tmp_path: Path, busy: Path) -> None:
    if not may_trace(py_spy()):
        pytest.skip("py-spy may not trace processes here")
    with noted(busy, "redis"), capture_logs() as logs, flame_graphs(tmp_path / "out", 3, busy):
        time.sleep(1.0)
    assert logs == []
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == ["step_3.buffer.svg", "step_3.learner.svg"]  # Redis has no Python
    for file in files:
        assert "spin_for_the_graph" in file.read_text()


def test_a_kernel_that_refuses_is_one_line_with_the_remedy(
    tmp_path: Path, busy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = py_spy()
    if os.getuid() == 0:  # root without the capability is refused as a user is
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv")
        wrapper = tmp_path / "py-spy"
        wrapper.write_text(
            f'#!/bin/sh\nexec setpriv --bounding-set=-sys_ptrace --reuid=65534 --clear-groups "{program}" "$@"\n'
        )
        wrapper.chmod(0o755)
        monkeypatch.setattr(module, "_py_spy", lambda: str(wrapper))
    elif may_trace(program):
        pytest.skip("py-spy may trace processes here, and we can't take that away")
    with capture_logs() as logs, flame_graphs(tmp_path / "out", 3, busy):
        pass
    (line,) = logs
    assert (line["event"], line["processes"]) == ("flame_graphs_refused", ["buffer", "learner"])
    assert "CAP_SYS_PTRACE" in line["remedy"]
    assert list((tmp_path / "out").iterdir()) == []
