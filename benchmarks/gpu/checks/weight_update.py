"""Weights from the learner's engine to a real generator, by each way that this machine has, with the proof of weights.

With one GPU learner and generator share it, and weights go through host memory (gloo). NCCL needs a second GPU, which
the generator gets.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases.weight_update import Learner
from benchmarks.gpu.findings import Findings, Number, Place, Speed
from benchmarks.gpu.requirements import NO_VLLM, backends, is_installed, why_no_update
from benchmarks.rig.real_parts import SMOLLM2_135M, Rig, demo_architecture, demo_settings, write_model
from vcppo.common.errors import VcppoError
from vcppo.learner.engine.deepspeed_engine import init_distributed
from vcppo.learner.weights.canary import limit_of

WAYS = ("gloo", "nccl", "ipc")
UPDATES = 6


def run(place: Place) -> Findings:
    """A start, some updates and one with wrong weights, for each way."""
    if not is_installed("vllm"):
        return Findings.none(NO_VLLM)
    found, num_gpus = Findings(), torch.cuda.device_count() if place.is_cuda else 0
    init_distributed("cuda" if place.is_cuda else "cpu")
    for way in WAYS:
        if (reason := why_no_update(way, num_gpus=num_gpus, known=backends())) is not None:
            found.not_run.append(reason)
            continue
        with tempfile.TemporaryDirectory() as folder:
            done = _updates(place, way, Path(folder))
        found.numbers += done.numbers
        found.speeds += done.speeds
    return found


def _updates(place: Place, way: str, folder: Path) -> Findings:
    architecture, dtype = (demo_architecture(), "float32") if place.quick else (SMOLLM2_135M, "bfloat16")
    model = write_model(folder / "model", architecture, dtype)
    config = demo_settings(
        folder, f"by-{way}", model, model={"dtype": dtype}, broadcast={"backend": way},
        generator={"num_generators": 1, "gpu_memory_utilization": 0.3},
    )  # fmt: skip
    with Rig(config) as rig:
        for spec in rig.launcher.generator_specs():
            # A GPU of its own for NCCL, which refuses two ranks on one.
            own = {"CUDA_VISIBLE_DEVICES": "1"} if way == "nccl" else {}
            rig.start(replace(spec, environment={**spec.environment, **own}))
        learner = Learner(rig)
        reports = [learner.update() for _ in range(place.size(UPDATES, 2))]
        worst = max(report.canary_difference or 0.0 for report in reports)
        limit = limit_of(None, learner.probe(), config.broadcast.noise_factor)
        is_refused = _is_refused(learner)
        learner.broadcaster.close()
    pause = statistics.median(report.pause_seconds for report in reports[1:])
    what = f"weight update by {way}"
    return Findings(
        [
            Number(f"{what}: log-probs of the generator", worst, limit, "nats, mean", "the learner's"),
            Number(f"{what}: wrong weights are refused", float(not is_refused), 0.0, "(0: they are)", "the proof"),
        ],
        [
            Speed(f"{what}: a generator stands still", 1e3 * pause, "ms"),
            Speed(f"{what}: bytes over that time", reports[0].num_bytes / pause / 1e9, "GB/s"),
        ],
    )


def _is_refused(learner: Learner) -> bool:
    """Whether an update whose weights are not those that the probe is of raises."""
    try:
        learner.broadcaster.broadcast(learner.version + 1, learner.probe(other=True))
    except VcppoError:
        return True
    return False
