"""More passes of the critic: those of a plain loop; held-out prompts stay out; a crash changes nothing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2ForSequenceClassification

from tests.unit.rig.learner_samples import save_tiny_policy, tiny_config, trajectory
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.algorithm.gae import monte_carlo_returns
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.batching.packing import split_mini_batches
from vcppo.learner.critic_training.lesson import Lesson, Study, draw_held_out
from vcppo.learner.critic_training.passes import FILE, CriticPasses
from vcppo.learner.models.models import load_critic

RATE, VALUE_CLIP = 1e-2, 0.05


class PlainEngine:
    """A `TrainEngine` without DeepSpeed: torch.s SGD on one process. Counts its steps."""

    device = torch.device("cpu")

    def __init__(self, folder: Path, sees_log_probs: bool = False) -> None:
        torch.manual_seed(3)
        self.module = load_critic(folder, init="policy", sees_log_probs=sees_log_probs)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=RATE)
        self.num_steps = 0

    def forward(self, *args: Any) -> Any:
        return self.module(*args)

    @torch.no_grad()
    def infer(self, *args: Any) -> Any:
        return self.module(*args)

    def accumulate(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> float:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_steps += 1
        return 1.0


class Reference(PlainEngine):
    """The same weights in Hugging Face's own model, with its own attention."""

    def __init__(self, folder: Path, sees_log_probs: bool = False) -> None:
        super().__init__(folder, sees_log_probs)
        model: Any = Qwen2ForSequenceClassification(tiny_config(num_labels=1, pad_token_id=0)).float()
        model.load_state_dict(self.module.hf_model.state_dict(), strict=not sees_log_probs)
        model.model.embed_tokens.padding_idx = None  # or token 0 would learn nothing
        if sees_log_probs:
            model.surprise_input = torch.nn.Linear(2, tiny_config().hidden_size, bias=False)
            torch.nn.init.zeros_(model.surprise_input.weight)
        self.module = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def values(self, t: Trajectory) -> Tensor:
        """``[T]`` V of the state that ends at each token."""
        model: Any = self.module
        tokens = np.concatenate([t.prompt_token_ids, t.response_token_ids]).astype(np.int64)
        embeddings = model.model.embed_tokens(torch.from_numpy(tokens))
        if hasattr(model, "surprise_input"):
            chosen = [0.0] * len(t.prompt_token_ids) + [
                -float(log_prob) if is_action else 0.0
                for log_prob, is_action in zip(t.behaviour_log_probs, t.action_mask, strict=True)
            ]
            features = torch.tensor([[nats / 3, float(nats > 2)] for nats in chosen])
            embeddings = embeddings + 20 * model.surprise_input(features)
        return model.score(model.model(inputs_embeds=embeddings[None]).last_hidden_state[0])[:, 0]


class Estimated:
    """Targets of a batch that nobody trained."""

    def __init__(self, batch: Batch) -> None:
        cu = batch.action_cu_seqlens
        rewards = np.zeros(batch.num_actions, np.float32)
        rewards[cu[1:] - 1] = batch.outcome_rewards
        self.values: NDArray[np.float32] = np.random.default_rng(5).normal(0, 0.1, batch.num_actions).astype(np.float32)
        self.returns = monte_carlo_returns(rewards, cu)
        self.value_targets = self.returns
        self.mask = np.ones(batch.num_actions, np.bool_)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def batch_of(version: int, prompts: int = 4, each: int = 2) -> Batch:
    rng = np.random.default_rng(100 + version)
    made = [
        trajectory(rng, f"p{version}-{i}", 3, int(rng.integers(2, 9)), tool_text=0.3, group=f"g{version}-{i // each}")
        for i in range(prompts * each)
    ]
    return Batch(made, version)


def config_of(**critic: object) -> VcppoConfig:
    tree = {"critic": critic, "algorithm": {"num_mini_batches": 2, "value_clip": VALUE_CLIP}, "rl": {"group_size": 2}}
    return VcppoConfig.model_validate({"model": {"path": "m"}, **tree})


def passes_of(folder: Path, engine: PlainEngine | None = None, **critic: object) -> tuple[CriticPasses, PlainEngine]:
    engine = engine or PlainEngine(folder)
    return CriticPasses(config_of(**critic), engine, Share(0, 1, 24)), engine  # type: ignore[arg-type]


