"""A checkpoint of any number of ranks and ZeRO stage goes on at any other: state bit for bit, steps to rounding.

Run as a script (`torchrun ... test_resume_anywhere.py FOLDER ROUND`) this file is the worker. Round 0 trains two steps
and saves; each later round loads what the one before has saved elsewhere, saves it again, and takes two steps more.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.learner.engine.test_engine_ranks import launch, make_binned, make_frozen, one_step
from vcppo.common.errors import VcppoError
from vcppo.common.process.end_process import end_process

pytestmark = pytest.mark.slow

# (ranks, stage) of each round, one after the other: every way between one and two ranks, and 3 → 0 and 0 → 3.
WAYS = {
    "1-2-1": [(1, 0), (2, 0), (1, 0)],
    "sharded-1-2-1": [(1, 3), (2, 3), (1, 3)],
    "three-zero": [(2, 3), (1, 0), (2, 2)],
    "zero-three": [(1, 0), (2, 3), (1, 0)],
    "one-and-two": [(2, 1), (1, 2), (2, 1)],
    "two-to-three": [(2, 2), (1, 3), (2, 0)],
    "same-ranks": [(2, 3), (2, 0), (2, 1)],
}
NUM_ROUNDS, STEPS = 3, 2
DTYPES = ("float32", "bfloat16")
CALM = "calm"  # one plain rank from end to end
KINDS = ("fp32", "exp_avg", "exp_avg_sq")


def tasks(number: int, num_ranks: int) -> Iterator[tuple[str, int]]:
    """Which ways have this many ranks in this round, and at which stage."""
    return ((way, stages[number][1]) for way, stages in WAYS.items() if stages[number][0] == num_ranks)


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path, number: int) -> None:
    from vcppo.learner.engine.deepspeed_engine import init_distributed, num_ranks, shutdown_distributed

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    for dtype in DTYPES:
        for way, stage in tasks(number, num_ranks()):
            one_round(folder, way, stage, dtype, number)
        if num_ranks() == 1 and number == 0:
            for each in range(NUM_ROUNDS):
                one_round(folder, CALM, 0, dtype, each)
    shutdown_distributed()


def one_round(folder: Path, way: str, stage: int, dtype: str, number: int) -> None:
    from vcppo.learner.engine.deepspeed_engine import rank

    place = folder / way / dtype
    norms: list[dict[str, float]] = []
    engines = make_engines(folder, stage, dtype, number)
    if number:
        check_other_training_is_refused(folder, place / f"frozen-{number - 1}", engines["frozen"].options)
        for name, engine in engines.items():
            engine.load(place / f"{name}-{number - 1}")
            assert engine.learning_rate == pytest.approx(1e-3)
            engine.save(place / f"{name}-{number - 1}-again")
            check_same(place / f"{name}-{number - 1}", place / f"{name}-{number - 1}-again", engine)
    norms.extend(one_step(engines) for _ in range(STEPS))
    for name, engine in engines.items():
        engine.save(place / f"{name}-{number}")
        state = engine.gather_full_state_dict()
        if rank() == 0:
            save_file(state, place / f"{name}-{number}.safetensors")
    if rank() == 0:
        (place / f"norms-{number}.json").write_text(json.dumps(norms))


def make_engines(folder: Path, stage: int, dtype: str, number: int) -> dict[str, Any]:
    """A policy and a critic, half of each frozen; later ones start from other weights, so that all must be loaded."""
    from vcppo.learner.engine.deepspeed_engine import EngineOptions

    options = EngineOptions(zero_stage=stage, dtype=dtype, max_grad_norm=0.5)  # type: ignore[arg-type]
    model = folder / ("model" if number == 0 else "other")
    made = {"frozen": make_frozen(model, options)}
    if dtype == "float32":
        made["binned"] = make_binned(model, options)
    return made


def check_other_training_is_refused(folder: Path, checkpoint: Path, options: Any) -> None:
    """Into an engine that trains all of the model."""
    from vcppo.learner.engine.deepspeed_engine import TrainEngine
    from vcppo.learner.models.models import load_policy

    engine = TrainEngine(load_policy(folder / "other", dtype=options.torch_dtype), learning_rate=1e-3, options=options)
    with pytest.raises(VcppoError, match=r"does not train|has 13 parameters and the model trains 26"):
        engine.load(checkpoint)


def check_same(before: Path, after: Path, engine: Any) -> None:
    """Masters, moments, step counts and the schedule, of every parameter, to the bit."""
    from vcppo.learner.engine.deepspeed_engine import _saved_state, barrier

    barrier()
    old, new = _saved_state(before), _saved_state(after)
    trained = [name for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    for state in (old, new):
        state.name_plain(trained)
    assert old.shapes == new.shapes and {*trained} == old.shapes.keys() and len(trained) >= 13
    assert old.scheduler == new.scheduler and old.counters == new.counters and old.scheduler["last_epoch"] > 0
    for name, shape in old.shapes.items():
        assert torch.equal(old.step_of(name), new.step_of(name)) and old.step_of(name) > 0  # type: ignore[arg-type, operator]
        for kind in KINDS:
            was, now = (torch.full((torch.Size(shape).numel(),), torch.nan) for _ in range(2))
            old.copy(kind, name, 0, was)
            new.copy(kind, name, 0, now)
            assert torch.equal(was, now) and (was.any() or name.endswith("k_proj.bias")), (name, kind)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.rig.learner_samples import save_tiny_policy

    folder = tmp_path_factory.mktemp("anywhere")
    save_tiny_policy(folder / "model")
    save_other(folder / "model", folder / "other")
    for number in range(NUM_ROUNDS):
        for num_ranks in (1, 2):
            if any(True for _ in tasks(number, num_ranks)):
                launch(folder, num_ranks, __file__, str(number))
    return folder


def save_other(model: Path, other: Path) -> None:
    """The same shapes with other weights, also of what is frozen."""
    shutil.copytree(model, other)
    file = other / "model.safetensors"
    weights = {name: weight + 0.5 for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})


@pytest.mark.timeout(1100)
@pytest.mark.parametrize("way", WAYS)
def test_each_way_ends_as_one_plain_rank_does(results: Path, way: str) -> None:
    for number in range(NUM_ROUNDS):
        expected_norms, norms = (
            json.loads((results / each / "float32" / f"norms-{number}.json").read_text()) for each in (CALM, way)
        )
        for was, now in zip(expected_norms, norms, strict=True):
            assert now == pytest.approx(was, rel=1e-4)
        for name in ("frozen", "binned"):
            expected, found = (
                load_file(results / each / "float32" / f"{name}-{number}.safetensors") for each in (CALM, way)
            )
            assert found.keys() == expected.keys()
            for parameter, value in found.items():
                torch.testing.assert_close(
                    value, expected[parameter], rtol=1e-4, atol=4e-5, msg=lambda m, n=parameter: f"{n}: {m}"
                )


@pytest.mark.parametrize("way", WAYS)
def test_in_bfloat16_too_within_its_rounding(results: Path, way: str) -> None:
    start = load_file(results / "model" / "model.safetensors")
    for number in range(NUM_ROUNDS):
        expected_norms, norms = (
            json.loads((results / each / "bfloat16" / f"norms-{number}.json").read_text()) for each in (CALM, way)
        )
        for was, now in zip(expected_norms, norms, strict=True):
            assert now == pytest.approx(was, rel=0.03)
    expected, found = (
        load_file(results / each / "bfloat16" / f"frozen-{NUM_ROUNDS - 1}.safetensors") for each in (CALM, way)
    )
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        if not name.endswith("k_proj.bias"):  # its gradient is rounding, which Adam makes steps of
            moved = (expected[name].float() - start[name]).norm()
            assert (value.float() - expected[name].float()).norm() <= 0.1 * moved + 2**-9 * start[name].norm(), name


def test_steps_after_each_resume_move_the_weights(results: Path) -> None:
    for before, after in pairwise(range(NUM_ROUNDS)):
        was, now = (
            load_file(results / CALM / "float32" / f"frozen-{number}.safetensors") for number in (before, after)
        )
        moved = [name for name in was if not torch.equal(was[name], now[name])]
        assert len(moved) >= 13 and len(moved) < len(was)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), int(sys.argv[2]))
    end_process(0)  # as a learner: gloo's threads may outlive the group
