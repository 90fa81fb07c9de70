"""A generator's engine at rest and awake again: does it give its memory back, and answer as before?

Pause and resume are the product's. vLLM's sleep mode (level 1: weights to the host, keys and values dropped) is reached
through ``generator.engine_options``; the product itself does not put a generator to sleep yet.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.findings import Findings, Number, Place, Speed
from benchmarks.gpu.requirements import NO_VLLM, is_installed
from benchmarks.rig.real_parts import SMOLLM2_135M, demo_architecture, demo_settings, make_prompts, write_model

TOKENS = np.arange(4, 30, dtype=np.int32)
SAME_NATS = 0.02


def run(place: Place) -> Findings:
    """Log-probs of the same tokens before and after."""
    if not is_installed("vllm"):
        return Findings.none(NO_VLLM)
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_sleep(place, Path(folder)))


async def _sleep(place: Place, folder: Path) -> Findings:
    from vcppo.generator.vllm_engine.engine import Engine

    architecture = demo_architecture() if place.quick else SMOLLM2_135M
    model = write_model(folder / "model", architecture, "float32" if place.quick else "bfloat16")
    options = {"enable_sleep_mode": True} if place.is_cuda else {}
    generator = {"num_generators": 1, "gpu_memory_utilization": 0.3, "engine_options": options}
    config = demo_settings(folder, "sleep", model, generator=generator)
    engine, found = Engine(config), Findings()
    await engine.start()
    try:
        before = await engine.canary(TOKENS, 1)
        response = asyncio.create_task(engine.generate(make_prompts(config, 1, 64)[0]))
        await asyncio.sleep(0)
        await engine.pause()
        await engine.resume()
        length = len((await response).token_ids)
        found.numbers += [
            _same("pause and resume", before, await engine.canary(TOKENS, 1)),
            Number("pause and resume: a response goes on", float(length == 0), 0.0, "(0: it does)", "its tokens"),
        ]
        if place.is_cuda:
            await _asleep(engine, found, place)
            found.numbers.append(_same("sleep, level 1", before, await engine.canary(TOKENS, 1)))
        else:
            found.not_run.append("vLLM's sleep mode: it needs CUDA, and the CPU is checked")
    finally:
        engine.shutdown()
    return found


async def _asleep(engine: Any, found: Findings, place: Place) -> None:
    """NOT RUN: vLLM has no sleep mode on a CPU."""
    awake = torch.cuda.mem_get_info(place.device)[0]
    await engine.stepper.call(lambda vllm: vllm.sleep(level=1))
    asleep = torch.cuda.mem_get_info(place.device)[0]
    await engine.stepper.call(lambda vllm: vllm.wake_up())
    found.speeds.append(Speed("sleep, level 1: memory given back", (asleep - awake) / 2**30, "GiB"))
    found.numbers.append(Number("sleep, level 1: memory is given back", float(asleep <= awake), 0.0, "(0: it is)"))


def _same(what: str, before: Any, after: Any) -> Number:
    difference = float(np.abs(np.asarray(after, np.float64) - before).mean())
    return Number(f"{what}: log-probs", difference, SAME_NATS, "nats, mean", "those before")
