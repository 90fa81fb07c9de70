"""`vcppo slurm` up to the moment at which it would submit, and what a task does before it starts anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.deploy.slurm.test_head_note import NOTE
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import dump_config
from vcppo.deploy.cli import main
from vcppo.deploy.slurm import role
from vcppo.deploy.slurm.head_note import write_note


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config_of(Path("runs"), "r")))
    return path


def slurm(*words: str) -> int:
    return main(["slurm", *words])


def test_a_dry_run_prints_the_script_and_writes_nothing(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm("-c", str(config_file), "--generator-nodes", "2", "--dry-run") == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/bin/bash")
    assert f"config={tmp_path}/runs/r/config.yaml" in script
    assert not (tmp_path / "runs").exists()


def test_without_slurm_it_says_so(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert slurm("-c", str(config_file)) == 2
    said = capsys.readouterr().err
    assert "no sbatch, sinfo, squeue, scontrol, srun on PATH" in said
    assert "--dry-run" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--learner-nodes", "0"], "generators alone: --join RUN"),
        (["learner.num_ranks=3", "--learner-nodes", "2"], "give each node as many ranks"),
        (["--gpus-per-node", "2", "generator.tensor_parallel_size=4"], "lower one of the two"),
    ],
)
def test_what_can_not_be_is_refused_in_a_dry_run_too(
    config_file: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm("-c", str(config_file), "--dry-run", *words) == 2
    assert said in capsys.readouterr().err


class TestJoining:
    @pytest.fixture
    def run(self, config_file: Path, tmp_path: Path) -> Path:
        folder = tmp_path / "runs" / "r"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config_file.read_text())
        return folder

    def test_the_script_has_generators_alone(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert slurm("--join", str(run), "--generator-nodes", "3", "--dry-run") == 0
        script = capsys.readouterr().out
        assert "--array=0-2" in script
        assert "role head" not in script

    @pytest.mark.parametrize(
        "words", [["rl.num_steps=3"], ["--learner-nodes", "1"], ["--generator-nodes", "0"]], ids=lambda words: words[0]
    )
    def test_it_takes_the_run_as_it_is(self, run: Path, words: list[str]) -> None:
        assert slurm("--join", str(run), "--dry-run", *words) == 2

    def test_a_run_that_is_over_takes_nobody(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_note(run, NOTE.ended("done"))
        assert slurm("--join", str(run), "--dry-run") == 2
        assert "`vcppo slurm --run` resumes it" in capsys.readouterr().err


class TestRole:
    def test_a_folder_that_this_node_does_not_see_is_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert role.main(["generator", "--config", str(tmp_path / "config.yaml")]) == 2
        assert "must be on a file system that all nodes see" in capsys.readouterr().err

    def test_the_address_can_be_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VCPPO_ADDRESS", "10.1.2.3")
        assert role.own_address() == "10.1.2.3"

    def test_without_slurm_an_address_must_be_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("VCPPO_ADDRESS", raising=False)
        monkeypatch.setenv("PATH", "")
        with pytest.raises(Exception, match="set VCPPO_ADDRESS"):
            role.own_address()

    @pytest.mark.parametrize(("cores", "count"), [(8, 1), (8, 2), (7, 3), (96, 8), (2, 4)])
    def test_cores_are_shared_out(self, cores: int, count: int) -> None:
        shares = [role.share_of_cores(range(cores), index, count) for index in range(count)]
        if cores < count:
            assert all(list(share) == list(range(cores)) for share in shares)
            return
        assert [core for share in shares for core in share] == list(range(cores))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
