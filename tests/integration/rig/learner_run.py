"""The learner process on a run folder of its own, with a real Redis, DeepSpeed and a tiny model, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.paths import RIG, ROOT
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.run_store import RunStore
from vcppo.learner.rl.trained_log import check_trained_once, read_trained_log

NUM_STEPS = 7
BATCH = 8


class Run:
    """One run folder: writes its config, starts learner processes on it."""

    def __init__(self, folder: Path, name: str, url: str, model: Path, **sections: dict[str, Any]) -> None:
        self.name, self.url = name, url
        self.folder = RunFolder(folder / name)
        self.folder.create()
        tree: dict[str, Any] = {
            "run": {"name": name, "folder": str(folder)},
            "model": {"path": str(model), "dtype": "float32"},
            "task": {"options": {"num_operations": 2}},
            "sampling": {"max_response_tokens": 20},
            "value_pretraining": {
                "num_trajectories": 48, "batch_size": 16, "max_steps": 6, "eval_every": 3,
                "held_out_fraction": 0.25, "min_explained_variance": -10.0,
            },
            "rl": {"num_steps": NUM_STEPS, "batch_size": BATCH, "group_size": 2, "max_staleness": 0,
                   "actor_learning_rate": 1e-3},
            "algorithm": {"num_mini_batches": 2},
            "learner": {"checkpoint_every": 2, "device": "cpu", "num_threads": 1, "batch_deadline_seconds": 60.0,
                        "micro_batch_tokens": 128},
            "generator": {"max_model_len": 64, "max_in_flight": 8, "lease_seconds": 30.0},
            "redis": {"url": url},
            "logging": {"format": "json", "tensorboard": False},
        }  # fmt: skip
        for section, values in sections.items():
            tree[section] = {**tree.get(section, {}), **values}
        self.folder.config.write_text(yaml.safe_dump(tree))
        self.log = self.folder.path / "learner.log"

    def start(self, num_ranks: int = 1) -> subprocess.Popen[bytes]:
        launcher = [sys.executable]
        if num_ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*launcher, str(RIG / "learner_process.py"), "--config", str(self.folder.config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(280) == 0, self.tail()

    def tail(self) -> str:
        return self.log.read_text()[-6000:]

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        deadline = time.monotonic() + 280
        while step not in read_trained_log(self.folder.trained_log):
            assert process.poll() is None, self.tail()
            assert time.monotonic() < deadline, self.tail()
            time.sleep(0.01)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """torchrun's ranks first: once it is dead itself they would be asked to stop, and stop in order."""
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for each in (*map(int, ranks), process.pid):
            os.kill(each, signal.SIGKILL)
        process.wait(10)

    def store(self) -> RunStore:
        return RunStore.connect(self.url, self.name, 10.0)

    def check_accounts(self, max_staleness: int) -> None:
        ledger = self.store().ledger()
        assert ledger.is_exact
        assert ledger.outstanding == 0
        assert check_trained_once(self.folder.trained_log, max_staleness) == NUM_STEPS * BATCH
        assert ledger.trained == NUM_STEPS * BATCH + 48

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]
