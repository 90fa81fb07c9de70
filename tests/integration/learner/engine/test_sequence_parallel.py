"""Two ranks that share each pack compute what one rank computes: actor, critic and value pretraining, at every stage.
A checkpoint of either goes on at the other.

Run as a script (`torchrun ... test_sequence_parallel.py FOLDER`) this is the worker. Two ranks have half the tokens
of a micro-batch each, so their packs are those of one rank, and the longest sequence fits on neither alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.learner.engine.test_engine_ranks import launch
from vcppo.common.process.end_process import end_process

PACK_TOKENS = 48
CASES = {  # name: ZeRO stage, type, model
    "stage_0": (0, "float32", "tied"),
    "stage_1": (1, "float32", "tied"),
    "stage_2": (2, "float32", "tied"),
    "stage_3": (3, "float32", "tied"),
    "one_key_head": (0, "float32", "one_key_head"),
    "window": (0, "float32", "window"),
    "bfloat16": (0, "bfloat16", "tied"),
    "bfloat16_stage_3": (3, "bfloat16", "tied"),
    "log_probs": (1, "float32", "tied"),
    "adapters": (0, "float32", "tied"),
    "recomputed": (0, "float32", "tied"),
}
MORE: dict[str, dict[str, Any]] = {  # settings of a case
    "log_probs": {"critic": {"sees_log_probs": True}},
    "adapters": {"lora": {"rank": 4}},
}
LEARNER = {"recomputed": {"gradient_checkpointing": True, "gradient_checkpointing_every": 2}}
SAVED = ("stage_0", "bfloat16_stage_3", "stage_3")  # these go on from the other number of ranks' checkpoint
NOBODY: Any = None  # to send weights to
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "one_key_head": {"num_key_value_heads": 1},
    "window": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
}


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path, resumes: bool) -> None:
    from vcppo.learner.engine.deepspeed_engine import init_distributed, num_ranks, shutdown_distributed
    from vcppo.learner.engine.distributed import share_sequences

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    share_sequences(num_ranks())
    output = folder / f"ranks_{num_ranks()}"
    output.mkdir(exist_ok=True)
    if resumes:
        for name in SAVED:
            go_on(folder, output, name)
    else:
        for name in CASES:
            train(folder, output, name)
        pretrain(folder, output)
    shutdown_distributed()


def config_of(folder: Path, name: str) -> Any:
    from vcppo.common.config import VcppoConfig
    from vcppo.learner.engine.deepspeed_engine import num_ranks

    stage, dtype, model = CASES[name]
    return VcppoConfig.model_validate(
        {
            "run": {"name": "r", "folder": str(folder)},
            "model": {"path": str(folder / model), "dtype": dtype},
            "generator": {"max_model_len": PACK_TOKENS},
            "sampling": {"temperature": 0.8, "max_response_tokens": 24},
            "rl": {"actor_learning_rate": 1e-3, "critic_learning_rate": 1e-3},
            "algorithm": {"num_mini_batches": 2, "lambda_actor": 0.95, "dual_clip": 3.0, "entropy_target": 2.0},
            "value_pretraining": {"batch_size": 6, "learning_rate": 1e-3, "num_trajectories": 96, "max_steps": 2,
                                  "eval_every": 1},
            "learner": {
                "num_ranks": num_ranks(), "zero_stage": stage, "sequence_parallel_size": num_ranks(),
                "micro_batch_tokens": PACK_TOKENS // num_ranks(), **LEARNER.get(name, {}),
            },
            **MORE.get(name, {}),
        }
    )  # fmt: skip


def share_of(config: Any) -> Any:
    from vcppo.learner.batching.batch import Share
    from vcppo.learner.engine.deepspeed_engine import rank

    learner = config.learner
    return Share(rank(), learner.num_ranks, learner.micro_batch_tokens, learner.sequence_parallel_size)


def train(folder: Path, output: Path, name: str) -> None:
    """Two steps of the loop and, of some cases, a third behind a checkpoint; rank 0 writes what came of them."""
    from vcppo.learner.batching.batch import Packer
    from vcppo.learner.rl.loop import RlLoop

    config = config_of(folder, name)
    loop = make_loop(config)
    actor, critic = loop.models.actor, loop.models.critic
    numbers: dict[str, Any] = {"packs": len(Packer(batch_of(), loop.share).whole)}
    for step in range(2):
        numbers |= one_step(loop, step)
    write(output, name, loop, numbers)
    if name in SAVED:
        actor.save(output / f"{name}_saved" / "actor")
        critic.save(output / f"{name}_saved" / "critic")
        fresh = RlLoop(config, loop.models, loop.share, NOBODY, None)  # what it weighs entropy by begins anew
        write(output, f"{name}_third", fresh, one_step(fresh, 2))


def go_on(folder: Path, output: Path, name: str) -> None:
    """The third step, from the checkpoint of the other number of ranks."""
    from vcppo.learner.engine.deepspeed_engine import num_ranks

    loop = make_loop(config_of(folder, name))
    saved = folder / f"ranks_{3 - num_ranks()}" / f"{name}_saved"
    loop.models.actor.load(saved / "actor")
    loop.models.critic.load(saved / "critic")
    write(output, f"{name}_resumed", loop, one_step(loop, 2))


def batch_of() -> Any:
    from tests.unit.rig.learner_samples import mixed_batch
    from vcppo.learner.batching.batch import Batch

    batch = Batch(mixed_batch(3, count=9), 0)
    assert max(batch.lengths) > PACK_TOKENS // 2  # on one rank of two it would not fit
    return batch


def make_loop(config: Any) -> Any:
    from vcppo.learner.critic_model.critic_engine import make_critic_engine
    from vcppo.learner.export import make_actor, make_policy
    from vcppo.learner.rl.loop import Models, RlLoop

    torch.manual_seed(0)  # adapters begin at random
    base = make_policy(config) if config.lora.rank is not None else None
    actor = make_actor(config, base)
    critic = make_critic_engine(config, "policy", 1e-3, "rl.critic_learning_rate", policy=base)
    return RlLoop(config, Models(actor, critic), share_of(config), NOBODY, None)


def one_step(loop: Any, step: int) -> dict[str, Any]:
    from vcppo.learner.rl.phases import Phases

    numbers: dict[str, Any] = {}
    estimates, stats = loop.train(batch_of(), Phases())
    for what in ("values", "last_values", "old_log_probs", "advantages", "value_targets", "entropy"):
        numbers[f"{what} {step}"] = getattr(estimates, what).tolist()
    numbers[f"norms {step}"] = [*stats.actor_grad_norms, *stats.critic_grad_norms]
    numbers[f"sums {step}"] = [stats.sums[key] for key in sorted(stats.sums)]
    numbers[f"by staleness {step}"] = stats.by_staleness.ravel().tolist()
    return numbers


def write(output: Path, name: str, loop: Any, numbers: dict[str, Any]) -> None:
    """Estimates, statistics, norms and weights."""
    from vcppo.learner.engine.deepspeed_engine import rank

    models = loop.models
    states = {"actor": models.actor.gather_full_state_dict(), "critic": models.critic.gather_full_state_dict()}
    if rank() == 0:
        (output / f"{name}.json").write_text(json.dumps(numbers))
        for model, state in states.items():
            save_file(state, output / f"{name}_{model}.safetensors")


def pretrain(folder: Path, output: Path) -> None:
    """The critic's trainer on recorded responses, with its measurements."""
    from tests.unit.rig.learner_samples import mixed_batch
    from vcppo.learner.engine.deepspeed_engine import rank
    from vcppo.learner.value_pretraining.critic_pretrainer import CriticPretrainer, Part

    config = config_of(folder, "stage_0")
    train_part, held_out = (Part.of(mixed_batch(seed, count=12), config) for seed in (1, 2))
    metrics = Written()
    trainer = CriticPretrainer(config, share_of(config), train_part, held_out, metrics)  # type: ignore[arg-type]
    trainer.run(lambda engine: None, lambda: False)
    state = trainer.engine.gather_full_state_dict()
    if rank() == 0:
        (output / "pretraining.json").write_text(json.dumps(metrics.rows))
        save_file(state, output / "pretraining.safetensors")


