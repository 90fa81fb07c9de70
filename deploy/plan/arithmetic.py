"""What a run needs, in bytes and counts. Pure: config values in, numbers out; each says what it counts.

Estimates of what is allocated by design. Not in them: CUDA's own context (about 1 GiB), the allocator's fragments,
NCCL's buffers, Python and the libraries (1 to 2 GiB of host memory a process).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vcppo.common.chunk_sizes import chunk_sizes
from vcppo.common.config import VcppoConfig
from vcppo.common.head_sharing import heads_problem
from vcppo.deploy.plan.architecture import Architecture, Models

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
_WIRE_BYTES_PER_ACTION = 9  # token id 4, log-prob 4, mask 1
_WIRE_BYTES_PER_PROMPT_TOKEN = 4
_WIRE_BYTES_FIXED = 500  # ids, spans, timings, field names
_STORE_FACTOR = 1.25  # Redis' allocator and its per-prompt hashes and sorted sets
_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's reduce_bucket_size, as we leave it; float32
VLLM_WORKSPACE = 2 * GIB  # activations of a prefill and CUDA graphs, a typical figure
CUDA_CONTEXT = GIB  # a process on a GPU; a typical figure


@dataclass(frozen=True)
class ModelMemory:
    """Bytes one rank holds of one model while it trains."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Bytes."""
        return self.weights + self.gradients + self.optimizer


