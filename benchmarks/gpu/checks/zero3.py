"""The same step with the weights sharded (ZeRO 3), and with what is kept on the host (ZeRO-Offload)."""

from __future__ import annotations

from dataclasses import fields

from benchmarks.gpu.findings import Findings, Place
from benchmarks.gpu.one_step import check_step
from vcppo.learner.engine.deepspeed_engine import EngineOptions


def run(place: Place) -> Findings:
    """Both types at stage 3, on one rank: gathers and partitions run, and nothing travels."""
    found = check_step(place, "float32", 3)
    found.numbers += check_step(place, "bfloat16", 3).numbers
    if not any("offload" in field.name for field in fields(EngineOptions)):
        found.not_run.append("ZeRO-Offload: not built, the learner has no setting for it")
    else:
        found.not_run.append("ZeRO-Offload: the learner has a setting for it, and this check does not use it yet")
    return found
