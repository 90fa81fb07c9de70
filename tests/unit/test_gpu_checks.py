"""`make gpu-test` on a CPU: the same checks, its page, its exit codes, and the words for what could not run.

Checks with DeepSpeed's engines are in tests/integration/test_gpu_checks.py, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import page, plain
from benchmarks.gpu.checks import attention, gae, log_probs, zero3
from benchmarks.gpu.findings import Findings, Number, Place, Speed, distance
from benchmarks.gpu.page import Outcome, exit_code
from benchmarks.gpu.requirements import backends, why_no_real_job, why_no_update
from tests.unit.rig import oracle

CPU = Place(torch.device("cpu"), quick=True)
RIGHT, WRONG = Number("a", 0.1, 0.2), Number("b", 0.3, 0.2)
KNOWN = ("auto", "gloo", "nccl")


def outcome(*numbers: Number, failure: str = "", not_run: tuple[str, ...] = ()) -> Outcome:
    return Outcome("attention", "about it", 1.0, Findings(list(numbers), not_run=list(not_run)), failure)


@pytest.mark.parametrize("check", [attention, log_probs, gae])
def test_the_cpus_numbers_are_right(check: Any) -> None:
    found = check.run(CPU)
    assert found.numbers
    assert [number for number in found.numbers if not number.is_right] == []


def test_attention_that_sees_the_next_token_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.packed_attention

    def leaking(module: Any, q: Any, k: Any, v: Any, mask: Any, **keywords: Any) -> Any:
        return real(module, q, k.roll(-1, dims=2), v, mask, **keywords)

    monkeypatch.setattr(attention, "packed_attention", leaking)
    assert len([number for number in attention.run(CPU).numbers if not number.is_right]) == 28


def test_log_probs_at_another_temperature_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = log_probs.chunked_log_probs
    monkeypatch.setattr(
        log_probs, "chunked_log_probs", lambda *a, **k: real(*a, **{**k, "temperature": log_probs.TEMPERATURE * 1.01})
    )
    wrong = {number.what for number in log_probs.run(CPU).numbers if not number.is_right}
    assert "log-probs, float32: log-probs" in wrong and "log-probs, bfloat16: entropy" in wrong


def test_advantages_with_another_lambda_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gae.estimate
    monkeypatch.setattr(gae, "estimate", lambda *a, **k: real(*a, **{**k, "lambda_actor": 0.94}))
    assert [number.what for number in gae.run(CPU).numbers if not number.is_right] == ["GAE: advantages"]


def test_the_plain_sums_are_the_papers() -> None:
    rewards, values = [0.0, 0.5, -1.0], [0.3, -0.2, 0.9]
    assert plain.gae(rewards, values, 0.4, 0.9) == pytest.approx(oracle.gae(rewards, values, 0.4, 0.9))


def test_what_is_not_a_number_is_not_right() -> None:
    broken = distance(torch.tensor([1.0, math.nan]), torch.ones(2))
    assert not Number("a", broken, 1e9).is_right
    assert exit_code([outcome(RIGHT, Number("c", broken, 1e9))]) == 1


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([outcome(RIGHT)], 0),
        ([outcome(RIGHT), outcome(not_run=("no GPU",))], 0),
        ([outcome(RIGHT), outcome(RIGHT, WRONG)], 1),
        ([outcome(RIGHT), outcome(failure="it ended with 1")], 1),
        ([outcome(not_run=("no GPU",))], 1),  # nothing was looked at: that is no success
        ([], 1),
    ],
)
def test_exit_codes(outcomes: list[Outcome], code: int) -> None:
    assert exit_code(outcomes) == code


def test_the_page_says_what_is_wrong_what_failed_and_what_could_not_run(tmp_path: Path) -> None:
    found = Findings([RIGHT, WRONG], [Speed("attention", 400.0, "TFLOP/s", 55.5, "the matrix product")], ["nccl: why"])
    outcomes = [Outcome("one", "about one", 3.0, found), outcome(failure="it ended with 3")]
    files = page.write(tmp_path / "new", "gpu", {"device": "cuda, 1 × X"}, outcomes)
    text, content = files[1].read_text(), json.loads(files[0].read_text())
    assert "1 of 2 numbers are right. Failed: attention." in text
    assert "| b | float64 on the CPU | 0.3 of the norm | 0.2 | NO |" in text
    assert "| attention | 400 TFLOP/s | 55.5 % of the matrix product |" in text
    assert "- one: nccl: why" in text and "- attention: it ended with 3" in text
    assert [
        Findings.from_dict({k: each[k] for k in ("numbers", "speeds", "not_run")}) for each in content["checks"]
    ] == [outcome.findings for outcome in outcomes]
    shown = page.plain(outcomes[0])
    assert "WRONG  b: 0.3 of the norm, at most 0.2" in shown and "could not run: nccl: why" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_computes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--out", str(tmp_path)]) == command.NO_CUDA
    said = capsys.readouterr().err
    assert "no CUDA: torch" in said and "--device cpu" in said
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_number_ends_it_with_one_and_the_page_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_run", lambda check, options: outcome(RIGHT, WRONG))
    assert command.main(["--device", "cpu", "--out", str(tmp_path), "attention"]) == 1
    assert "1 of 2 numbers are right" in capsys.readouterr().out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]


def test_parts_and_names_choose_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ran(check: command.Check, options: argparse.Namespace) -> Outcome:
        asked.append(check.name)
        return outcome(RIGHT)

    monkeypatch.setattr(command, "_run", ran)
    for words in (["--part", "a"], ["--part", "b"], ["gae", "sleep"]):
        assert command.main(["--device", "cpu", "--out", str(tmp_path), *words]) == 0
    assert asked == [*(check.name for check in command.CHECKS), "gae", "sleep"]
    with pytest.raises(SystemExit):
        command.main(["--device", "cpu", "no_such"])


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (command.Check("no_such", "a", 60, ""), "it ended with 2: "),
        (command.Check("gae", "a", 0.05, ""), "it was not through after 0 s: "),
    ],
)
def test_a_check_that_ends_badly_or_hangs_is_a_failure(check: command.Check, reason: str) -> None:
    options = argparse.Namespace(device="cpu", quick=True)
    ended = command._run(check, options)
    assert ended.failure.startswith(reason) and not ended.is_right


@pytest.mark.parametrize(
    ("backend", "num_gpus", "reason"),
    [
        ("gloo", 0, None),
        ("gloo", 1, None),
        ("nccl", 0, "nccl: it needs CUDA"),
        ("nccl", 1, "nccl: it refuses two ranks on one GPU"),
        ("nccl", 2, None),
        ("ipc", 1, "ipc: not built, broadcast.backend is one of auto, gloo, nccl"),
    ],
)
def test_why_weights_can_not_be_sent_by(backend: str, num_gpus: int, reason: str | None) -> None:
    found = why_no_update(backend, num_gpus=num_gpus, known=KNOWN)
    assert (found is None) == (reason is None)
    assert reason is None or str(found).startswith(reason)


def test_ipc_is_tried_once_there_is_an_engine_for_it() -> None:
    assert why_no_update("ipc", num_gpus=1, known=(*KNOWN, "ipc")) is None
    assert str(why_no_update("ipc", num_gpus=0, known=(*KNOWN, "ipc"))).startswith("ipc: it needs CUDA")
    assert set(KNOWN) <= set(backends())


def test_why_the_real_job_can_not_run(tmp_path: Path) -> None:
    assert "make setup DEVICE=cuda" in str(why_no_real_job(tmp_path, has_vllm=False))
    assert "make real-job" in str(why_no_real_job(tmp_path, has_vllm=True))
    (tmp_path / "done").touch()
    assert why_no_real_job(tmp_path, has_vllm=True) is None


def test_offload_is_named_as_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero3, "check_step", lambda place, dtype, stage: Findings([RIGHT]))
    (reason,) = zero3.run(CPU).not_run
    assert reason.startswith("ZeRO-Offload: ")
