"""Two ranks compute what one computes, at every ZeRO stage, in float32 and bfloat16; checkpoints continue exactly.

Run as a script (`torchrun ... test_engine_ranks.py FOLDER`) this file is the worker: for each stage it makes actor and
critic engines in one process and takes three steps over the same seven trajectories, split in micro-batches, with a
dummy on each rank while the other one works.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.paths import ROOT
from vcppo.common.errors import VcppoError
from vcppo.common.process.end_process import end_process

STAGES = {1: (0, 3), 2: (0, 1, 2, 3)}  # by number of ranks
BFLOAT16_STAGES = {1: (0,), 2: (0, 2, 3)}  # 0 is 1 there
STEPS = 3
TOKEN_BUDGET = 36
FROZEN = [r"layers\.0\.", "embed_tokens"]


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path) -> None:
    from vcppo.learner.engine.deepspeed_engine import init_distributed, num_ranks, shutdown_distributed

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    output = folder / f"ranks_{num_ranks()}"
    output.mkdir(exist_ok=True)
    check_collectives()
    for stage in STAGES[num_ranks()]:
        train(folder, output, stage)
        check_wire(folder, stage)
    for stage in BFLOAT16_STAGES[num_ranks()]:
        train_bfloat16(folder, output, stage)
    shutdown_distributed()


def check_collectives() -> None:
    from vcppo.learner.engine.deepspeed_engine import broadcast_bytes, broadcast_object, num_ranks, rank, sum_over_ranks

    assert broadcast_bytes(b"raw \x00 bytes" if rank() == 0 else None) == b"raw \x00 bytes"
    assert broadcast_bytes(b"" if rank() == 0 else None) == b""
    value = {"step": 3, "ids": ["a", "b"], "none": None}
    assert broadcast_object(value if rank() == 0 else None) == value
    mine = np.zeros(num_ranks() + 1)
    mine[rank()] = rank() + 1.0
    assert sum_over_ranks(mine).tolist() == [*range(1, num_ranks() + 1), 0.0]


def train(folder: Path, output: Path, stage: int) -> None:
    """Three steps of actor and critic; rank 0 writes norms and final weights."""
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, num_ranks, rank
    from vcppo.learner.models.models import load_critic, load_policy

    options = EngineOptions(zero_stage=stage, max_grad_norm=0.5)  # below the norms seen: clipping is on
    tied, untied = folder / "tied", folder / "untied"
    actor = TrainEngine(load_policy(tied, chunk_tokens=4, chunk_vocab=12), learning_rate=1e-3, options=options)
    other = TrainEngine(load_policy(untied), learning_rate=1e-3, options=options)
    critic = TrainEngine(load_critic(tied), learning_rate=1e-3, options=options)
    frozen, binned = make_frozen(tied, options), make_binned(tied, options)
    engines = {"actor": actor, "other": other, "critic": critic, "frozen": frozen, "binned": binned}
    norms: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(STEPS):
        for name, norm in one_step(engines).items():
            norms[name].append(norm)
    check_checkpoint(folder / f"checkpoint_frozen_{num_ranks()}_{stage}", frozen, "frozen")
    check_checkpoint(folder / f"checkpoint_binned_{num_ranks()}_{stage}", binned, "binned")
    check_checkpoint(folder / f"checkpoint_{num_ranks()}_{stage}", actor)
    check_reference(folder / f"reference_{num_ranks()}_{stage}", actor, load_policy(tied))
    module = load_policy(tied, chunk_tokens=4, chunk_vocab=12)
    check_config_counts(folder / f"checkpoint_{num_ranks()}_{stage}", actor, module)
    for name, engine in engines.items():
        metadata = [(info.name, info.shape) for info in engine.weight_metadata()]
        assert metadata == [(n, tuple(t.shape)) for n, t in engine.weight_source()]
        state = engine.gather_full_state_dict()
        assert bool(state) == (rank() == 0)
        if rank() == 0:
            save_file(state, output / f"{name}_{stage}.safetensors")
    if rank() == 0:
        (output / f"norms_{stage}.json").write_text(json.dumps(norms))


def make_frozen(folder: Path, options: Any) -> Any:
    """A policy of which only the upper layer and what is above it are trained."""
    from vcppo.learner.engine.deepspeed_engine import TrainEngine
    from vcppo.learner.models.freezing import freeze
    from vcppo.learner.models.models import load_policy

    policy = load_policy(folder, dtype=options.torch_dtype, chunk_tokens=4, chunk_vocab=12)
    freeze(policy.hf_model, FROZEN, "rl.actor_freeze")
    return TrainEngine(policy, learning_rate=1e-3, options=options)


def make_binned(folder: Path, options: Any) -> Any:
    """A critic with a head of bins and a frozen layer, which sees log-probs."""
    from vcppo.learner.engine.deepspeed_engine import TrainEngine
    from vcppo.learner.models.freezing import freeze
    from vcppo.learner.models.models import load_critic

    critic = load_critic(folder, bins=bins(), sees_log_probs=True)
    freeze(critic.hf_model, FROZEN, "critic.freeze")
    return TrainEngine(critic, learning_rate=1e-3, options=options)


def bins() -> Any:
    from vcppo.learner.algorithm.value_bins import ValueBins

    return ValueBins(-1.0, 1.0, 21, 0.75)


def check_wire(folder: Path, stage: int) -> None:
    """Experts that transformers has fused come out, on every rank, name by name and byte by byte as in the file."""
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine
    from vcppo.learner.models.models import load_policy

    engine = TrainEngine(load_policy(folder / "moe"), learning_rate=1e-3, options=EngineOptions(zero_stage=stage))
    stored = load_file(folder / "moe" / "model.safetensors")
    metadata = [(info.name, info.shape) for info in engine.weight_metadata()]
    seen = []
    for name, tensor in engine.weight_source():
        assert torch.equal(tensor, stored[name]), name
        seen.append((name, tuple(tensor.shape)))
    assert seen == metadata
    assert {name for name, _ in seen} == set(stored)


def train_bfloat16(folder: Path, output: Path, stage: int) -> None:
    """Three steps of an actor with bfloat16 weights; rank 0 writes norms and final weights."""
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, rank
    from vcppo.learner.models.models import load_policy

    options = EngineOptions(zero_stage=stage, dtype="bfloat16", max_grad_norm=0.5)
    actor = TrainEngine(load_policy(folder / "tied", dtype=options.torch_dtype), learning_rate=1e-3, options=options)
    norms = [one_step({"actor": actor})["actor"] for _ in range(STEPS)]
    frozen = make_frozen(folder / "tied", options)
    for _ in range(STEPS):
        one_step({"frozen": frozen})
    check_checkpoint(folder / f"checkpoint_frozen_bfloat16_{torch.distributed.get_world_size()}_{stage}", frozen,
                     "frozen")  # fmt: skip
    sent = {name: tensor.clone() for name, tensor in frozen.weight_source()}
    if rank() == 0:
        save_file(sent, output / f"frozen_bfloat16_{stage}.safetensors")
    checkpoint = folder / f"checkpoint_bfloat16_{torch.distributed.get_world_size()}_{stage}"
    check_checkpoint(checkpoint, actor)
    check_config_counts(checkpoint, actor, load_policy(folder / "tied", dtype=options.torch_dtype))
    state = actor.gather_full_state_dict()
    if rank() == 0:
        save_file(state, output / f"bfloat16_{stage}.safetensors")
        (output / f"norms_bfloat16_{stage}.json").write_text(json.dumps(norms))


def one_step(engines: dict[str, Any]) -> dict[str, float]:
    """One optimizer step of each engine over the whole batch; the norms before clipping.

    ``other`` has an objective by sequence and an entropy bonus.
    """
    from tests.unit.rig.learner_samples import mixed_batch
    from vcppo.learner.algorithm.losses import policy_loss, value_loss
    from vcppo.learner.algorithm.value_bins import categorical_value_loss
    from vcppo.learner.batching.packing import action_cu_seqlens, action_slots, build_packed, plan_micro_batches

    batch = mixed_batch(seed=3)
    cu = action_cu_seqlens(batch)
    num_tokens = int(cu[-1])
    advantages = torch.from_numpy(np.random.default_rng(1).normal(size=num_tokens).astype(np.float32))
    plan = plan_micro_batches([t.num_tokens for t in batch], TOKEN_BUDGET, torch.distributed.get_world_size())
    if len(plan) > 1:  # each rank has a dummy while the other one works
        plan = [[[], *plan[0]], [*plan[1], []]]
    for group in plan[torch.distributed.get_rank()]:
        packed = build_packed(batch, group)
        targets = advantages[action_slots(packed, cu)]
        for name, engine in engines.items():
            if name == "binned":
                output = engine(packed)
                loss = categorical_value_loss(output.logits, targets, bins(), num_tokens=num_tokens)
            elif name == "critic":
                loss = value_loss(engine(packed).values, targets, num_tokens=num_tokens)
            else:
                old = engine.infer(packed, 0.9).log_probs - 0.1
                log_probs, entropy = engine(packed, 0.9, name == "other")
                loss = policy_loss(
                    log_probs, old, targets, num_tokens=num_tokens, clip_low=0.2, clip_high=0.2,
                    objective="gspo" if name == "other" else "ppo", action_cu_seqlens=packed.action_cu_seqlens,
                )  # fmt: skip
                if name == "other":  # backward goes through both outputs of the head
                    loss = loss._replace(value=loss.value - 0.5 * entropy.sum() / num_tokens)
            engine.accumulate(loss.value)
    return {name: engine.step() for name, engine in engines.items()}


def check_checkpoint(folder: Path, actor: Any, name: str = "actor") -> None:
    """After load, the next steps are those that followed save, to the last bit: weights, moments and step counts."""
    actor.save(folder)
    following = [one_step({name: actor}) for _ in range(2)]
    actor.load(folder)
    assert [one_step({name: actor}) for _ in range(2)] == following
    actor.load(folder)
    with pytest.raises(VcppoError, match=r"checkpoint .*nowhere .*must come from the same model"):
        actor.load(folder / "nowhere")


def check_reference(folder: Path, actor: Any, model: Any) -> None:
    """On every rank: the actor's weights at the steps that are due, still after more updates, and from a checkpoint."""
    from vcppo.learner.engine.deepspeed_engine import barrier, rank
    from vcppo.learner.engine.reference import Reference
    from vcppo.learner.models.wire_weights import WireWeights, own_weights

    def weights(module: Any) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in own_weights(module.hf_model).items()}

    reference, start = Reference(model, 2), weights(model)
    reference.after(3, actor)
    assert reference.version == 0 and all(torch.equal(start[n], t) for n, t in weights(model).items())
    then = {name: tensor.clone() for name, tensor in actor.weight_source()}
    reference.after(4, actor)
    one_step({"actor": actor})
    found = dict(WireWeights(model.hf_model).walk(lambda _: nullcontext()))
    assert reference.version == 4
    assert all(torch.equal(then[name], tensor) for name, tensor in found.items()) and found.keys() == then.keys()
    assert not all(torch.equal(then[name], tensor) for name, tensor in actor.weight_source())
    folder.mkdir(exist_ok=True)
    if rank() == 0:
        reference.save(folder)
    barrier()
    kept = weights(model)
    with torch.no_grad():
        for tensor in own_weights(model.hf_model).values():
            tensor.zero_()
    resumed = Reference(model, 2)
    resumed.load(folder, reference.numbers())
    assert resumed.version == 4 and all(torch.equal(kept[n], t) for n, t in weights(model).items())


