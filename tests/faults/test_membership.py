"""One of two real vLLM generators gets its weights wrong: it alone is put out, comes back, and at last is dismissed.

What goes wrong is real: vLLM's CPU build keeps a tied model's old LM head after a reload unless it is packed again, and
a flag file keeps one of the two from doing that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.faults.test_generator import prompts
from tests.integration.conftest import RedisServer
from tests.integration.learner.weights.test_weight_broadcast import make_model
from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.store.ledger import Ledger
from vcppo.common.transport.ports import free_endpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


class Policy:
    """A model whose weights move, as `WeightBroadcaster` wants it, and what it says of a few tokens."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.device = torch.device("cpu")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.generator = torch.Generator().manual_seed(0)

    def move(self) -> None:
        """New weights, far enough from the old ones for a canary to see."""
        with self.torch.no_grad():
            for parameter in self.model.parameters():
                noise = self.torch.randn(parameter.shape, generator=self.generator)
                parameter.add_(noise, alpha=0.2 * float(parameter.std()) if parameter.numel() > 1 else 0.0)

    def weight_metadata(self) -> list[tuple[str, Any, tuple[int, ...]]]:
        return [(name, each.dtype, tuple(each.shape)) for name, each in self.model.named_parameters()]

    def weight_source(self) -> Iterator[tuple[str, Any]]:
        for name, each in self.model.named_parameters():
            yield name, each.detach()

    def probe(self) -> Any:
        from vcppo.learner.weights.canary import CanaryProbe

        tokens = np.arange(2, 22, dtype=np.int32)
        with self.torch.no_grad():
            logits = self.model(self.torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        scores = self.torch.log_softmax(logits.float(), -1)[3:-1]
        picked = scores.gather(1, self.torch.from_numpy(tokens[4:].astype(np.int64))[:, None])[:, 0]
        return CanaryProbe(tokens, 4, picked.numpy())


class Scene:
    """Redis, two generators, and the learner's half in this process."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        make_model(folder / "model", tied=True)
        tree = {
            "run": {"name": "run", "folder": str(folder)},
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "generator": {
                "enforce_eager": True, "max_in_flight": 4, "max_model_len": 64, "kv_cache_gib": 0.1,
                "heartbeat_seconds": 0.5, "lease_seconds": 5.0,
                "engine_options": {"worker_extension_cls": "tests.integration.rig.skip_repack.SkipRepack"},
            },
            "learner": {"micro_batch_tokens": 64, "device": "cpu"},
            "sampling": {"max_response_tokens": 16},
            "redis": {"url": redis.url},
            "transport": {"endpoints": [free_endpoint()]},
            "broadcast": {"deadline_seconds": 30.0},
            "logging": {"format": "json", "tensorboard": False},
        }  # fmt: skip
        self.folder, self.config_file = folder, folder / "config.yaml"
        self.config_file.write_text(yaml.safe_dump(tree))
        self.store = redis.store()
        self.flag = folder / "wrong"
        self.processes = {
            "generator-0": self._start("generator-0", folder / "never"),
            "generator-1": self._start("generator-1", self.flag),
        }

    def _start(self, name: str, flag: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "VCPPO_TEST_SKIP_REPACK": str(flag),
        }  # fmt: skip
        command = [sys.executable, "-m", "vcppo.generator", "--config", str(self.config_file), "--id", name]
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.log('generator-1')}"
            time.sleep(0.05)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def versions(self) -> dict[str, int]:
        return {member.id: member.policy_version for member in self.store.members("generator")}

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait(10)


@pytest.fixture
def scene(tmp_path: Path, redis_process: RedisServer) -> Iterator[Scene]:
    made = Scene(tmp_path, redis_process)
    yield made
    made.stop()


def test_a_generator_with_wrong_weights_is_put_out_alone_comes_back_and_is_at_last_dismissed(scene: Scene) -> None:
    from vcppo.learner.weights.broadcaster import WeightBroadcaster

    policy = Policy(scene.folder / "model")
    config = load_config(scene.config_file, [])
    broadcaster = WeightBroadcaster(config, scene.store, policy)
    broadcaster.wait_for_members(2, 200)

    def send(version: int) -> tuple[str, ...]:
        return broadcaster.broadcast(version, policy.probe()).members

    policy.move()
    assert send(1) == ("generator-0", "generator-1")
    epochs = {member.id: member.epoch for member in scene.store.members("generator")}

    scene.flag.touch()
    policy.move()
    assert send(2) == ("generator-0",)
    scene.until(lambda: broadcaster.out_of_sync(2) == ["generator-1"], "it does not say that it needs weights")
    scene.store.issue(prompts(0, 6))
    # All go to the one with the right weights; what the other may have got in the same moment it hands back.
    scene.until(lambda: list(scene.store.lease_owners().values()) == ["generator-0"] * 6, "some are not leased")

    scene.flag.unlink()
    assert send(2) == ("generator-0", "generator-1")
    scene.until(lambda: scene.versions() == {"generator-0": 2, "generator-1": 2}, "it is not back")
    now = {member.id: member.epoch for member in scene.store.members("generator")}
    assert now["generator-0"] == epochs["generator-0"]  # the other one was never taken in anew
    assert now["generator-1"] != epochs["generator-1"]

    scene.flag.touch()
    for _ in range(config.broadcast.attempts):
        policy.move()
        assert send(3) == ("generator-0",)
    assert scene.processes["generator-1"].wait(60) == EXIT_REFUSED
    assert "dismissed by the learner: its canary failed again and again" in scene.log("generator-1")
    scene.until(lambda: scene.versions() == {"generator-0": 3}, "it is still registered")
    policy.move()
    assert send(4) == ("generator-0",)
    broadcaster.close()
    ledger = scene.store.ledger()
    assert ledger.is_exact
    assert ledger == Ledger(issued=6, queued=ledger.queued, leased=ledger.leased)  # no buffer: nothing was appended
