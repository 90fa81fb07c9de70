"""`vcppo check` as a user starts it: on a sound set-up, and on one with a fault in every corner."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.paths import ROOT
from tests.unit.rig.check_model import TEMPLATE, save_model, save_tokenizer, sums, write_config, write_rows

SECONDS = 280


def check(*words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, lines, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "vcppo.deploy.cli", "check", "--json", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "summary" in lines[-1], done.stderr
    return done.returncode, lines, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums(2000))
    return tmp_path


def failures(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {f"{line['group']}: {line['name']}": line["text"] for line in lines if line.get("status") == "failed"}


def test_a_sound_set_up(folder: Path) -> None:
    code, lines, errors = check("-c", str(write_config(folder)))
    assert failures(lines) == {}
    assert code == 0, errors
    groups = {line["group"] for line in lines[:-1]}
    assert groups == {
        "settings", "machine", "files", "network", "data", "tokenizer", "prompts", "verifier", "engine", "model",
    }  # fmt: skip
    assert lines[-1]["summary"]["passed"] > 25
    assert not (folder / "runs").exists()  # nothing is left


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_every_fault_is_found_in_one_go(folder: Path, taken_port: int) -> None:
    """A template that can't be rendered, no EOS, overlong and unreadable rows, a taken port, CUDA without CUDA."""
    rows = sums(200)
    rows[17] = ("x" * 1000, "1")
    write_rows(folder / "rows.jsonl", rows)
    save_tokenizer(folder / "model", template="{{ raise_exception('only system messages') }}", eos="<|end|>")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        tree = json.loads((folder / "model" / name).read_text())
        (folder / "model" / name).write_text(json.dumps({k: v for k, v in tree.items() if "eos" not in k}))
    cuda = {} if torch.cuda.is_available() else {"device": "cuda"}
    path = write_config(folder, transport={"endpoints": [f"tcp://127.0.0.1:{taken_port}"]}, learner=cuda)
    code, lines, errors = check("-c", str(path), "generator.engine_options={no_such_option: 1}")
    found = failures(lines)
    assert code == 1, errors
    assert str(taken_port) in found["network: endpoints"]
    assert "eos_token_id" in found["tokenizer: stop tokens"]
    assert "only system messages" in found["prompts: as sent"]
    assert "no_such_option" in found["engine: vLLM"]
    if cuda:
        assert {"machine: torch", "model: device"} <= found.keys()
    assert not any(line["status"] == "failed" and "Error" in line["text"] for line in lines[:-1]), found
    assert "Traceback" not in errors

    save_tokenizer(folder / "model", template=TEMPLATE)
    code, lines, errors = check("-c", str(path), "transport.endpoints=null", "learner.device=auto")
    assert code == 1
    assert list(failures(lines)) == ["prompts: lengths"]
    assert "rows.jsonl:18 (10" in failures(lines)["prompts: lengths"]


def test_quick_takes_a_moment_and_a_bad_config_is_a_failed_line(folder: Path) -> None:
    path = write_config(folder)
    code, lines, _ = check("-c", str(path), "--quick")
    assert code == 0
    assert {line["group"] for line in lines[:-1]} == {"settings", "machine", "files", "network"}
    code, lines, _ = check("-c", str(path), "rl.nmu_steps=3", "rl.batch_size=-1")
    assert code == 1
    assert len(failures(lines)) == 1 and lines[-1]["summary"]["failed"] == 2


@pytest.mark.slow
def test_responses_of_the_real_engine(folder: Path) -> None:
    code, lines, errors = check("-c", str(write_config(folder)), "--generate", "2")
    assert code == 0, errors
    made = [line for line in lines[:-1] if line["group"] == "generation"]
    assert [line["text"].split(",")[-1] for line in made[1:3]] in (
        [" length"] * 2, [" length", " stop"], [" stop", " length"], [" stop"] * 2,
    )  # fmt: skip
    assert made[3]["text"].startswith("2 responses, ")


def test_on_a_terminal_it_is_text_under_headings(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vcppo.deploy.cli", "check", "-c", str(write_config(folder)), "--quick"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "\nfiles\n  ✓ model" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].endswith(" s")
