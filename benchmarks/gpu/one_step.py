"""One whole learner step, by the product and by `plain`, on the same models and the same batch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from benchmarks.gpu import plain
from benchmarks.gpu.findings import Findings, Number, Place, distance, most
from benchmarks.rig.real_parts import write_model
from benchmarks.rig.workload import log_normal_lengths, random_trajectories
from vcppo.common.config import VcppoConfig
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, init_distributed
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.rl.estimates import Estimates
from vcppo.learner.rl.loop import Models, RlLoop
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.publish import Broadcaster

PROMPT = 4
RATE = 2e-2  # so large that a step is not lost in bfloat16's rounding of the weights


class Limits:
    """Largest errors that pass, by type: of values and log-probs (absolute), norms, and the step itself.

    Adam divides each gradient by its own size, so the rounding of a small one turns into a whole step of that weight:
    an update differs by more than its gradient does. A wrong gradient gives an update that is off by 1 and more.
    """

    ABSOLUTE = {"float32": 2e-4, "bfloat16": 0.15}  # noqa: RUF012  (read only)
    ADVANTAGES = {"float32": 1e-3, "bfloat16": 0.05}  # noqa: RUF012
    NORM = {"float32": 1e-3, "bfloat16": 0.05}  # noqa: RUF012
    UPDATE = {"float32": 0.02, "bfloat16": 0.3}  # noqa: RUF012


def check_step(place: Place, dtype: str, zero_stage: int) -> Findings:
    """Values, log-probs, advantages, gradient norms and the updates of actor and critic."""
    config = _config(place, dtype, zero_stage)
    vocab = place.size(4096, 96)
    lengths = log_normal_lengths(place.size(16, 6), mean=place.size(200, 24), longest=place.size(700, 60))
    batch = Batch(random_trajectories(lengths, vocab, PROMPT), 0)
    init_distributed("cuda" if place.is_cuda else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        architecture = _architecture(place, vocab)
        path = write_model(Path(folder) / "model", architecture, "float32")
        policy, critic = _modules(path, EngineOptions.from_config(config).torch_dtype)
        exact = [
            _exact(policy.hf_model, AutoModelForCausalLM),
            _exact(critic.hf_model, AutoModelForSequenceClassification),
        ]
    started = [_parameters(each) for each in exact]
    reference = plain.step(exact[0], exact[1], batch.trajectories, _rates(config))
    models = _engines(config, policy, critic)
    share = Share(0, 1, place.size(1024, 96))  # several micro-batches, whatever the config wants for a real run
    loop = RlLoop(config, models, share, cast(Broadcaster, None), None)
    estimates, stats = loop.train(batch, Phases())
    what = f"learner step, {dtype}, ZeRO {zero_stage}"
    assert models.critic is not None
    numbers = [
        *_estimates(what, dtype, estimates, reference),
        _norm(f"{what}: actor's gradient norm", stats.actor_grad_norms, reference.actor_norm, dtype),
        _norm(f"{what}: critic's gradient norm", stats.critic_grad_norms, reference.critic_norm, dtype),
        _update(f"{what}: actor's update", models.actor, started[0], reference.actor, dtype),
        _update(f"{what}: critic's update", models.critic, started[1], reference.critic, dtype),
    ]
    return Findings(numbers)


def _estimates(what: str, dtype: str, found: Estimates, reference: plain.Step) -> list[Number]:
    """What is known before the update."""
    values, log_probs, advantages = (
        torch.from_numpy(each) for each in (found.values, found.old_log_probs, found.advantages)
    )
    absolute, relative = Limits.ABSOLUTE[dtype], Limits.ADVANTAGES[dtype]
    return [
        Number(f"{what}: values", most(values, reference.values), absolute, "at most"),
        Number(f"{what}: log-probs", most(log_probs, reference.log_probs), absolute, "nats at most"),
        Number(f"{what}: advantages", distance(advantages, reference.advantages), relative),
    ]


def _config(place: Place, dtype: str, zero_stage: int) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {
            "model": {"path": "-", "dtype": dtype},
            "sampling": {"temperature": 0.9},
            # Truncated importance weights would depend on log-probs that nobody sampled with here.
            "algorithm": {"num_mini_batches": 1, "lambda_actor": 0.95, "importance_truncation": None},
            "rl": {"actor_learning_rate": RATE, "critic_learning_rate": RATE},
            "learner": {
                "zero_stage": zero_stage,
                "device": "cuda" if place.is_cuda else "cpu",
            },
        }
    )  # fmt: skip


def _architecture(place: Place, vocab: int) -> Mapping[str, Any]:
    return {
        "model_type": "qwen2",
        "hidden_size": place.size(512, 48),
        "num_hidden_layers": place.size(4, 2),
        "num_attention_heads": place.size(8, 4),
        "num_key_value_heads": 2,
        "intermediate_size": place.size(1024, 64),
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "initializer_range": 0.08,  # attention and logits are then far from uniform
    }


def _modules(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Policy and critic as the learner loads them; the critic's new head is not left at zero, where it has no slope."""
    policy, critic = load_policy(path, dtype=dtype), load_critic(path, dtype=dtype)
    torch.manual_seed(1)
    nn.init.normal_(critic.hf_model.score.weight, std=0.05)
    return policy, critic


def _exact(model: Any, kind: Any) -> Any:
    """A float64 copy of these very weights, as plain transformers computes them."""
    config = type(model.config).from_dict(model.config.to_dict())
    copy = kind.from_config(config, dtype=torch.float64, attn_implementation="eager")
    copy.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    return copy.train()


def _rates(config: VcppoConfig) -> plain.Rates:
    rl, algorithm = config.rl, config.algorithm
    assert algorithm.lambda_actor is not None
    return plain.Rates(
        rl.actor_learning_rate, rl.critic_learning_rate, config.sampling.temperature, algorithm.lambda_actor,
        algorithm.lambda_critic, rl.adam_beta2, rl.max_grad_norm,
    )  # fmt: skip


def _engines(config: VcppoConfig, policy: nn.Module, critic: nn.Module) -> Models:
    options = EngineOptions.from_config(config)
    return Models(
        TrainEngine(policy, learning_rate=config.rl.actor_learning_rate, options=options),
        TrainEngine(critic, learning_rate=config.rl.critic_learning_rate, options=options),
    )


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _norm(what: str, found: list[float], reference: float, dtype: str) -> Number:
    (norm,) = found
    return Number(what, abs(norm - reference) / reference, Limits.NORM[dtype], "of it")


def _update(
    what: str, engine: TrainEngine, started: Mapping[str, Tensor], reference: Mapping[str, Tensor], dtype: str
) -> Number:
    """How far the change of all weights is from the reference's change."""
    weights = engine.gather_full_state_dict()

    def change(after: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([(after[name].double().cpu() - before).flatten() for name, before in started.items()])

    return Number(what, distance(change(weights), change(reference)), Limits.UPDATE[dtype])