class Written:
    """Takes the metrics' place."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.rows[str(step)] = [value for value in values.values() if isinstance(value, float)]


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ranks_1 and ranks_2."""
    from tests.unit.rig.learner_samples import save_tiny_policy

    folder = tmp_path_factory.mktemp("sequence_parallel")
    for name, changes in MODELS.items():
        save_tiny_policy(folder / name, **changes)
    for num_ranks in (1, 2):
        launch(folder, num_ranks, __file__, deadline_seconds=280)
    for num_ranks in (1, 2):
        launch(folder, num_ranks, __file__, "resumes", deadline_seconds=280)
    return folder


def both(results: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = (json.loads((results / f"ranks_{n}" / f"{name}.json").read_text()) for n in (1, 2))
    assert one.keys() == two.keys()
    return one, two


pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("name", CASES)
def test_a_pack_on_two_ranks_trains_as_one_on_one(results: Path, name: str) -> None:
    one, two = both(results, name)
    assert one["packs"] == two["packs"] > 1
    check_same(results, name, (1, name), (2, name))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_recomputed_layer_trades_again_and_changes_nothing(results: Path, num_ranks: int) -> None:
    """The first of two layers; its attention asks all ranks a second time, in backward."""
    check_same(results, "stage_0", (num_ranks, "stage_0"), (num_ranks, "recomputed"))


@pytest.mark.parametrize("name", SAVED)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_checkpoint_goes_on_with_packs_of_another_number_of_ranks(results: Path, name: str, num_ranks: int) -> None:
    """Against the ranks that saved it and went on."""
    check_same(results, name, (3 - num_ranks, f"{name}_third"), (num_ranks, f"{name}_resumed"))


def check_same(results: Path, case: str, expected: tuple[int, str], found: tuple[int, str]) -> None:
    """All numbers and weights, to rounding; (ranks, name) of each."""
    rounding = 2e-5 if CASES[case][1] == "float32" else 0.1
    files = [results / f"ranks_{ranks}" / name for ranks, name in (expected, found)]
    first, second = (json.loads(Path(f"{file}.json").read_text()) for file in files)
    for what, values in first.items():
        largest = max(1.0, float(np.abs(values).max()))
        np.testing.assert_allclose(second[what], values, rtol=rounding, atol=rounding * largest, err_msg=what)
    for model in ("actor", "critic"):
        weights, others = (load_file(f"{file}_{model}.safetensors") for file in files)
        assert weights.keys() == others.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(others[key].float(), tensor.float(), rtol=0, atol=rounding)


def test_value_pretraining_is_the_same(results: Path) -> None:
    one, two = both(results, "pretraining")
    assert len(one) == 3
    for step, expected in one.items():
        assert two[step] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    first, second = (load_file(results / f"ranks_{n}" / "pretraining.safetensors") for n in (1, 2))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, rtol=0, atol=2e-5)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), "resumes" in sys.argv[2:])
    end_process(0)
