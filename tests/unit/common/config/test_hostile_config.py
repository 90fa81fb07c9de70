"""Configs as somebody hostile, or a broken editor, would write them: lines that say why, exit code 2, no time lost."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from vcppo.common.config import ConfigError, load_config


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: some/model}\nrl: {batch_size: 64}\n")
    return path


def problems_of(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.problems


BOMB = "\n".join(["a0: &a0 [lol, lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)])
MERGE_BOMB = "\n".join(
    ["a0: &a0 {x: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{BOMB}\ntask: {{options: *a11}}", "line 5: means more than 20000 values"),
        (MERGE_BOMB, "line 5: means more than 20000 values"),
        ("task: &a {options: *a}", "line 1: an alias stands inside what it names"),
        ("[" * 100_000, "line 1: nested more than 40 deep"),
        ("- " * 100_000, "line 1: nested more than 40 deep"),
        ("rl: {num_steps: " + "9" * 5000 + "}", "is no 64-bit integer"),
        ("rl: {num_steps: !!int x}", "'x' is no 64-bit integer"),
        ("rl: {num_steps: !!timestamp 2001-99-99}", "could not determine a constructor"),
        ("run: !!python/object/apply:os.system [touch /tmp/x]", "could not determine a constructor"),
        ("run: !!map [a]", "expected a mapping node"),
        ('run: {name: "\\ud800"}', "line 1: '\\ud800' is no plain text"),
        ('run: {name: "\\x1b[2J"}', "line 1: '\\x1b[2J' is no plain text"),
        ("x" * 300_000, "longer than 262144 characters"),
    ],
)
def test_hostile_files_are_refused_in_a_line_and_in_no_time(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    started = time.process_time()
    (problem,) = problems_of(path)
    assert time.process_time() - started < 20
    assert problem.startswith(str(path)) and says in problem
    assert len(problem) < 1000 and problem.isprintable()


def test_numbers_of_yaml_1_1_are_those_of_1_2(run_yaml: Path) -> None:
    """Octal ones ended `vcppo up` with a traceback when they had a 9 in them."""
    assert load_config(run_yaml, ["rl.batch_size=0128"]).rl.batch_size == 128


def test_aliases_within_reason_are_fine(run_yaml: Path) -> None:
    run_yaml.write_text("model: {path: m}\nsampling: &s {max_response_tokens: 5}\neval: {<<: *s, k: 1}\n")
    assert "eval.max_response_tokens" in problems_of(run_yaml)[0]  # merged, and no field of eval
    run_yaml.write_text("model: &m {path: m}\ntask: {options: {again: *m}}\n")
    assert load_config(run_yaml).task.options == {"again": {"path": "m"}}


def test_thousands_of_problems_are_thirty_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("".join(f"unknown{i}: 1\n" for i in range(3000)))
    problems = problems_of(path)
    assert len(problems) == 31
    assert problems[-1].endswith("2971 more problems like these")


@pytest.mark.parametrize(
    "override", ["a." * 5000 + "b=1", "sft.phases." + "9" * 5000 + "=1", "\udcff=[", "rl.\x1b[2J=1", "x=" + "y" * 10**6]
)
def test_hostile_overrides_are_one_short_printable_line(run_yaml: Path, override: str) -> None:
    (problem,) = problems_of(run_yaml, override)
    assert len(problem) < 1000 and problem.isprintable()


def test_half_an_address_names_its_field(run_yaml: Path) -> None:
    (problem,) = problems_of(run_yaml, "transport.endpoints=['tcp://[::1']")
    assert "transport.endpoints: 'tcp://[::1' is not an endpoint" in problem


@pytest.mark.parametrize("argument", [b"rl.\xff=1", b"=", b"rl.batch_size=!!int x", b"run.name=\xff"])
def test_the_command_line_exits_with_2_and_without_a_traceback(run_yaml: Path, argument: bytes) -> None:
    command: list[str | bytes] = [sys.executable, "-m", "vcppo.deploy.cli", "config", "-c", str(run_yaml), argument]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1


def test_a_reward_the_buffer_would_refuse_is_refused_here(run_yaml: Path) -> None:
    assert "task.reward_correct = 1e+07" in problems_of(run_yaml, "task.reward_correct=1e7")[0]
