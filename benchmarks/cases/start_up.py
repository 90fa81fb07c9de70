"""From process start to ready: a generator and the learner against vLLM's engine alone, and a whole run; demo model.

- Generator: `python -m vcppo.generator` until its member entry is in the store, so that it takes prompts: vLLM up, its
  first request and canary done, verifiers running, buffer and Redis connected.
- Learner: `python -m vcppo.learner` on the same run, with that generator there, until its first prompts are issued:
  actor and critic under DeepSpeed, its end of the weight transfer loaded.
- vLLM alone: ``LLM(...)`` with the generator's engine arguments and environment, until it has made one token, all in
  one process, as ours is on a CPU. (As it comes, engine and worker processes of their own, it takes twice as long.)
- A run: `vcppo up` on both cores until the first trajectory is in the store: Redis, buffer, learner and generator have
  come up, and the generator has got its first weights.

One core each, but for the run. Generator and vLLM start at the same moment on different cores, and change places every
round; then the learner. Files are in the page cache: they are imported once before.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import REPOSITORY
from benchmarks.cases.generation import llm_arguments
from benchmarks.rig.figures import Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import DEADLINE_SECONDS, Rig, demo_architecture, demo_settings, write_model
from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.run_store import RunStore
from vcppo.deploy.processes import redis_server

_IMPORTS = "import deepspeed, vllm.entrypoints.llm, vllm.v1.worker.cpu_worker"
_SCRIPT = """
import json, sys, time
from vllm import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
llm.generate([{"prompt_token_ids": [4, 5]}], SamplingParams(max_tokens=1), use_tqdm=False)
print("ready", time.monotonic(), file=sys.stderr, flush=True)
"""


class Round(NamedTuple):
    """Seconds of each start; nan where it was left out."""

    generator: float
    learner: float
    alone: float
    trajectory: float


def run(settings: Settings) -> list[Figure]:
    cores = sorted(os.sched_getaffinity(0))
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", demo_architecture(), "float32")
        if not settings.quick:
            subprocess.run([sys.executable, "-c", _IMPORTS], check=True, timeout=DEADLINE_SECONDS, cwd=REPOSITORY)
        for index in range(settings.rounds(2)):
            ours, theirs = (cores[0], cores[-1]) if index % 2 else (cores[-1], cores[0])
            trajectory = math.nan if settings.quick else first_trajectory(_config(folder, f"up-{index}", model), cores)
            config = _config(folder, f"round-{index}", model)
            rounds.append(_round(config, ours, theirs, settings.quick)._replace(trajectory=trajectory))
    alone = [each.alone for each in rounds]
    figures = [_figure("generator", [each.generator for each in rounds], alone)]
    if not settings.quick:
        figures.append(_figure("learner", [each.learner for each in rounds], alone))
        seconds = [each.trajectory for each in rounds]
        figures.append(
            Figure.of("`vcppo up` to the first trajectory, demo model", "", seconds, unit="s", goal=at_most(8.0))
        )
    return figures


def _figure(who: str, seconds: list[float], alone: list[float]) -> Figure:
    return Figure.of(
        f"start-up of a {who}, demo model",
        "vLLM's engine alone",
        [mine / theirs for mine, theirs in zip(seconds, alone, strict=True)],
        goal=at_most(1.15),
        absolute=seconds_text(statistics.median(seconds)),
    )


def _config(folder: Path, name: str, model: Path) -> VcppoConfig:
    return demo_settings(
        folder,
        name,
        model,
        generator={"num_generators": 1},
        critic={"init": "policy"},
        value_pretraining={"num_trajectories": 0},
    )


def _round(config: VcppoConfig, generator_core: int, other_core: int, quick: bool) -> Round:
    """`quick` leaves the learner out, which `overlap` starts too."""
    with Rig(config) as rig:
        (spec,) = rig.launcher.generator_specs()
        alone = Alone(config, other_core, spec.environment)
        began = time.monotonic()
        rig.start(spec, [generator_core])
        rig.wait(lambda: rig.store.members("generator") != [], "the generator registered")
        generator = time.monotonic() - began
        alone_seconds = alone.wait()
        if quick:
            return Round(generator, math.nan, alone_seconds, math.nan)
        began = time.monotonic()
        rig.start(rig.launcher.learner_spec(), [other_core])
        rig.wait(lambda: rig.store.ledger().as_dict()["issued"] > 0, "the learner issued prompts")
        return Round(generator, time.monotonic() - began, alone_seconds, math.nan)


def first_trajectory(config: VcppoConfig, cores: Sequence[int]) -> float:
    """Seconds from the start of `vcppo up` on these cores until the store holds a trajectory. The run is killed then.

    Raises:
        RuntimeError: `vcppo up` has ended before.
        TimeoutError: nothing came within DEADLINE_SECONDS.
    """
    path = config.run.path.parent / f"{config.run.name}.yaml"
    path.write_text(dump_config(config))
    output = path.with_suffix(".out")
    began = time.monotonic()
    with output.open("wb") as file:
        up = subprocess.Popen(
            [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", str(path)],
            cwd=REPOSITORY,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(len(cores))},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
    try:
        while not _has_trajectory(config):
            if up.poll() is not None:
                raise RuntimeError(f"vcppo up ended with {up.returncode}:\n{output.read_text()[-3000:]}")
            if time.monotonic() - began > DEADLINE_SECONDS:
                raise TimeoutError(f"no trajectory within {DEADLINE_SECONDS:.0f} s:\n{output.read_text()[-3000:]}")
            time.sleep(0.05)
        return time.monotonic() - began
    finally:
        up.terminate()
        up.wait(DEADLINE_SECONDS)


def _has_trajectory(config: VcppoConfig) -> bool:
    """Whether one has come in; False while the run's Redis is not up yet."""
    folder = RunFolder(config.run.path)
    if not folder.redis.is_dir() or not redis_server.is_running(folder.redis):
        return False
    store = RunStore.connect(redis_server.url(folder.redis), config.run.name, 30.0)
    try:
        ledger = store.ledger()
    finally:
        store.close()
    return ledger.buffered + ledger.claimed + ledger.trained > 0


class Alone:
    """vLLM's engine, starting."""

    def __init__(self, config: VcppoConfig, core: int, environment: Mapping[str, str]) -> None:
        self._began = time.monotonic()
        quiet: dict[str, Any] = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT, json.dumps(llm_arguments(config))],
            env=os.environ | {**environment} | quiet,
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )

    def wait(self) -> float:
        """Seconds from its start to its first token, by the machine's clock; it has ended when this returns."""
        _, written = self._process.communicate(timeout=DEADLINE_SECONDS)
        for line in written.splitlines():
            if line.startswith("ready "):
                return float(line.split()[1]) - self._began
        raise RuntimeError(f"vLLM alone did not start:\n{written[-3000:]}")