def model_memory(num_parameters: int, dtype: str, zero_stage: int, num_ranks: int) -> ModelMemory:
    """One rank's part of a model under our DeepSpeed settings.

    float32 at stage 0: weights, gradients and Adam's two moments, 16 bytes a parameter. In bfloat16 (where stage 0 runs
    as 1), and in float32 from stage 1 on, the optimizer has a float32 copy of its own: 12 bytes, split over ranks.
    Gradients are summed in float32, and split over ranks from stage 2 on.

    Measured on one CPU rank, 101M parameters, resident after a step, bytes a parameter against these: float32 stage 0
    16.0 of 16; bfloat16 stage 1 18.0 of 18, stage 2 16.0 of 18, stage 3 23.8 of 18 and its bucket's 4.
    """
    width = _BYTES[dtype]
    stage = max(1, zero_stage) if dtype == "bfloat16" else zero_stage
    if stage == 0:
        return ModelMemory(width * num_parameters, 4 * num_parameters, 8 * num_parameters)
    weights = width * num_parameters // (num_ranks if stage == 3 else 1)
    sums = 4 * num_parameters // (num_ranks if stage >= 2 else 1)
    return ModelMemory(weights, sums, 12 * num_parameters // num_ranks)


def activation_bytes(architecture: Architecture, config: VcppoConfig) -> int:
    """Most that one micro-batch keeps for its backward, log-probs' blocks of logits included.

    With gradient checkpointing: the input of each layer that is recomputed, the others in full, and one more in full
    where the last is recomputed: no other has been freed by then.
    """
    learner, width = config.learner, _BYTES[config.model.dtype]
    tokens, layers = learner.micro_batch_tokens, architecture.layers
    layer = architecture.activation_elements_per_token
    every = learner.recomputed_every
    recomputed = math.ceil(layers / every) if every else 0
    in_full = layers - recomputed + (recomputed > 0 and (layers - 1) % every == 0)
    per_token = recomputed * architecture.hidden + in_full * layer
    chunk = chunk_sizes(
        "cpu" if learner.device == "cpu" else "cuda", learner.log_prob_chunk_tokens, learner.log_prob_chunk_vocab
    )
    block = chunk.tokens * min(chunk.vocab, architecture.vocabulary)
    return tokens * (per_token + 2 * architecture.hidden) * width + 3 * 4 * block


def largest_gather_bytes(architecture: Architecture, config: VcppoConfig) -> int:
    """Under ZeRO-3 a layer's weights, the next one's and the output layer's are whole while they are used."""
    if config.learner.zero_stage < 3:
        return 0
    elements = 2 * architecture.layer_parameters + architecture.vocabulary * architecture.hidden
    return elements * _BYTES[config.model.dtype]


@dataclass(frozen=True)
class RankPlan:
    """One learner rank, bytes. ``critic`` and ``reference`` are None without one; ``offloaded`` is in host memory.

    With ``lora.rank`` actor and critic are adapters alone (and a head); ``base`` is what they are over, frozen.
    """

    base: int
    actor: ModelMemory
    critic: ModelMemory | None
    reference: int | None
    activations: int
    gathered: int
    buckets: int
    host_at_start: int
    offloaded: int
    checkpoint: int

    @property
    def total(self) -> int:
        """Most bytes of the rank while it trains; what only the start or a checkpoint needs is apart."""
        return (
            self.base + self.actor.total + (self.critic.total if self.critic else 0) + (self.reference or 0)
            + self.activations + self.gathered + self.buckets
        )  # fmt: skip


def rank_plan(models: Models, config: VcppoConfig) -> RankPlan:
    """Actor and critic stay on a rank together; their micro-batches come one after the other."""
    learner, dtype = config.learner, config.model.dtype
    has_critic = config.algorithm.has_critic
    policy, critic = models.policy.policy_parameters, models.critic.critic_parameters
    if config.lora.rank is not None:
        return _with_adapters(models, config, config.lora.rank)

    def memory(count: int) -> ModelMemory:
        return model_memory(count, dtype, learner.zero_stage, learner.num_ranks)

    whole = [memory(policy), *([memory(critic)] if has_critic else [])]
    kept = [_not_offloaded(each, config) for each in whole]
    state_bytes = 12 + _BYTES[dtype]
    has_reference = config.algorithm.kl_coefficient > 0
    refreshed = has_reference and config.algorithm.reference_refresh_steps is not None
    return RankPlan(
        base=0,
        actor=kept[0],
        critic=kept[1] if has_critic else None,
        reference=_BYTES[dtype] * policy if has_reference else None,  # whole on every rank
        activations=max(activation_bytes(each, config) for each in models),
        gathered=max(largest_gather_bytes(each, config) for each in models),
        buckets=4 * _BUCKET_ELEMENTS * (1 + has_critic) if learner.zero_stage == 3 else 0,  # made whole at the start
        host_at_start=_BYTES[dtype]
        * (max(policy, critic) if has_critic else policy),  # each rank reads the whole model before it is split
        offloaded=sum(each.total for each in whole) - sum(each.total for each in kept),
        checkpoint=state_bytes * (policy + (critic if has_critic else 0)) + refreshed * _BYTES[dtype] * policy,
    )


def _with_adapters(models: Models, config: VcppoConfig, rank: int) -> RankPlan:
    """One base for actor, critic and reference, whole on every rank; a critic of another model has its own."""
    learner, dtype, lora = config.learner, config.model.dtype, config.lora
    width, has_critic = _BYTES[dtype], config.algorithm.has_critic
    actor = models.policy.adapter_parameters(rank, lora.target_modules)
    critic = (models.critic.adapter_parameters(rank, lora.target_modules) + models.critic.hidden) * has_critic
    shares = config.critic.model is None and config.critic.init in ("value_pretrained", "policy")
    other = 0 if shares or not has_critic else models.critic.backbone_parameters
    has_reference = config.algorithm.kl_coefficient > 0

    def memory(count: int) -> ModelMemory:
        return model_memory(count, dtype, learner.zero_stage, learner.num_ranks)

    whole = [memory(actor), *([memory(critic)] if has_critic else [])]
    kept = [_not_offloaded(each, config) for each in whole]
    return RankPlan(
        base=width * (models.policy.policy_parameters + other),
        actor=kept[0],
        critic=kept[1] if has_critic else None,
        reference=width * actor if has_reference else None,
        activations=max(activation_bytes(each, config) for each in models),
        gathered=0,
        buckets=0,
        host_at_start=width * max(models.policy.policy_parameters, other),
        offloaded=sum(each.total for each in whole) - sum(each.total for each in kept),
        checkpoint=(12 + width) * (actor + critic),
    )


def _not_offloaded(memory: ModelMemory, config: VcppoConfig) -> ModelMemory:
    """What stays on the device. Sums of gradients are counted there, though DeepSpeed moves them at times."""
    offload = config.learner.offload
    return ModelMemory(
        memory.weights if offload.parameters == "none" else 0,
        memory.gradients,
        memory.optimizer if offload.optimizer == "none" else 0,
    )


@dataclass(frozen=True)
class GeneratorPlan:
    """One generator, bytes per device unless said otherwise.

    Attributes:
        weights: of the model, divided by tensor parallelism.
        kv_per_token: of one token's keys and values.
        kv_wanted: for ``max_in_flight`` sequences of ``max_model_len``.
        kv_room: what is left for keys and values; None when the device's memory is not known.
    """

    weights: int
    kv_per_token: int
    kv_wanted: int
    kv_room: int | None

    def sequences_at_once(self, max_model_len: int) -> int | None:
        """Of full length."""
        return None if self.kv_room is None else max(0, self.kv_room) // (self.kv_per_token * max_model_len)


def generator_plan(architecture: Architecture, config: VcppoConfig, gpu_bytes: int | None) -> GeneratorPlan:
    """``gpu_bytes``: memory of one GPU; None: on a CPU, where ``kv_cache_gib`` is the room."""
    generator = config.generator
    width = _BYTES[config.model.dtype if generator.dtype == "auto" else generator.dtype]
    parallel = generator.tensor_parallel_size
    weights = width * architecture.policy_parameters // parallel
    per_token = width * architecture.kv_elements_per_token // min(parallel, architecture.kv_heads)
    room = int(generator.kv_cache_gib * GIB)
    if gpu_bytes is not None:
        room = int(gpu_bytes * generator.gpu_memory_utilization) - weights - VLLM_WORKSPACE
    return GeneratorPlan(weights, per_token, per_token * generator.max_in_flight * generator.max_model_len, room)


@dataclass(frozen=True)
class FlowPlan:
    """What goes between processes.

    Attributes:
        credits: most prompts issued and not yet claimed.
        places: sequences all generators can work on at once.
        update_bytes: one weight update, sent once to the whole group.
        trajectory_bytes: one of full length on the wire.
        bytes_per_token: of response on the wire.
        store_bytes: most that Redis holds, all trajectories of full length.
    """

    credits: int
    places: int
    update_bytes: int
    trajectory_bytes: int
    bytes_per_token: float
    store_bytes: int


def flow_plan(architecture: Architecture, config: VcppoConfig) -> FlowPlan:
    """Of responses of full length, the most there can be."""
    rl, generator = config.rl, config.generator
    response = config.sampling.max_response_tokens
    prompt = generator.max_model_len - response
    trajectory = _WIRE_BYTES_FIXED + _WIRE_BYTES_PER_PROMPT_TOKEN * prompt + _WIRE_BYTES_PER_ACTION * response
    credits = rl.num_credits
    kept = credits + config.learner.checkpoint_every * rl.batch_size  # claimed ones stay until a checkpoint has them
    return FlowPlan(
        credits=credits,
        places=generator.num_generators * generator.max_in_flight,
        update_bytes=_BYTES[config.model.dtype] * architecture.policy_parameters,
        trajectory_bytes=trajectory,
        bytes_per_token=trajectory / response,
        store_bytes=int(kept * trajectory * _STORE_FACTOR),
    )


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        gpu_bytes: memory of one GPU; None: everything is on this host.
        host_bytes: memory of this machine.
    """

    models: Models
    rank: RankPlan
    generator: GeneratorPlan
    flow: FlowPlan
    num_ranks: int
    num_generators: int
    gpu_bytes: int | None
    host_bytes: int

    @property
    def host_total(self) -> int:
        """What all processes of the run hold together, were they all on this machine's CPU."""
        generator = self.generator.weights + (self.generator.kv_room or 0)
        return self.num_ranks * self.rank.total + self.num_generators * generator + self.flow.store_bytes


def make_plan(models: Models, config: VcppoConfig, gpu_bytes: int | None, host_bytes: int) -> Plan:
    """Everything from the models' sizes and the config; `gpu_bytes` None: room for the cache is not known."""
    return Plan(
        models,
        rank_plan(models, config),
        generator_plan(models.policy, config, gpu_bytes),
        flow_plan(models.policy, config),
        config.learner.num_ranks,
        config.generator.num_generators,
        gpu_bytes,
        host_bytes,
    )


def problems(plan: Plan, config: VcppoConfig) -> Iterator[str]:
    """What will not fit, one line each: field, figures, remedy."""
    yield from _memory_problems(plan, config)
    yield from setting_problems(plan, config)


def _memory_problems(plan: Plan, config: VcppoConfig) -> Iterator[str]:
    rank, generator = plan.rank, plan.generator
    if plan.gpu_bytes is not None and rank.total > plan.gpu_bytes:
        yield (
            f"learner rank: {gib(rank.total)} of {gib(plan.gpu_bytes)} GiB: raise learner.num_ranks or"
            " learner.zero_stage, lower learner.micro_batch_tokens, or set learner.gradient_checkpointing"
            + (" or lora.rank" if config.lora.rank is None else "")
        )
    if plan.gpu_bytes is None and plan.host_total > plan.host_bytes:
        yield (
            f"this machine: {gib(plan.host_total)} of {gib(plan.host_bytes)} GiB: give --gpu-memory-gib if the run is"
            " to be on GPUs, take a smaller model, or spread it over machines"
        )
    at_once = generator.sequences_at_once(config.generator.max_model_len)
    if at_once == 0:
        yield (
            f"generator: {gib(generator.weights)} GiB of weights leave no room for one sequence of"
            f" generator.max_model_len = {config.generator.max_model_len}: raise generator.tensor_parallel_size"
            " (or generator.kv_cache_gib)"
        )


def setting_problems(plan: Plan, config: VcppoConfig) -> Iterator[str]:
    """What will not fit whatever the devices are, likewise."""
    flow = plan.flow
    limit = config.redis.maxmemory_mib
    if limit is not None and flow.store_bytes > limit * 2**20:
        yield (
            f"redis.maxmemory_mib = {limit:g}: up to {flow.store_bytes / 2**20:.0f} MiB are kept with responses of full"
            " length: raise it, or lower learner.checkpoint_every"
        )
    for which, each in zip(("policy", "critic"), plan.models, strict=True):
        problem = heads_problem(each.heads, each.kv_heads, config.learner.sequence_parallel_size, f"the {which}")
        if problem is not None:
            yield problem
            break
    kv_heads = plan.models.policy.kv_heads
    if kv_heads % config.generator.tensor_parallel_size and config.generator.tensor_parallel_size % kv_heads:
        yield (
            f"generator.tensor_parallel_size = {config.generator.tensor_parallel_size}: does not divide"
            f" {kv_heads} key-value heads: vLLM will refuse it"
        )


def remarks(plan: Plan, config: VcppoConfig) -> Iterator[str]:
    """What fits, but costs."""
    at_once = plan.generator.sequences_at_once(config.generator.max_model_len)
    if at_once is not None and 0 < at_once < config.generator.max_in_flight:
        yield (
            f"generator: {at_once} sequences of full length fit at once, generator.max_in_flight ="
            f" {config.generator.max_in_flight}: vLLM sets some aside when all are long"
        )
    if plan.rank.offloaded:
        yield f"learner.offload: {gib(plan.rank.offloaded)} GiB of each rank are in host memory, and not counted above"
    if plan.gpu_bytes is not None and not (config.learner.zero_stage == 3 and Path(config.model.path).is_dir()):
        yield (
            f"host memory while starting: each rank reads the whole model, {gib(plan.rank.host_at_start)} GiB, before"
            " it is split: times the ranks on one host (with learner.zero_stage = 3 and a local folder: weight by"
            " weight)"
        )
    if plan.flow.credits < plan.flow.places:
        yield (
            f"generators: {plan.flow.places} places for (rl.max_staleness + 1) * rl.batch_size ="
            f" {plan.flow.credits} prompts: some stay empty: lower generator.max_in_flight, or raise rl.batch_size or"
            " rl.max_staleness"
        )
    if plan.rank.reference is not None and not plan.rank.base:
        yield (
            f"algorithm.kl_coefficient > 0 keeps the reference policy whole on every rank:"
            f" {gib(plan.rank.reference)} GiB"
        )


def gib(num_bytes: float) -> str:
    """Number of GiB without its unit: one decimal, three below 0.1."""
    return f"{num_bytes / GIB:.1f}" if num_bytes >= GIB / 10 else f"{num_bytes / GIB:.3f}"
