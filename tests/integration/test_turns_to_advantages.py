"""What a tool says takes no part in λ, through the whole system: environment, wire, buffer, packing, learner.

Two actions, N tokens of a tool, two actions; γ = 1, λ = .95, V = .5 everywhere, reward 1 at the end. By hand the deltas
are 0, 0, 0, 1 - .5, and the last action of turn 1 has .5 · .95² = .45125, whatever N is. What N tokens as steps would
make of it for N = 10 is .27.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import RedisServer
from tests.integration.generator.test_turns import Copying, TurnsBench, prompts
from tests.paths import RIG, ROOT
from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.tasks import Problem

TOKENS_SAID = (10, 50, 500)
EARLY = 0.25  # paid for turn 1 in a second rollout of each
PROMPTS = [{"said": said, "early": early} for early in (0.0, EARLY) for said in TOKENS_SAID]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Speaking(Environment):
    """Its answer to the first turn has as many tokens as the problem says."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("000?A", {})] * count

    def reset(self, answer: Mapping[str, Any]) -> None:
        self.answer, self.has_spoken = answer, False

    def step(self, action: str) -> Observation:
        if self.has_spoken:
            return Observation("", 1.0 - self.answer["early"], done=True)
        self.has_spoken = True
        return Observation("7" * self.answer["said"], self.answer["early"])


def config_of(bench: TurnsBench, redis: RedisServer, folder: Path) -> Path:
    tree = {
        "run": {"name": folder.name, "folder": str(folder)},
        "model": {"path": "unused", "dtype": "float32"},
        "task": {"name": "tests.integration.test_turns_to_advantages:Speaking", "max_turns": 3},
        "sampling": {"max_response_tokens": 600},
        "algorithm": {"lambda_actor": 0.95, "whiten_advantages": False},
        "generator": {"max_model_len": 640},
        "learner": {"micro_batch_tokens": 640, "device": "cpu", "num_threads": 1},
        "transport": {"endpoints": bench.config.transport.endpoints},
        "redis": {"url": redis.url},
        "logging": {"format": "json", "tensorboard": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


async def roll_out(bench: TurnsBench, config: Path) -> None:
    """The generator's loop plays them, and a buffer process takes what it sends."""
    bench.receiver.close()  # the buffer's place
    endpoint = bench.config.transport.endpoints[0]
    command = [sys.executable, "-m", "vcppo.learner.buffer", "--config", str(config), "--endpoint", endpoint]
    with (config.parent / "buffer.log").open("wb") as log:
        buffer = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        await bench.start()
        working = asyncio.create_task(bench.worker.run())
        bench.store.issue(prompts(*PROMPTS, room=600))
        try:
            await bench.until(
                lambda: bench.store.ledger().buffered == len(PROMPTS),
                f"they never arrived: {bench.store.ledger()} {(config.parent / 'buffer.log').read_text()[-2000:]}",
            )
        finally:
            bench.worker.stop()
            async with asyncio.timeout(30):
                await working
            await bench.pool.close()
    finally:
        buffer.terminate()
        buffer.wait(20)


def learn(folder: Path, config: Path, num_ranks: int) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    script = [str(RIG / "one_step_learner.py"), str(config), str(folder / "model"), str(folder)]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), *script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def test_what_a_tool_says_takes_no_part_in_lambda(tmp_path: Path, redis_process: RedisServer) -> None:
    save_tiny_policy(tmp_path / "model", vocab_size=64, max_position_embeddings=1024)
    bench = TurnsBench(
        tmp_path, redis_process, {"name": "tests.integration.test_turns_to_advantages:Speaking", "max_turns": 3}
    )
    assert isinstance(bench.engine, Copying)  # two tokens a turn
    config = config_of(bench, redis_process, tmp_path)
    asyncio.run(roll_out(bench, config))
    for num_ranks in (1, 2):
        learn(tmp_path, config, num_ranks)
    for num_ranks in (1, 2):
        of_tokens, of_turns = (json.loads((tmp_path / f"{level}_{num_ranks}.json").read_text())
                               for level in ("token", "turn"))  # fmt: skip
        assert max(of_tokens["packs"]) > 1  # some share a pack
        for i, given in enumerate(PROMPTS):
            found = of_tokens["trajectories"][f"rl-{i:08d}-0"]
            assert found["masked"] == given["said"]
            late = [0.428688, 0.45125, 0.475, 0.5]
            early = [0.451844, 0.475625, 0.2375, 0.25]  # deltas 0, .25, 0, .75 - .5
            paid = given["early"]
            assert found["turn_rewards"] == [paid, 1 - paid]
            assert found["advantages"] == pytest.approx(early if paid else late, abs=1e-6)
            assert found["targets"] == [1.0, 1.0, 1.0 - paid, 1.0 - paid]
            turns = of_turns["trajectories"][f"rl-{i:08d}-0"]
            by_turn = (0.4875, 0.25) if paid else (0.475, 0.5)  # .25 + .95 · .25, and .95 · .5
            assert turns["advantages"] == pytest.approx([each for each in by_turn for _ in (0, 1)], abs=1e-6)
    assert bench.store.ledger().is_exact
    bench.close()
