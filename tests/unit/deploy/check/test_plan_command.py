"""`vcppo plan` says who goes where, on this machine and on one that is only described."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.deploy.placement.test_place import gpus
from vcppo.deploy.check import run_plan
from vcppo.deploy.cli import main

DEMO = str(ROOT / "deploy" / "configs" / "demo.yaml")


@pytest.fixture
def run(tmp_path: Path) -> str:
    path = tmp_path / "my.yaml"
    path.write_text("model: {path: Qwen/Qwen2.5-1.5B}\ngenerator: {num_generators: 2, max_model_len: 2048}\n")
    return str(path)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["plan", "-c", *words])
    return code, " ".join(capsys.readouterr().out.split())


def test_a_machine_that_is_described(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(
        capsys, run, "--gpu-memory-gib", "80", "--gpus", "8", "--numa-nodes", "2", "--cores", "64",
        "generator.num_generators=3", "generator.tensor_parallel_size=2", "learner.num_ranks=2",
    )  # fmt: skip
    assert code == 0
    assert "learner rank 1 GPU 1 (node 0) cores 16-31 generator-0 GPU 2, 3 (node 0) cores 0-15" in text
    assert "generator-2 GPU 6, 7 (node 1) cores 48-63" in text


def test_too_few_and_too_small(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, run, "--gpu-memory-gib", "80", "--gpus", "2")
    assert (code, "and 2 are visible: set generator.num_generators=1" in text) == (1, True)
    assert "placement" not in text
    code, text = shown(capsys, run, "--gpu-memory-gib", "24", "--gpus", "8")
    assert code == 1
    assert "GPU 0: learner needs 75.8 GiB, and it has 24.0 GiB: set learner." in text
    setting = text.rpartition(": set ")[2].split()
    assert shown(capsys, run, "--gpu-memory-gib", "24", "--gpus", "8", *setting)[0] == 0


def test_this_machine(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "devices_of", lambda config: gpus(4))
    code, text = shown(capsys, run)
    assert code == 0
    assert "generator-1 GPU 2 (node 0)" in text and "free GPU 3" in text and "of 80.0 GiB" in text
    monkeypatch.setattr(run_plan, "devices_of", lambda config: [])
    assert "learner rank 0 CPU cores" in shown(capsys, DEMO)[1]


def test_many_machines_are_not_placed(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, run, "--gpu-memory-gib", "80", "learner.num_ranks=64")
    assert (code, "placement" in text) == (0, False)


@pytest.mark.parametrize("words", [["--gpus", "2"], ["--gpus", "0", "--gpu-memory-gib", "80"]])
def test_machines_that_can_not_be(run: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-c", run, *words]) == 2
    assert "--gpus" in capsys.readouterr().err


def test_the_page_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command of docs/placement.md with the block below it, line by line."""
    page = (ROOT / "docs" / "placement.md").read_text()
    monkeypatch.chdir(tmp_path)
    (config,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("my.yaml").write_text(config)
    shown = re.findall(r"^    vcppo (plan (?:[^\n]|\\\n)*)\n\n```\n([^`]*)```", page, re.MULTILINE)
    assert len(shown) == 3
    with_both = page.partition("With these two settings it prints:")[2].split("```")[1]
    settings: list[str] = []
    for command, block in [*shown, (shown[-1][0], with_both)]:
        main([*shlex.split(command.replace("\\\n", "")), *settings])
        printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        for line in block.strip().splitlines():
            assert line == "..." or " ".join(line.split()) in printed, (command, line)
        settings = block.rpartition(": set ")[2].split() if ": set " in block else []
