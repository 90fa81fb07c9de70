"""From process start to ready: a generator and the learner against vLLM's engine alone, demo model.

- Generator: `python -m generator` until its member entry is in the store, so that it takes prompts: vLLM up, its first
  request and canary done, verifiers running, buffer and Redis connected.
- Learner: `python -m learner` on the same run, with that generator there, until its first prompts are issued: actor
  and critic under DeepSpeed, its end of the weight transfer loaded.
- vLLM alone: ``LLM(...)`` with the generator's engine arguments and environment, until it has made one token; as it
  comes (engine and worker are processes of their own), and all in one process, as ours is on a CPU.

One core each. Generator and vLLM in one process start at the same moment on different cores; then the learner and vLLM
as it comes. They change places every round. Files are in the page cache: a first, unmeasured start puts them there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, at_most, seconds_text
from benchmarks.generation import llm_arguments
from benchmarks.harness import Settings
from benchmarks.rig import DEADLINE_SECONDS, Rig, demo_architecture, demo_settings, write_model
from common.config import VcppoConfig
from deploy.processes import REPOSITORY

ALONE = ("one process", "as it comes")
_SCRIPT = """
import json, sys, time
from vllm import LLM, SamplingParams
llm = LLM(**json.loads(sys.argv[1]))
llm.generate([{"prompt_token_ids": [4, 5]}], SamplingParams(max_tokens=1), use_tqdm=False)
print("ready", time.monotonic(), file=sys.stderr, flush=True)
"""


def run(settings: Settings) -> list[Figure]:
    cores = sorted(os.sched_getaffinity(0))
    seconds: dict[str, list[float]] = {"generator": [], "learner": [], **{kind: [] for kind in ALONE}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", demo_architecture(), "float32")
        if not settings.quick:
            Alone(_config(folder, "warm", model), cores[0], {}, one_process=True).wait()
        for index in range(settings.rounds(2)):
            ours, theirs = (cores[0], cores[-1]) if index % 2 else (cores[-1], cores[0])
            found = _round(_config(folder, f"round-{index}", model), ours, theirs, settings.quick)
            for what, value in found.items():
                seconds[what].append(value)

    def figure(who: str, against: str) -> Figure:
        values = [mine / theirs for mine, theirs in zip(seconds[who], seconds[against], strict=True)]
        return Figure.of(
            f"start-up of a {who}, demo model",
            f"vLLM's engine alone, {against}",
            values,
            goal=at_most(1.15),
            absolute=seconds_text(statistics.median(seconds[who])),
        )

    return [figure(who, against) for who in ("generator", "learner") for against in ALONE if seconds[against]]


def _config(folder: Path, name: str, model: Path) -> VcppoConfig:
    return demo_settings(
        folder,
        name,
        model,
        generator={"num_generators": 1},
        critic={"init": "policy"},
        value_pretraining={"num_trajectories": 0},
    )


def _round(config: VcppoConfig, generator_core: int, other_core: int, quick: bool) -> dict[str, float]:
    """Seconds of each; `quick` leaves out the longest."""
    seconds: dict[str, float] = {}
    with Rig(config) as rig:
        (spec,) = rig.launcher.generator_specs()
        alone = Alone(config, other_core, spec.environment, one_process=True)
        began = time.monotonic()
        rig.start(spec, [generator_core])
        rig.wait(lambda: rig.store.members("generator") != [], "the generator registered")
        seconds["generator"] = time.monotonic() - began
        seconds["one process"] = alone.wait()
        other = None if quick else Alone(config, generator_core, spec.environment, one_process=False)
        began = time.monotonic()
        rig.start(rig.launcher.learner_spec(), [other_core])
        rig.wait(lambda: rig.store.ledger().as_dict()["issued"] > 0, "the learner issued prompts")
        seconds["learner"] = time.monotonic() - began
        for name in ("learner", spec.name):  # they would go on to work beside vLLM
            rig.end(name)
        if other is not None:
            seconds["as it comes"] = other.wait()
    return seconds


class Alone:
    """vLLM's engine, starting."""

    def __init__(self, config: VcppoConfig, core: int, environment: Mapping[str, str], one_process: bool) -> None:
        self._began = time.monotonic()
        quiet: dict[str, Any] = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if one_process else "1",
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
