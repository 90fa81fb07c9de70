"""The batch scripts: bash reads them, each role is on its node, and what is asked for is in the header."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vcppo.deploy.slurm.batch_script import Request, join_script, run_script

REQUEST = Request(
    run="first",
    folder=Path("/shared/my runs/first"),
    work=Path("/shared"),
    python="/shared/venv/bin/python",
    learner_nodes=2,
    generator_nodes=3,
    generators_per_node=4,
    gpus_per_node=8,
    gpus_per_generator=2,
    partition="gpu",
    time="24:00:00",
    sbatch=("--constraint=h100",),
)


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def steps(script: str) -> list[str]:
    return [line for line in script.splitlines() if line.startswith("srun ")]


@pytest.mark.parametrize("script", [run_script(REQUEST), join_script(REQUEST)], ids=["run", "join"])
def test_bash_reads_it(script: str) -> None:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_header_asks_for_what_was_asked_for() -> None:
    found = options(run_script(REQUEST))
    assert {
        "--job-name=vcppo-first", "--nodes=5", "--exclusive", "--gpus-per-node=8", "--partition=gpu", "--time=24:00:00",
        "--no-kill", "--requeue", "--signal=TERM@300", "--constraint=h100",
    } <= set(found)  # fmt: skip
    assert not [option for option in found if "account" in option or "qos" in option]


def test_each_node_has_one_step_and_its_role() -> None:
    found = steps(run_script(REQUEST))
    assert [re.findall(r"--relative=(\d+)", step)[0] for step in found] == ["0", "1", "2", "3", "4"]
    assert [re.findall(r"slurm\.role (\w+)", step)[0] for step in found] == ["head", "learner", *["generator"] * 3]
    assert "--learner-nodes 2 --learner-node 1" in found[1]


def test_learners_get_all_gpus_of_a_node_and_engines_their_share() -> None:
    found = steps(run_script(REQUEST))
    assert ["--gpus-per-task=8 " in step for step in found] == [True, True, False, False, False]
    assert all("--ntasks=4 --gpus-per-task=2 " in step for step in found[2:])


def test_generators_of_all_nodes_have_different_numbers() -> None:
    firsts = [int(re.findall(r"--first (\d+)", step)[0]) for step in steps(run_script(REQUEST))[2:]]
    assert firsts == [0, 4, 8]


def test_without_gpus_none_are_asked_for() -> None:
    assert "gpu" not in run_script(replace(REQUEST, gpus_per_node=0, partition=None))


def test_nodes_can_be_shared() -> None:
    found = options(run_script(replace(REQUEST, cpus_per_node=16)))
    assert {"--ntasks-per-node=1", "--cpus-per-task=16"} <= set(found)
    assert "--exclusive" not in found


def test_who_joins_is_a_job_a_node() -> None:
    script = join_script(replace(REQUEST, learner_nodes=0))
    assert {"--nodes=1", "--array=0-2", "--job-name=vcppo-first-join"} <= set(options(script))
    assert len(steps(script)) == 1
    assert "--relative=0 --ntasks=4" in steps(script)[0]


def test_the_grace_leaves_time_to_end() -> None:
    assert "export VCPPO_STOP_SECONDS=285" in run_script(REQUEST)
    assert "export VCPPO_STOP_SECONDS=1\n" in run_script(replace(REQUEST, grace_seconds=5))
