"""After an update vLLM's log-probs are the learner's: tied, untied, bfloat16; 1 and 2 ranks, ZeRO 0 and 3.

Six real `python -m vcppo.generator` processes (two per model) are started once; the learner's side is a torchrun
script. One generator of each two has vLLM's core in its own process, the other in a child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import RIG, ROOT
from vcppo.common.config import TaskConfig
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks import load_task
from vcppo.common.transport.ports import free_endpoint, free_port

# float32 on both sides: what is left is the order of summation. bfloat16 rounds every activation to 8 bits.
TOLERANCE = {"tied": 1e-3, "untied": 1e-3, "bfloat16": 0.05}


def make_model(folder: Path, tied: bool) -> None:
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=128,  # heads of 32: vLLM on a CPU knows no smaller ones
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        tie_word_embeddings=tied,
        max_position_embeddings=512,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = load_task(TaskConfig()).tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)


def write_config(folder: Path, name: str, redis_url: str) -> Path:
    model = folder / f"model-{name}"
    make_model(model, tied=name != "untied")
    tree = {
        "run": {"name": name, "folder": str(folder)},
        "model": {"path": str(model), "dtype": "bfloat16" if name == "bfloat16" else "float32"},
        "generator": {
            "enforce_eager": True,
            "max_in_flight": 8,
            "max_model_len": 512,
            "kv_cache_gib": 0.1,
            "heartbeat_seconds": 1.0,
            "engine_options": {"worker_extension_cls": "tests.integration.rig.skip_repack.SkipRepack"},
        },
        "redis": {"url": redis_url},
        "transport": {"endpoints": [free_endpoint()]},
        "broadcast": {"deadline_seconds": 30.0, "packed_buffer_mib": 0.05},
        "logging": {"tensorboard": False, "format": "json"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


class Bench:
    """Redis, generators, and a way to run the learner's script against them."""

    names: tuple[str, ...] = tuple(TOLERANCE)
    per_model = 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flag = folder / "skip-repack"
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "VCPPO_TEST_SKIP_REPACK": str(self.flag),
            "DS_ACCELERATOR": "cpu",
        }
        port = free_port()
        self.redis_url = f"redis://127.0.0.1:{port}/0"
        redis = Path(sys.executable).with_name("redis-server")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.start("redis", [str(redis), "--port", str(port), "--dir", str(folder), "--save", ""])
        self.configs = {name: self.write(name) for name in self.names}
        for name in self.configs:
            for number in range(self.per_model):
                self.start_generator(name, number)

    def write(self, name: str) -> Path:
        """The config of the run `name`, with its model."""
        return write_config(self.folder, name, self.redis_url)

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment | {**(environment or {})},
                cwd=ROOT,
                start_new_session=True,
            )

    def start_generator(self, run: str, number: int) -> None:
        command = ["taskset", "-c", str(number % (os.cpu_count() or 1)), sys.executable, "-m", "vcppo.generator"]
        command += ["--config", str(self.configs[run]), "--id", f"{run}-{number}"]
        self.start(f"{run}-{number}", command, {"VLLM_ENABLE_V1_MULTIPROCESSING": str(number)})

    def log(self, name: str, lines: int = 30) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def learn(self, num_ranks: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        name = f"learner-{num_ranks}-{free_port()}"
        spec = self.folder / f"{name}.json"
        output = self.folder / f"{name}.out.json"
        spec.write_text(json.dumps({"cases": cases, "output": str(output)}))
        torchrun = [
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(num_ranks),
            "--master-port",
            str(free_port()),
        ]
        self.start(name, [sys.executable, *torchrun, str(RIG / "broadcast_learner.py"), str(spec)])
        code = self.processes[name].wait(700)
        assert code == 0, f"{self.log(name, 60)}\n--- generator\n{self.log(f'{self.names[0]}-0')}"
        seen: list[dict[str, Any]] = json.loads(output.read_text())
        sys.stdout.write(json.dumps(seen, indent=1))
        return seen

    def case(self, run: str, zero_stage: int) -> dict[str, Any]:
        return {"config": str(self.configs[run]), "model": run, "zero_stage": zero_stage}

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("broadcast"))
    yield bench
    bench.stop()


def check(seen: dict[str, Any]) -> None:
    run = seen["model"]
    assert seen["members"] == [f"{run}-0", f"{run}-1"]
    assert seen["dropped"] == []
    assert seen["generators"] == seen["members"], "both generators sampled"
    assert seen["versions_at_rest"] == [seen["version"]], "every token after the update carries its version"
    assert seen["behaviour_difference"] < TOLERANCE[run]
    assert seen["canary_difference"] < TOLERANCE[run]
    assert seen["num_mixed"] > 0, "the second update fell into the middle of generation"
    assert seen["spans_add_up"]
    assert seen["mixed_versions"] == [[seen["version"], seen["version"] + 1]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_log_probs_agree_with_one_rank_and_broken_weights_are_noticed(bench: Bench) -> None:
    cases = [bench.case(run, stage) for run in ("untied", "tied") for stage in (0, 3)]
    cases.insert(0, bench.case("bfloat16", 0))
    cases[-1]["break_flag"] = str(bench.flag)
    found = bench.learn(1, cases)
    for seen in found:
        check(seen)
    broken = found[-1]
    for kind in ("corrupted", "head_not_repacked"):
        assert "do not run the weights they were sent" in broken[kind]
        assert "tied-0: " in broken[kind]
        assert "tied-1: " in broken[kind]
    assert broken["after_corrupted"] == broken["after_head"] == ""
    assert broken["taken"] == ["pause", "start_weight_update"] * 2  # of all hostile calls, by each of the two
    assert broken["after_broken_off"] == [2, 0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_log_probs_agree_with_two_ranks(bench: Bench) -> None:
    for seen in bench.learn(2, [bench.case(run, stage) for run in ("untied", "tied") for stage in (0, 3)]):
        check(seen)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_generator_told_to_stop_hands_its_leases_back_and_leaves(bench: Bench) -> None:
    process = bench.processes["untied-1"]
    store = RunStore.connect(bench.redis_url, "untied", 10.0)
    deadline = time.monotonic() + 200  # by itself, this test is the first to want them
    while len(store.members("generator")) < 2:
        assert process.poll() is None and time.monotonic() < deadline, bench.log("untied-1")
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) == 0, bench.log("untied-1")
    assert [m.id for m in store.members("generator")] == ["untied-0"]
    assert store.ledger().is_exact
    store.close()