def check_config_counts(folder: Path, actor: Any, module: Any) -> None:
    """A resumed engine steps with its own settings; the moments and step counts are the checkpoint's."""
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine

    now = EngineOptions(
        zero_stage=actor.options.zero_stage, dtype=actor.options.dtype,
        weight_decay=0.1, adam_beta2=0.9, max_grad_norm=0.05, schedule="cosine", total_steps=12,
    )  # fmt: skip
    resumed = TrainEngine(module, learning_rate=2e-4, options=now)
    resumed.load(folder)
    rate = 2e-4 * 0.5 * (1 + np.cos(np.pi * STEPS / 12))
    assert resumed.learning_rate == pytest.approx(rate)
    found = one_step({"actor": resumed})
    assert resumed.learning_rate == pytest.approx(2e-4 * 0.5 * (1 + np.cos(np.pi * (STEPS + 1) / 12)))

    actor.load(folder)
    loaded = actor.options
    optimizer = actor._engine.optimizer
    groups = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(lr=rate, weight_decay=0.1, betas=(0.9, 0.9))
    actor.options = now  # what clips at stage 0
    if hasattr(optimizer, "clip_grad"):
        optimizer.clip_grad = 0.05
    assert one_step({"actor": actor}) == found
    mine = {name: tensor.clone() for name, tensor in actor.weight_source()}
    assert all(torch.equal(mine[name], tensor) for name, tensor in resumed.weight_source())

    actor.options = loaded
    actor.load(folder)
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        assert {**group, "params": 0} == {**before, "params": 0}


