"""The real parts around a vLLM benchmark: model folders, and one run's Redis, buffer and generators as processes.

They are started by the launcher's own specs, so each gets the command, environment and cores `vcppo up` would give it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import yaml

from benchmarks import REPOSITORY
from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.records.trajectory import Prompt
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks import load_task
from vcppo.common.transport.ports import free_endpoint
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.supervisor import ProcessSpec

DEADLINE_SECONDS = 240.0
DEMO = REPOSITORY / "deploy" / "configs" / "demo.yaml"
SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


def demo_architecture() -> dict[str, Any]:
    """``sft.architecture`` of the demo."""
    found: dict[str, Any] = yaml.safe_load(DEMO.read_text())["sft"]["architecture"]
    return found


def write_model(folder: Path, architecture: Mapping[str, Any], dtype: str) -> Path:
    """A model of this shape with random weights, and the demo task's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=load_task(_demo_task()).tokenizer(), pad_token="<pad>", eos_token="<eos>"
    )
    fields = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fields |= architecture
    torch.manual_seed(0)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def demo_settings(folder: Path, name: str, model: Path, /, **changes: Mapping[str, Any]) -> VcppoConfig:
    """A run on `model` with the demo's task, sampling and generator settings, but for `changes` by section."""
    demo = yaml.safe_load(DEMO.read_text())
    tree: dict[str, Any] = {key: demo[key] for key in ("task", "sampling", "generator", "learner")}
    tree |= {
        "run": {"name": name, "folder": str(folder)},
        "model": {"path": str(model), "dtype": "float32"},
        "transport": {"endpoints": [free_endpoint()]},
        "logging": {"tensorboard": False, "format": "json"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | dict(values)
    return VcppoConfig.model_validate(tree)


def make_prompts(config: VcppoConfig, count: int, max_tokens: int, length: int = 16) -> list[Prompt]:
    """Random prompts, each with a seed of its own; responses of at most `max_tokens`."""
    random = np.random.default_rng(0)
    return [
        Prompt(
            id=f"p-{i:06d}",
            group_id=f"g-{i:06d}",
            sample_index=0,
            task=config.task.name,
            token_ids=random.integers(4, 32, length).astype(np.int32),
            answer={"answer": "000"},
            seed=i,
            issue_version=0,
            purpose="rl",
            max_response_tokens=max_tokens,
        )
        for i in range(count)
    ]


class Rig:
    """One run's processes. Use it as a context manager: whatever was started is gone afterwards."""

    def __init__(self, config: VcppoConfig, service_core: int | None = None) -> None:
        """`service_core`: Redis and buffer run there, if given."""
        self.config = config
        self._service_cores = [] if service_core is None else [service_core]
        self.folder = RunFolder(config.run.path).create()
        self.folder.config.write_text(dump_config(config))
        self.launcher = Launcher(config, LogSink(self.folder.logs, config.run.name))
        self.redis_url = self.launcher.redis_url
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start(redis_server.redis_spec(self.folder.redis), self._service_cores)
        self.wait(lambda: redis_server.is_running(self.folder.redis), "redis-server answers")
        for spec in self.launcher.buffer_specs():
            self.start(spec, self._service_cores)
        self.store = RunStore.connect(self.redis_url, self.config.run.name, 30.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.store.close()
        for name, process in self.processes.items():
            if error is not None and process.poll() is not None:
                print(f"--- {name} ended with {process.returncode}:\n{self.log(name)}", flush=True)
        for name in reversed(list(self.processes)):
            self.end(name)
        self.launcher.sink.close()

    def end(self, name: str) -> None:
        """Kill a process, and its children with it: they are of its session."""
        process = self.processes.pop(name)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def start(self, spec: ProcessSpec, cores: Sequence[int] | None = None) -> subprocess.Popen[bytes]:
        """Start it with the environment and cores of its spec (or on `cores`); output goes to a file in the run."""
        pinned = sorted(cores if cores is not None else spec.cores or ())
        with self._log_file(spec.name).open("wb") as log:
            process = subprocess.Popen(
                spec.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {**spec.environment},
                cwd=REPOSITORY,
                start_new_session=True,
                preexec_fn=lambda: _settle(pinned, spec.niceness),
            )
        self.processes[spec.name] = process
        return process

    def start_generators(self) -> None:
        for spec in self.launcher.generator_specs():
            self.start(spec)

    def wait(self, condition: Callable[[], bool], what: str, poll_seconds: float = 0.02) -> None:
        """Until `condition` holds. Raises when a process has ended or the deadline passes."""
        end = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with {process.returncode} before: {what}\n{self.log(name)}")
            if time.monotonic() > end:
                raise TimeoutError(f"not in {DEADLINE_SECONDS:.0f} s: {what}")
            time.sleep(poll_seconds)

    def log(self, name: str, num_lines: int = 30) -> str:
        """The last lines a process wrote."""
        return "\n".join(self._log_file(name).read_text(errors="replace").splitlines()[-num_lines:])

    def _log_file(self, name: str) -> Path:
        return self.folder.path / f"{name}.out"


def _settle(cores: Sequence[int], niceness: int) -> None:
    """In the child: its place on the machine."""
    if cores:
        os.sched_setaffinity(0, cores)
    os.nice(niceness)


def _demo_task() -> Any:
    return VcppoConfig.model_validate(
        {"model": {"path": "unused"}, "task": yaml.safe_load(DEMO.read_text())["task"]}
    ).task
