"""`RlLoop.train` with DeepSpeed's engines, actor and critic, in both types."""

from __future__ import annotations

from benchmarks.gpu.findings import Findings, Place
from benchmarks.gpu.one_step import check_step


def run(place: Place) -> Findings:
    """ZeRO 0; in bfloat16 the engine computes it as stage 1, with float32 masters."""
    found = check_step(place, "float32", 0)
    found.numbers += check_step(place, "bfloat16", 0).numbers
    return found
