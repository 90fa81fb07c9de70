"""Offloaded optimizers and parameters compute what others do, and their checkpoints fit each other.

Run as a script (`torchrun ... test_offload.py FOLDER`) this file is the worker. On a CPU device and host are one
memory: what moves is not seen here, only that all that DeepSpeed does in between is right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.learner.engine.test_engine_ranks import launch, make_frozen, one_step
from vcppo.common.process.end_process import end_process

pytestmark = pytest.mark.slow

NUM_RANKS, STEPS = 2, 3
# (stage, offload of parameters too)
CASES = [(1, False), (2, False), (3, False), (3, True)]
DTYPES = ("float32", "bfloat16")


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path) -> None:
    from vcppo.learner.engine.deepspeed_engine import init_distributed, shutdown_distributed

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    for dtype in DTYPES:
        for stage, parameters in CASES:
            place = folder / f"{dtype}-{stage}-{parameters}"
            engines = {
                "plain": make(folder, dtype, stage),
                "offloaded": make(folder, dtype, stage, offload_optimizer=True, offload_parameters=parameters),
            }
            check_where(engines["offloaded"], stage, parameters)
            norms = {name: [one_step({name: engine})[name] for _ in range(STEPS)] for name, engine in engines.items()}
            for name, engine in engines.items():
                engine.save(place / name)
            write_weights(place, engines, "after")
            engines["plain"].load(place / "offloaded")
            engines["offloaded"].load(place / "plain")
            for name, engine in engines.items():
                norms[name].append(one_step({name: engine})[name])
            write_weights(place, engines, "resumed")
            if torch.distributed.get_rank() == 0:
                (place / "norms.json").write_text(json.dumps(norms))
    shutdown_distributed()


def make(folder: Path, dtype: str, stage: int, **offload: bool) -> Any:
    from vcppo.learner.engine.deepspeed_engine import EngineOptions

    options = EngineOptions(zero_stage=stage, dtype=dtype, max_grad_norm=0.5, **offload)  # type: ignore[arg-type]
    return make_frozen(folder / "model", options)


def check_where(engine: Any, stage: int, parameters: bool) -> None:
    """As DeepSpeed understood it."""
    assert engine._engine.zero_use_cpu_optimizer()
    optimizer = engine._engine.optimizer
    assert optimizer.offload_optimizer if stage == 3 else optimizer.cpu_offload
    assert bool(engine._engine.zero_offload_param()) == parameters


def write_weights(place: Path, engines: dict[str, Any], when: str) -> None:
    for name, engine in engines.items():
        state = engine.gather_full_state_dict()
        if torch.distributed.get_rank() == 0:
            save_file(state, place / f"{name}-{when}.safetensors")


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.rig.learner_samples import save_tiny_policy

    folder = tmp_path_factory.mktemp("offload")
    save_tiny_policy(folder / "model")
    launch(folder, NUM_RANKS, __file__)
    return folder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("stage", "parameters"), CASES)
def test_offloaded_engines_train_alike_and_go_on_from_each_other(
    results: Path, dtype: str, stage: int, parameters: bool
) -> None:
    place = results / f"{dtype}-{stage}-{parameters}"
    norms = json.loads((place / "norms.json").read_text())
    assert norms["offloaded"] == pytest.approx(norms["plain"], rel=1e-5)
    assert len(norms["plain"]) == STEPS + 1 and min(norms["plain"]) > 0.5, "clipping was never active"
    start = load_file(results / "model" / "model.safetensors")
    for when in ("after", "resumed"):
        plain, offloaded = (load_file(place / f"{name}-{when}.safetensors") for name in ("plain", "offloaded"))
        assert plain.keys() == offloaded.keys()
        assert any((plain[name].float() - start[name]).abs().max() > 1e-3 for name in plain)
        for name, weights in plain.items():
            torch.testing.assert_close(
                offloaded[name], weights, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
    end_process(0)  # as a learner: gloo's threads may outlive the group