# --- the tests --------------------------------------------------------------------------------------------------------


def launch(
    folder: Path, num_ranks: int, script: str = __file__, *arguments: str, deadline_seconds: float = 500
) -> None:
    """A script's worker under torchrun, or as a plain process when there is one rank."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [sys.executable, *(torchrun if num_ranks > 1 else []), script, str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=deadline_seconds, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.rig.architectures import save_tiny
    from tests.unit.rig.learner_samples import save_tiny_policy

    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_policy(folder / "tied")
    save_tiny_policy(folder / "untied", tied=False)
    save_tiny("mixtral", folder / "moe")
    for num_ranks in (1, 2):
        launch(folder, num_ranks)
    return folder


@pytest.mark.timeout(1100)
@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(ranks, stage) for ranks, stages in STAGES.items() for stage in stages]
)
def test_any_ranks_and_stage_train_like_one_plain_rank(results: Path, num_ranks: int, stage: int) -> None:
    reference, got = results / "ranks_1", results / f"ranks_{num_ranks}"
    expected_norms = json.loads((reference / "norms_0.json").read_text())
    norms = json.loads((got / f"norms_{stage}.json").read_text())
    for name in ("actor", "other", "critic", "frozen", "binned"):
        # Norms before clipping carry the gradients' scale, which Adam's steps alone would hide.
        assert norms[name] == pytest.approx(expected_norms[name], rel=1e-4)
        assert min(norms[name]) > 0.5 or name in ("frozen", "binned"), "clipping was never active"
        expected = load_file(reference / f"{name}_0.safetensors")
        weights = load_file(got / f"{name}_{stage}.safetensors")
        assert weights.keys() == expected.keys()
        for parameter, value in weights.items():
            torch.testing.assert_close(
                value, expected[parameter], rtol=1e-4, atol=2e-5, msg=lambda m, n=parameter: f"{n}: {m}"
            )


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(ranks, stage) for ranks, stages in BFLOAT16_STAGES.items() for stage in stages]
)
def test_bfloat16_too_within_its_rounding(results: Path, num_ranks: int, stage: int) -> None:
    """Against float32: each activation and each micro-batch's gradient is rounded to 8 bits, nothing else is."""
    got = results / f"ranks_{num_ranks}"
    expected_norms = json.loads((results / "ranks_1" / "norms_0.json").read_text())["actor"]
    assert json.loads((got / f"norms_bfloat16_{stage}.json").read_text()) == pytest.approx(expected_norms, rel=0.03)
    before = load_file(results / "tied" / "model.safetensors")
    expected = load_file(results / "ranks_1" / "actor_0.safetensors")
    for name, value in load_file(got / f"bfloat16_{stage}.safetensors").items():
        assert value.dtype == torch.bfloat16
        if name.endswith("k_proj.bias"):
            continue  # softmax does not see it: its gradient is rounding, which Adam makes steps of
        way = (expected[name] - before[name]).norm()
        assert (value.float() - expected[name]).norm() < 0.3 * way + 2**-9 * expected[name].norm(), name


