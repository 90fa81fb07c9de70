"""A role's step has the GPUs that Slurm gives it, and no more: its part of the run is placed on them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from tests.unit.deploy.placement.test_place import config, gpus
from tests.unit.deploy.slurm.test_head_note import NOTE
from vcppo.common.config import VcppoConfig
from vcppo.deploy.launch import launcher
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.processes.process_spec import ProcessSpec
from vcppo.deploy.slurm import role
from vcppo.deploy.slurm.head import Head, Job, node_part

WORD = "CUDA_VISIBLE_DEVICES"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VcppoConfig:
    """Four ranks on two nodes, and eight engines of two GPUs."""
    monkeypatch.delenv(WORD, raising=False)
    monkeypatch.setenv("VCPPO_ADDRESS", "127.0.0.1")
    return config(4, 8, 2, run={"folder": tmp_path})


def has(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(launcher, "devices_of", lambda config: gpus(count))


def of_head(run: VcppoConfig, tmp_path: Path) -> ProcessSpec:
    return Head(run, [], LogSink(tmp_path, "run"), "127.0.0.1", 2, Job("12", 0)).learner_spec()


def of_generator(run: VcppoConfig, tmp_path: Path) -> ProcessSpec:
    member = role.Member(run, LogSink(tmp_path, "run"), NOTE, role.ONE_ENGINE)
    return role._generator_spec(member, Namespace(first=0))


def test_each_step_is_content_with_its_own(run: VcppoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 2)
    other = role.Member(run, LogSink(tmp_path, "run"), NOTE, node_part(run, 2)).learner_spec()
    assert [each.environment[WORD] for each in (of_head(run, tmp_path), other, of_generator(run, tmp_path))] == [
        "0,1"
    ] * 3


def test_a_step_with_too_few_says_so(run: VcppoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 1)
    with pytest.raises(PlacementError, match=r"2 GPUs for learner\.num_ranks = 2, and 1 is visible"):
        of_head(run, tmp_path)
    with pytest.raises(PlacementError, match="2 GPUs for generator"):
        of_generator(run, tmp_path)


def test_without_gpus_nothing_is_said_of_them(
    run: VcppoConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, 0)
    assert WORD not in of_head(run, tmp_path).environment | of_generator(run, tmp_path).environment
