"""`vcppo ui` on a long run: what each page takes to answer, with 10⁴ steps and 10⁵ samples in the run folder.

The server is the command itself, in a process of its own on the other core; the client is httpx on loopback. Drawing,
which the browser does, is left out. Each page is asked once to warm up, then in rounds; the first page after the start,
which comes while the server still reads, stands in a row of its own.

The run is made: metrics with every name that the learner declares, samples of ten responses a step from the learner's
own writer, log lines of two processes. What is asserted: each page answers 200 and shows the newest step.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np

from benchmarks.rig.figures import Figure, at_most
from benchmarks.rig.harness import Settings
from benchmarks.rig.workload import random_trajectories
from vcppo.common.config import AlgorithmConfig, MetricsConfig, VcppoConfig, dump_config
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metric_names import LEARNER
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.learner.batching.batch import Batch
from vcppo.learner.rl.estimates import estimate
from vcppo.learner.rl.samples import SampleWriter

MOST_MS = 300.0
_RUN = "long"
_SAMPLES_A_STEP, _TOKENS, _VOCABULARY = 10, 120, 64
_FILES = 16  # that differ; the others are links to them
_LINES_A_STEP = 3
_START_SECONDS = 60.0


class Page(NamedTuple):
    """What is asked for, and what it is called in the table."""

    name: str
    address: str


PAGES = (
    Page("list of runs", "/"),
    Page("run", "/run?run={run}"),
    Page("the run's charts", "/api/run?run={run}"),
    Page("samples of the newest step", "/samples?run={run}"),
    Page("samples of all steps, searched and sorted", "/samples?run={run}&steps=all&sort=largest+advantage&text=w7"),
    Page("one response", "/sample?run={run}&step={step}&id={id}"),
    Page("critic", "/critic?run={run}"),
    Page("the critic's charts", "/api/critic?run={run}&step={step}"),
    Page("logs", "/logs?run={run}"),
    Page("logs of one process", "/logs?run={run}&service=learner&level=warning"),
    Page("two runs compared", "/api/compare?run={run}&run={run}"),
)  # fmt: skip


def run(settings: Settings) -> list[Figure]:
    num_steps, rounds = settings.size(10_000, 50), settings.rounds(9)
    with tempfile.TemporaryDirectory() as folder:
        newest = _make_run(Path(folder), num_steps)
        with _served(Path(folder)) as client:
            first = _milliseconds(client, PAGES[1], num_steps, newest)
            for page in PAGES:
                _milliseconds(client, page, num_steps, newest)
            asked = [[_milliseconds(client, page, num_steps, newest) for page in PAGES] for _ in range(rounds)]
    size = f"{num_steps:,} steps, {num_steps * _SAMPLES_A_STEP:,} samples"
    goal = at_most(MOST_MS)
    by_page = zip(PAGES, zip(*asked, strict=True), strict=True)
    return [
        *(Figure.of(f"page: {page.name}, {size}", "", times, unit="ms", goal=goal) for page, times in by_page),
        Figure.of(
            f"page: run, asked at the server's start, {size}", "", [first], unit="ms",
            note="it waits until the run's metrics are read, once",
        ),
    ]  # fmt: skip


def _milliseconds(client: httpx.Client, page: Page, step: int, newest: str) -> float:
    address = page.address.format(run=_RUN, step=step, id=newest)
    started = time.perf_counter()
    answer = client.get(address)
    taken = 1e3 * (time.perf_counter() - started)
    if answer.status_code != httpx.codes.OK:
        raise AssertionError(f"{address}: {answer.status_code}: {answer.text[-500:]}")
    return taken


@contextmanager
def _served(folder: Path) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "vcppo.deploy.cli", "ui", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().strip()
        if not address:
            raise AssertionError(f"the server ended with {server.wait()}")
        with httpx.Client(base_url=address, timeout=_START_SECONDS) as client:
            yield client
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def _make_run(root: Path, num_steps: int) -> str:
    """A run folder as a learner would leave it after so many steps. Returns the id of a response of the last one."""
    config = VcppoConfig.model_validate(
        {"run": {"name": _RUN, "folder": root}, "model": {"path": "model"}, "rl": {"num_steps": num_steps}}
    )
    folder = RunFolder(config.run.path).create()
    folder.config.write_text(dump_config(config))
    _write_metrics(folder, num_steps)
    _write_logs(folder, num_steps)
    return _write_samples(folder, num_steps)


def _write_metrics(folder: RunFolder, num_steps: int) -> None:
    writer, draw = MetricsWriter(folder.path, "learner", _RUN), random.Random(0)
    names = [metric.name.replace("*", "one") for metric in LEARNER]
    for step in range(1, num_steps + 1):
        writer.write(step, {"stage": "rl", **{name: draw.random() for name in names}})
    writer.close()


def _write_logs(folder: RunFolder, num_steps: int) -> None:
    for service in ("learner", "generator-0"):
        lines = (
            {
                "time": f"2026-01-01T{i // 3600 % 24:02d}:{i // 60 % 60:02d}:{i % 60:02d}.000Z", "level": "info",
                "service": service, "run_id": _RUN, "event": "learner step", "step": i, "policy_version": i,
                "reward": 0.5, "seconds": 1.5, "trajectory_id": f"rl-{i:08d}-0@{service}.0",
            }
            for i in range(num_steps * _LINES_A_STEP)
        )  # fmt: skip
        folder.log_file(service).parent.mkdir(exist_ok=True)
        folder.log_file(service).write_text("".join(json.dumps(line) + "\n" for line in lines))


class _Words:
    """A tokenizer whose tokens are words."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(f"w{number}" for number in ids)


def _write_samples(folder: RunFolder, num_steps: int) -> str:
    writer = SampleWriter(folder.samples, MetricsConfig(), _Words())
    batch = Batch(random_trajectories([_TOKENS] * _SAMPLES_A_STEP, _VOCABULARY, 8), 0)
    rng = np.random.default_rng(0)
    for step in range(1, num_steps + 1):
        path = folder.samples / f"step-{step:06d}.parquet"
        if step > _FILES:
            os.link(folder.samples / f"step-{step % _FILES + 1:06d}.parquet", path)
            continue
        values = rng.normal(size=batch.num_actions).astype(np.float32)
        estimates = estimate(
            batch, values, values[: len(batch)], batch.behaviour_log_probs + values / np.float32(100),
            AlgorithmConfig(), lambda_actor=0.95, lambda_critic=1.0, entropy=np.abs(values),
        )  # fmt: skip
        writer.write(step, batch, estimates, has_critic=True)
    return batch.trajectories[0].id
