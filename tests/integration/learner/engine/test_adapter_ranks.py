"""Two DeepSpeed engines over one frozen base: ZeRO 0 to 2, two ranks as one, checkpoints of adapters alone.

Run as a script (`torchrun ... test_adapter_ranks.py FOLDER`) this file is the worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.learner.engine.test_engine_ranks import STEPS, bins, check_checkpoint, one_step
from tests.paths import ROOT
from vcppo.common.process.end_process import end_process

CASES = {1: (("float32", 0), ("bfloat16", 0)), 2: tuple((d, s) for d in ("float32", "bfloat16") for s in (0, 1, 2))}


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path) -> None:
    from vcppo.learner.engine.deepspeed_engine import init_distributed, num_ranks, shutdown_distributed

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    for dtype, stage in CASES[num_ranks()]:
        train(folder, dtype, stage)
    shutdown_distributed()


def train(folder: Path, dtype: str, stage: int) -> None:
    """Three steps of actor and critic; rank 0 writes what generators would get, and what a checkpoint holds."""
    from vcppo.common.config import LoraConfig
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, num_ranks, rank
    from vcppo.learner.engine.reference import Reference
    from vcppo.learner.models.adapters import add_adapters, share
    from vcppo.learner.models.models import PolicyModel, critic_over, load_policy

    options = EngineOptions(zero_stage=stage, dtype=dtype, max_grad_norm=0.5)
    torch.manual_seed(0)
    base = load_policy(folder / "policy", dtype=options.torch_dtype, chunk_tokens=4, chunk_vocab=12)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}

    def policy() -> Any:
        model = share(base.hf_model)
        add_adapters(model, LoraConfig(rank=4))
        return PolicyModel(model, chunk_tokens=4, chunk_vocab=12)

    actor = TrainEngine(policy(), learning_rate=1e-2, options=options)
    critics: dict[str, Any] = {
        "critic": critic_over(base),
        "binned": critic_over(base, bins=bins(), sees_log_probs=True),
    }
    for name, critic in critics.items():
        add_adapters(critic.hf_model, LoraConfig(rank=4))
        critics[name] = TrainEngine(critic, learning_rate=1e-2, options=options)
    engines = {"actor": actor} | critics
    reference = Reference(policy(), refresh_steps=2)
    for step in range(1, STEPS + 1):
        one_step(engines)
        if step == 2:
            reference.after(step, actor)
            at_two = {name: tensor.clone() for name, tensor in actor.weight_source()}
    for name, engine in engines.items():
        kept = folder / f"checkpoint_{name}_{dtype}_{num_ranks()}_{stage}"
        check_checkpoint(kept, engine, name)
        check_holds_adapters_alone(kept, engine)
    check_reference(folder / f"reference_{dtype}_{num_ranks()}_{stage}", reference, Reference(policy(), 2), at_two)
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, before[name]), f"{name} of the frozen base has changed"
    sent = {name: tensor.clone() for name, tensor in actor.weight_source()}
    metadata = [(info.name, info.shape, info.dtype) for info in actor.weight_metadata()]
    assert metadata == [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sent.items()]
    gathered = actor.gather_full_state_dict()
    assert bool(gathered) == (rank() == 0) and all(
        torch.equal(gathered[name], t) for name, t in sent.items() if gathered
    )
    if rank() == 0:
        values = {name: each.gather_full_state_dict() for name, each in critics.items()}
        flat = {f"{name}.{key}": tensor for name, state in values.items() for key, tensor in state.items()}
        save_file(sent | flat, folder / f"{dtype}_{num_ranks()}_{stage}.safetensors")
    else:
        for each in critics.values():
            each.gather_full_state_dict()
    if num_ranks() > 1:  # what one rank has written, at another stage
        actor.load(folder / f"checkpoint_actor_{dtype}_1_0")
        expected = load_file(folder / f"{dtype}_1_0.safetensors")
        assert all(torch.equal(expected[name], tensor) for name, tensor in actor.weight_source())


def check_holds_adapters_alone(folder: Path, engine: Any) -> None:
    """Of numbers: what is trained and Adam's moments; in bfloat16 the masters beside them."""
    from vcppo.learner.models.merged_weights import trained_with_adapters

    trained = sum(p.numel() for p in trained_with_adapters(engine.module.hf_model).values())
    held = sum(
        tensor.numel()
        for file in folder.rglob("*.pt")
        for tensor in tensors_in(engine._engine.checkpoint_engine.load(str(file), "cpu"))
        if tensor.is_floating_point()
    )
    assert 3 * trained <= held < 4.5 * trained, (held, trained)


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [each for inner in value.values() for each in tensors_in(inner)]
    if isinstance(value, list | tuple):
        return [each for inner in value for each in tensors_in(inner)]
    return []


def check_reference(folder: Path, reference: Any, resumed: Any, expected: dict[str, torch.Tensor]) -> None:
    from contextlib import nullcontext

    from vcppo.learner.engine.deepspeed_engine import barrier, rank
    from vcppo.learner.models.wire_weights import WireWeights

    if rank() == 0:
        folder.mkdir()
        reference.save(folder)
        assert (folder / "reference.safetensors").stat().st_size < 40_000  # the base has 28,000 numbers
    barrier()
    resumed.load(folder, reference.numbers())
    for each in (reference, resumed):
        found = dict(WireWeights(each.model.hf_model).walk(lambda _: nullcontext()))
        assert each.version == 2 and all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.rig.learner_samples import save_tiny_policy

    folder = tmp_path_factory.mktemp("adapters")
    save_tiny_policy(folder / "policy", hidden_size=64, intermediate_size=160)
    for num_ranks in CASES:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        command = [sys.executable, *(torchrun if num_ranks > 1 else []), str(Path(__file__)), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
    return folder


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("dtype", "stage"), CASES[2])
def test_two_ranks_train_adapters_as_one_does(results: Path, dtype: str, stage: int) -> None:
    one, two = load_file(results / f"{dtype}_1_0.safetensors"), load_file(results / f"{dtype}_2_{stage}.safetensors")
    base = load_file(results / "policy" / "model.safetensors")
    assert one.keys() == two.keys()
    moved = [name for name in base if not torch.equal(one[name], base[name].to(one[name].dtype))]
    assert moved and all(name.endswith("_proj.weight") for name in moved)
    assert (one["critic.score.weight"] != 0).all() and (one["binned.surprise_input.weight"] != 0).any()
    for name, tensor in one.items():
        if dtype == "float32":
            close = {"rtol": 1e-4, "atol": 2e-4}
            torch.testing.assert_close(two[name], tensor, **close, msg=lambda m, n=name: f"{n}: {m}")
        elif ".lora_" not in name:  # the merged weights have what the adapters came to
            way = (tensor.float() - base.get(name.removeprefix("critic.").removeprefix("binned."), 0)).norm()
            off = (two[name].float() - tensor.float()).norm()
            assert off <= 0.3 * way + 2.0**-9 * tensor.float().norm(), (name, off, way)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
    end_process(0)
