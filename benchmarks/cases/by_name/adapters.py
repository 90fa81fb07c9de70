"""Memory and time of a learner step with adapters against full training: `python -m benchmarks adapters`.

SmolLM2-135M's shape in bfloat16, four sequences of up to 1,220 tokens. Each arm has a process of its own, which makes
its models as the learner does and trains a batch. Memory is the process' peak from before the models are loaded,
less what it held then (Python and libraries, the same in each arm). Time is CPU seconds of one thread, of the second
step. Not part of `make bench`: it takes five minutes and six gigabytes.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import structlog

from benchmarks.rig.figures import Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import SMOLLM2_135M, write_model
from benchmarks.rig.workload import log_normal_lengths, random_trajectories

RANK = 16
GRPO = {"advantage_estimator": "group_mean"}
# name -> lora and algorithm sections
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full fine-tuning, critic": ({}, {}),
    f"LoRA of rank {RANK}, critic": ({"rank": RANK}, {}),
    "full fine-tuning, no critic": ({}, GRPO),
}
_CLEAR_PEAK = "5"  # see proc(5), clear_refs
_DEADLINE_SECONDS = 900.0


class Measured(NamedTuple):
    """Of one arm: bytes above the libraries', CPU seconds of a step, seconds of making the models."""

    peak: int
    step: float
    load: float
    checkpoint: int


def run(settings: Settings) -> list[Figure]:
    """Each arm against full fine-tuning with a critic."""
    architecture = dict(SMOLLM2_135M)
    if settings.quick:
        architecture |= {"num_hidden_layers": 2, "vocab_size": 2048}
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", architecture, "bfloat16")
        found = {name: _in_a_process(name, model, settings.quick) for name in ARMS}
    whole, *others = ARMS
    return [figure for name in others for figure in _figures(name, found[name], whole, found[whole])]


def _figures(name: str, arm: Measured, other_name: str, other: Measured) -> list[Figure]:
    goal = at_most(0.5) if "LoRA" in name else None
    return [
        Figure.of(f"peak memory of a learner, {name}", other_name, [arm.peak / other.peak], goal=goal,
                  absolute=f"{arm.peak / 2**20:,.0f} of {other.peak / 2**20:,.0f} MiB"),
        Figure.of(f"learner step, {name}", other_name, [arm.step / other.step],
                  absolute=f"{seconds_text(arm.step)} of {seconds_text(other.step)}"),
        Figure.of(f"engines in a checkpoint, {name}", other_name, [arm.checkpoint / other.checkpoint],
                  absolute=f"{arm.checkpoint / 2**20:,.0f} of {other.checkpoint / 2**20:,.0f} MiB"),
    ]  # fmt: skip


def _in_a_process(name: str, model: Path, quick: bool) -> Measured:
    command = [sys.executable, "-m", __name__, name, str(model), "quick" if quick else "full"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def _measure(name: str, model: Path, quick: bool) -> Measured:
    from vcppo.common.config import VcppoConfig
    from vcppo.learner.batching.batch import Batch, Share
    from vcppo.learner.critic_model.critic_engine import make_rl_critic
    from vcppo.learner.engine.deepspeed_engine import init_distributed
    from vcppo.learner.export import make_actor, make_policy
    from vcppo.learner.models.models import vocabulary_size
    from vcppo.learner.rl.loop import Models, RlLoop
    from vcppo.learner.rl.phases import Phases
    from vcppo.learner.rl.publish import Broadcaster

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    lora, algorithm = ARMS[name]
    tree = {
        "model": {"path": str(model), "dtype": "bfloat16"}, "critic": {"init": "policy"}, "lora": lora,
        "algorithm": {"num_mini_batches": 1, **algorithm}, "learner": {"micro_batch_tokens": 2048},
        "value_pretraining": {"num_trajectories": 0}, "generator": {"max_model_len": 1280},
    }  # fmt: skip
    config = VcppoConfig.model_validate(tree)
    init_distributed("cpu")
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    started = time.process_time()
    base = make_policy(config) if config.lora.rank is not None else None
    actor = make_actor(config, base)
    models = Models(actor, make_rl_critic(config, base) if config.algorithm.has_critic else None)
    load = time.process_time() - started
    lengths = log_normal_lengths(4, longest=400 if quick else 1220)
    batch = Batch(random_trajectories(lengths, vocabulary_size(model, trust_remote_code=False), 64), 0)
    loop = RlLoop(config, models, Share(0, 1, config.learner.micro_batch_tokens), cast(Broadcaster, None), None)
    loop.train(Batch(batch.trajectories[:1], 0), Phases())  # warms up
    started = time.process_time()
    loop.train(batch, Phases())
    step, peak = time.process_time() - started, _memory("VmHWM") - before
    with tempfile.TemporaryDirectory() as folder:
        for engine in filter(None, (models.actor, models.critic)):
            engine.save(Path(folder) / type(engine.module).__name__)
        checkpoint = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Measured(peak, step, load, checkpoint)


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "quick")))