def weights(engine: PlainEngine) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in engine.module.parameters()]


def plain_passes(engine: Reference, batches: list[Batch], numbers: range, left_out: Collection[str] = ()) -> None:
    """The same, literally: one unpadded response at a time, a sum over its actions, one step a mini-batch."""
    everyone = [(t, Estimated(b), b, i) for b in batches for i, t in enumerate(b.trajectories)]
    for number in numbers:
        seed = derive_seed(0, "critic_passes", batches[-1].version, number)
        for members in split_mini_batches(len(everyone), 2 * len(batches), seed):
            kept = [everyone[m] for m in members if everyone[m][0].group_id not in left_out]
            total, count = torch.zeros(()), sum(int(t.action_mask.sum()) for t, *_ in kept)
            for t, estimated, batch, i in kept:
                values = engine.values(t)
                begin = batch.action_cu_seqlens[i]
                for k, at in enumerate(np.flatnonzero(t.action_mask)):
                    value, old = values[len(t.prompt_token_ids) + at - 1], estimated.values[begin + k]
                    target = estimated.value_targets[begin + k]
                    clipped = old + torch.clamp(value - old, -VALUE_CLIP, VALUE_CLIP)
                    total = total + 0.5 * torch.maximum((value - target) ** 2, (clipped - target) ** 2)
            (total / max(1, count)).backward()
            engine.step()


def assert_alike(folder: Path, found: PlainEngine, expected: PlainEngine) -> None:
    """To rounding, by the way they have gone: the two models' attention adds up in another order."""
    untrained = PlainEngine(folder, hasattr(expected.module, "surprise_input"))
    start, one, other = (torch.cat([w.flatten() for w in weights(e)]) for e in (untrained, found, expected))
    moved = (other - start).norm()
    assert moved > 1e-3
    assert (one - other).norm() < 1e-4 * moved


@pytest.mark.parametrize("sees_log_probs", [False, True])
def test_passes_are_the_updates_of_a_plain_loop(folder: Path, sees_log_probs: bool) -> None:
    passes, engine = passes_of(folder, PlainEngine(folder, sees_log_probs), passes=3)
    plain = Reference(folder, sees_log_probs)
    batch = batch_of(0)
    passes.add(batch, Estimated(batch))
    assert passes.are_due
    passes.catch_up(lambda: False)
    assert engine.num_steps == 4  # two more passes of two mini-batches
    assert not passes.are_due
    plain_passes(plain, [batch], range(1, 3))
    assert_alike(folder, engine, plain)


def test_replay_goes_over_earlier_batches_too(folder: Path) -> None:
    (passes, engine), plain = passes_of(folder, passes=2, replay_batches=1), Reference(folder)
    for version in range(3):
        batch = batch_of(version)
        passes.add(batch, Estimated(batch))
        passes.catch_up(lambda: False)
        plain_passes(plain, [batch_of(v) for v in range(max(0, version - 1), version + 1)], range(1, 2))
    assert engine.num_steps == 2 + 4 + 4
    assert_alike(folder, engine, plain)


def test_automatic_passes_hold_prompts_out_and_report_them(folder: Path) -> None:
    passes, engine = passes_of(folder, passes="auto", max_passes=3, min_rise=0.0, held_out_fraction=0.25)
    plain = Reference(folder)
    batch = batch_of(0)
    held_out = passes.held_out(batch)
    prompts = {batch.group_ids[i] for i in held_out}
    assert len(prompts) == 1
    assert len(held_out) == 2  # the whole prompt
    passes.add(batch, Estimated(batch))
    passes.catch_up(lambda: False)
    done = engine.num_steps // 2
    assert passes.figures["critic/passes"] == 1 + done <= 3
    assert {"critic/held_out_explained_variance_before", "critic/held_out_explained_variance_after"} < {*passes.figures}
    plain_passes(plain, [batch], range(1, 1 + done), prompts)
    assert_alike(folder, engine, plain)