def test_training_moved_every_weight(results: Path) -> None:
    before, after = (
        load_file(results / "tied" / "model.safetensors"),
        load_file(results / "ranks_1" / "actor_0.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(ranks, stage) for ranks, stages in STAGES.items() for stage in stages]
)
def test_what_is_frozen_is_as_it_was_and_the_rest_moves(results: Path, num_ranks: int, stage: int) -> None:
    before = load_file(results / "tied" / "model.safetensors")
    got = results / f"ranks_{num_ranks}"
    files = [got / f"frozen_{stage}.safetensors", got / f"binned_{stage}.safetensors"]
    if stage in BFLOAT16_STAGES[num_ranks]:
        files.append(got / f"frozen_bfloat16_{stage}.safetensors")
    for file in files:
        weights = load_file(file)
        assert set(before) <= set(weights), "what is frozen is gathered and sent too"
        for name, old in before.items():
            is_same = torch.equal(weights[name], old.to(weights[name].dtype))
            assert is_same == any(re.search(pattern, name) for pattern in FROZEN), (file.name, name)
    learnt = load_file(got / f"binned_{stage}.safetensors")["surprise_input.weight"]
    assert (learnt.abs().amax(0) > 0).all(), "a new input starts at 0 and learns"


class Intruder:
    """Unpickling it runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vcppo.learner.engine.deepspeed_engine import _load_weights_only

    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # an engine made in this process sets it
    torch.save({"module": Intruder(tmp_path / "ran")}, tmp_path / "states.pt")
    deepspeed_side = SimpleNamespace()
    _load_weights_only(deepspeed_side)
    with pytest.raises(Exception, match="Weights only load failed"):
        deepspeed_side.load(str(tmp_path / "states.pt"))
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "states.pt", weights_only=False)  # the file is loaded, so to speak
    assert (tmp_path / "ran").exists()


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
    end_process(0)  # as a learner: gloo's threads may outlive the group, and abort a process that is torn down
