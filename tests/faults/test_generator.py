"""A real generator frozen past its lease, or killed: its prompts go to another, its late answers are duplicates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.integration.conftest import RedisServer
from tests.integration.learner.weights.test_weight_broadcast import make_model
from tests.integration.rig.scripted import fabricate
from tests.paths import ROOT
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import BufferEntry, Ledger
from vcppo.common.store.run_store import RunStore
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.common.transport.ports import free_endpoint

LEASE_SECONDS = 2.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Processes:
    """One run's generator and buffer, each to be started when the test wants it."""

    def __init__(self, folder: Path, redis: RedisServer) -> None:
        make_model(folder / "model", tied=True)
        tree: dict[str, Any] = {
            "run": {"name": "run", "folder": str(folder)},
            "model": {"path": str(folder / "model"), "dtype": "float32"},
            "generator": {
                "enforce_eager": True, "max_in_flight": 8, "max_model_len": 64, "kv_cache_gib": 0.1,
                "heartbeat_seconds": 0.5, "lease_seconds": LEASE_SECONDS,
                "initial_weights": "model",  # there is no learner
            },
            "learner": {"micro_batch_tokens": 64},
            "sampling": {"max_response_tokens": 16},
            "redis": {"url": redis.url},
            "transport": {"endpoints": [free_endpoint()], "ack_deadline_seconds": 1.0},
            "logging": {"format": "json", "tensorboard": False},
        }  # fmt: skip
        self.folder = RunFolder(folder / "run").create()
        self.folder.config.write_text(yaml.safe_dump(tree))
        self.store: RunStore = redis.store()
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", *words, "--config", str(self.folder.config)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.folder.log_file(name).open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self._all.append(process)
        return process

    def start_generator(self) -> subprocess.Popen[bytes]:
        num_before = len(self.events("generator-0", "engine_ready"))
        process = self.start("generator-0", "vcppo.generator", "--id", "generator-0")
        self.until(
            lambda: len(self.events("generator-0", "engine_ready")) > num_before, "the generator never came up", 120
        )
        return process

    def until(self, condition: Callable[[], bool], what: str, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}\n{self.folder.log_file('generator-0').read_text()[-3000:]}"
            time.sleep(0.05)

    def unacked(self) -> float | None:
        rows = list(read_metrics(self.folder.metrics_file("generator-0")))
        return rows[-1]["generator/unacked"] if rows else None

    def events(self, process: str, name: str) -> list[dict[str, Any]]:
        path = self.folder.log_file(process)
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for line in lines if line.startswith("{") and (event := json.loads(line))["event"] == name]

    def stop(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
                process.wait(10)


@pytest.fixture
def processes(tmp_path: Path, redis_process: RedisServer) -> Iterator[Processes]:
    made = Processes(tmp_path, redis_process)
    yield made
    made.stop()


def prompts(first: int, count: int) -> list[Prompt]:
    return [
        Prompt(
            id=f"rl-{number:08d}-0", group_id=f"rl-{number:08d}", sample_index=0, task="chain_arithmetic",
            token_ids=np.arange(2, 12, dtype=np.int32), answer={"answer": "12"}, seed=number, issue_version=0,
            purpose="rl", max_response_tokens=16,
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def answer(store: RunStore, leased: list[Prompt]) -> list[str]:
    """Append another generator's trajectories for these."""
    made = [fabricate(prompt, 0, "other") for prompt in leased]
    entries = [BufferEntry.of(t, encode_trajectory(t)) for t in made]
    return list(store.append(entries))


def test_frozen_past_its_lease_it_loses_its_prompts_and_its_late_answers_are_duplicates(processes: Processes) -> None:
    store = processes.store
    generator = processes.start_generator()
    store.issue(prompts(0, 8))
    processes.until(lambda: processes.unacked() == 8, "it never had 8 answers")  # no buffer yet: it keeps them
    assert store.ledger() == Ledger(issued=8, leased=8)  # finished or not, its lease is renewed until the append

    generator.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    leased = store.lease("other", 8, 60, wait_seconds=20)
    while len(leased) < 8:
        leased += store.lease("other", 8 - len(leased), 60, wait_seconds=20)
    assert time.monotonic() - began < LEASE_SECONDS + 3
    assert answer(store, leased) == ["accepted"] * 8

    buffer = processes.start("buffer", "vcppo.learner.buffer")
    generator.send_signal(signal.SIGCONT)
    processes.until(lambda: processes.unacked() == 0, "its late answers were never acknowledged")
    assert store.ledger() == Ledger(issued=8, buffered=8)

    store.issue(prompts(8, 4))  # and it is as good as before
    processes.until(lambda: store.ledger().buffered == 12, "it does not go on")
    buffer.terminate()
    assert buffer.wait(20) == 0
    (stopped,) = processes.events("buffer", "buffer_stopped")
    assert (stopped["duplicate"], stopped["accepted"]) == (8, 4)
    generator.terminate()
    assert generator.wait(60) == 0
    assert store.ledger() == Ledger(issued=12, buffered=12)
    assert store.dead_letters() == []


def test_frozen_and_replaced_it_wakes_up_ends_by_name_and_has_changed_nothing(processes: Processes) -> None:
    store = processes.store
    old = processes.start_generator()
    store.issue(prompts(0, 8))
    processes.until(lambda: processes.unacked() == 8, "it never had 8 answers")
    old.send_signal(signal.SIGSTOP)
    new = processes.start_generator()  # takes over the id, and with it what is leased to it
    processes.start("buffer", "vcppo.learner.buffer")
    processes.until(lambda: store.ledger() == Ledger(issued=8, buffered=8), "its successor never answered", 120)
    store.issue(prompts(8, 4))
    processes.until(lambda: store.ledger().buffered == 12, "its successor does not go on")
    ids = [prompt.id for prompt in prompts(0, 12)]
    before = store.payloads(ids)

    old.send_signal(signal.SIGCONT)
    assert old.wait(60) == EXIT_REFUSED
    (fatal,) = processes.events("generator-0", "fatal")
    assert "was superseded by generator-0 number 2" in fatal["error"]
    assert store.payloads(ids) == before
    store.issue(prompts(12, 4))
    processes.until(lambda: store.ledger() == Ledger(issued=16, buffered=16), "its successor no longer goes on")
    new.terminate()
    assert new.wait(60) == 0
    assert store.dead_letters() == []


def test_killed_with_unacked_answers_its_prompts_are_generated_again(processes: Processes) -> None:
    store = processes.store
    generator = processes.start_generator()
    store.issue(prompts(0, 8))
    processes.until(lambda: processes.unacked() == 8, "it never had 8 answers")
    generator.kill()
    generator.wait(10)
    processes.start("buffer", "vcppo.learner.buffer")
    processes.start_generator()
    processes.until(lambda: store.ledger().buffered == 8, "they never came")
    assert store.ledger() == Ledger(issued=8, buffered=8)