@pytest.mark.parametrize("others", [1.0, 0.0])
def test_held_out_returns_that_are_all_the_same_are_held_against_the_batchs_variance(
    folder: Path, others: float
) -> None:
    """With few prompts held out, all of them are right, or wrong, in many a batch: that is no reason to stop."""
    passes, engine = passes_of(folder, passes="auto", max_passes=2, patience=8, held_out_fraction=0.25)
    batch = batch_of(0)
    held_out = passes.held_out(batch)
    estimated = Estimated(batch)
    cu = batch.action_cu_seqlens
    estimated.returns[:] = others
    for i in held_out:
        estimated.returns[cu[i] : cu[i + 1]] = 1.0
    plain, errors = Reference(folder), list[float]()
    for t in (batch.trajectories[i] for i in held_out):
        values = plain.values(t).tolist()
        errors += [(1 - values[len(t.prompt_token_ids) + at - 1]) ** 2 for at in np.flatnonzero(t.action_mask)]
    passes.add(batch, estimated)
    passes.catch_up(lambda: False)
    measured = passes.figures["critic/held_out_explained_variance_before"]
    if others == 1.0:  # nothing varies anywhere
        assert measured is None
        assert engine.num_steps == 0
    else:
        assert measured == pytest.approx(1 - np.mean(errors) / np.var(estimated.returns), rel=1e-4)
        assert passes.figures["critic/passes"] == 2


def test_what_was_held_out_is_replayed_with_the_next_batch(folder: Path) -> None:
    passes, _ = passes_of(folder, passes="auto", replay_batches=1)
    for version in range(2):
        batch = batch_of(version)
        passes.add(batch, Estimated(batch))
    old, new = passes._study.lessons
    assert old.trained_mask.all()
    assert not new.trained_mask.all()


def test_one_pass_is_no_more_than_the_loops_own(folder: Path) -> None:
    passes, engine = passes_of(folder)
    batch = batch_of(0)
    assert passes.held_out(batch) == []
    passes.add(batch, Estimated(batch))
    assert not passes.are_due
    assert passes.figures == {}
    assert engine.num_steps == 0


@pytest.mark.parametrize("critic", [{"passes": 4, "replay_batches": 1}, {"passes": "auto", "min_rise": 0.0}])
def test_asked_to_stop_and_begun_again_it_ends_with_the_same_weights(
    folder: Path, tmp_path: Path, critic: dict[str, object]
) -> None:
    calm, calm_engine = passes_of(folder, **critic)
    stopped, engine = passes_of(folder, **critic)
    for version in range(2):
        batch = batch_of(version)
        for passes in (calm, stopped):
            passes.add(batch, Estimated(batch))
        calm.catch_up(lambda: False)
        asked = iter([False, True])
        stopped.catch_up(lambda asked=asked: next(asked, True))
        stopped.save(tmp_path)
        stopped, _ = passes_of(folder, engine, **critic)
        stopped.load(tmp_path)
        stopped.catch_up(lambda: False)
    assert engine.num_steps == calm_engine.num_steps
    for one, other in zip(weights(engine), weights(calm_engine), strict=True):
        assert torch.equal(one, other)


def test_a_study_is_read_as_it_was_written(tmp_path: Path) -> None:
    batch = batch_of(7)
    lesson = Lesson.of(batch, Estimated(batch), held_out=[2, 3])
    Study([lesson], 2, [0.25, None], is_done=True).save(tmp_path / FILE)
    found = Study.load(tmp_path / FILE)
    assert (found.num_passes, found.measured, found.is_done) == (2, [0.25, None], True)
    (read,) = found.lessons
    assert read.held_out == (2, 3)
    assert read.batch.version == 7
    assert [t.id for t in read.batch.trajectories] == [t.id for t in batch.trajectories]
    for name in ("values", "value_targets", "returns", "mask"):
        assert np.array_equal(getattr(read, name), getattr(lesson, name))
    assert Study.load(tmp_path / "none").lessons == []


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_study_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / FILE
    batch = batch_of(0)
    Study([Lesson.of(batch, Estimated(batch))], 1).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "other": b"\x08" + data[1:]}[damage])
    with pytest.raises(VcppoError, match=FILE):
        Study.load(path)


def test_held_out_prompts_are_drawn_anew_each_batch_and_alike_for_the_same() -> None:
    drawn = [tuple(draw_held_out(batch_of(v, prompts=16), 0.125, seed=0)) for v in range(8)]
    assert drawn == [tuple(draw_held_out(batch_of(v, prompts=16), 0.125, seed=0)) for v in range(8)]
    assert len(set(drawn)) > 1
    assert all(len(each) == 4 for each in drawn)  # two prompts of sixteen, two responses each
