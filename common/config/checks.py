"""What must hold between fields of the config tree. Each problem names fields, values and the remedy.

A field's own range stands beside it in training.py and services.py; only relations are here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from vcppo.common.config.algorithm_checks import (
    algorithm_problems,
    kl_warnings,
    no_critic_problems,
    turn_problems,
)
from vcppo.common.config.critic_model_checks import critic_model_problems, lora_problems
from vcppo.common.config.reward_checks import reward_problems
from vcppo.common.config.sampling_checks import sampling_problems, sampling_warnings

if TYPE_CHECKING:
    from vcppo.common.config.tree import VcppoConfig

# What other fields of the tree already say to vLLM.
_ENGINE_FIELDS = {
    "model": "model.path",
    "dtype": "generator.dtype",
    "max_model_len": "generator.max_model_len",
    "tensor_parallel_size": "generator.tensor_parallel_size",
    "enforce_eager": "generator.enforce_eager",
    "gpu_memory_utilization": "generator.gpu_memory_utilization",
    "trust_remote_code": "model.trust_remote_code",
    "seed": "run.seed",
    "logprobs_mode": None,
    "skip_tokenizer_init": None,
    "weight_transfer_config": None,
}
_WIRE_BYTES_PER_TOKEN = 16  # token id, mask, log-prob (9 bytes), spans and rounding


def config_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction; none means the tree is usable."""
    yield from _batch_problems(config)
    yield from sampling_problems(config)
    yield from reward_problems(config)
    yield from algorithm_problems(config)
    yield from lora_problems(config)
    if config.algorithm.has_critic:
        yield from _value_pretraining_problems(config)
        yield from _critic_pass_problems(config)
        yield from critic_model_problems(config)
        yield from turn_problems(config)
    else:
        yield from no_critic_problems(config)
    yield from _schedule_problems(config)
    yield from _sft_problems(config)
    yield from _length_problems(config)
    yield from _generator_problems(config)
    yield from _network_problems(config)
    yield from _memory_problems(config)
    if config.eval.k > config.eval.samples_per_problem:
        yield (
            f"eval.k = {config.eval.k}: pass@k needs at least k samples, but eval.samples_per_problem ="
            f" {config.eval.samples_per_problem}: raise the latter to {config.eval.k}"
        )
    names = [config.task.name, *(each.name for each in config.eval.benchmarks)]
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        yield f"eval.benchmarks: {twice!r} is the name of two benchmarks, or of the task: give each a name of its own"
    if config.eval.patience and not config.eval.every:
        yield (
            f"eval.patience = {config.eval.patience}: nothing is evaluated during training, since eval.every = 0: set"
            " eval.every, or eval.patience to 0"
        )


def _memory_problems(config: VcppoConfig) -> Iterator[str]:
    """DeepSpeed offloads what it has cut; layers are chosen among those that are recomputed."""
    learner = config.learner
    if (every := learner.gradient_checkpointing_every) > 1 and not learner.gradient_checkpointing:
        yield (
            f"learner.gradient_checkpointing_every = {every}: nothing is recomputed, since"
            " learner.gradient_checkpointing = false: set it to true, or learner.gradient_checkpointing_every to 1"
        )
    if learner.offload.optimizer == "cpu" and learner.zero_stage == 0:
        yield (
            "learner.offload.optimizer = cpu: DeepSpeed offloads the optimizer at ZeRO stages 1 to 3, and"
            " learner.zero_stage = 0: set learner.zero_stage to 1 or more"
        )
    if learner.offload.parameters == "cpu" and learner.zero_stage < 3:
        yield (
            "learner.offload.parameters = cpu: DeepSpeed offloads parameters at ZeRO stage 3, and learner.zero_stage ="
            f" {learner.zero_stage}: set learner.zero_stage to 3"
        )


def config_warnings(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per setting that works but is probably not meant; the launcher logs them at start."""
    yield from sampling_warnings(config)
    rl, generator = config.rl, config.generator
    issued = rl.num_credits
    capacity = generator.num_generators * generator.max_in_flight
    if capacity > issued:
        yield (
            f"generator.max_in_flight = {generator.max_in_flight}: {generator.num_generators} generators take"
            f" {capacity} prompts at once, but only (rl.max_staleness + 1) * rl.batch_size = {issued} are ever issued:"
            " one generator may starve another"
        )
    if rl.straggler == "drop" and rl.max_staleness == 0:
        yield "rl.straggler = drop has no effect with rl.max_staleness = 0: nothing is ever too old"
    if rl.dynamic_sampling is not None and config.algorithm.centres:
        consequence = "so a group of one reward does have a signal"
        if config.algorithm.has_critic:
            consequence += ", and the critic's values lean to the middle: it learns from mixed groups only"
        yield (
            f"rl.dynamic_sampling = {rl.dynamic_sampling} with algorithm.advantage_estimator ="
            f" {config.algorithm.advantage_estimator}: that compares a reward with more than its group's, {consequence}"
        )
    corrections = (config.algorithm.importance_truncation, config.algorithm.rejection)
    if rl.max_staleness > 0 and corrections == (None, None) and config.algorithm.old_log_probs == "proximal":
        yield (
            f"rl.max_staleness = {rl.max_staleness} with algorithm.importance_truncation = null: old trajectories are"
            " trained without correction for the policy that made them"
        )
    yield from kl_warnings(config)
    if config.algorithm.clip_high < config.algorithm.clip_low:
        yield (
            f"algorithm.clip_high = {config.algorithm.clip_high} is below algorithm.clip_low ="
            f" {config.algorithm.clip_low}: likely responses can fall further than they can rise; exchanged?"
        )
    if config.security.curve == "never" and not is_loopback_only(config):
        yield (
            "security.curve = never with ports that other machines reach: whoever reaches them can send trajectories"
            " and replace weights; leave it at auto"
        )
    if not is_local(f"tcp://{_in_url(config.task.endpoint_host)}"):
        yield (
            f"task.endpoint_host = {config.task.endpoint_host!r}: agents' requests and keys of their sessions travel"
            " unencrypted: keep generators and agents on a network of their own"
        )
    yield from _source_warnings(config)
    if config.transport.credit_window > generator.max_in_flight:
        yield (
            f"transport.credit_window = {config.transport.credit_window} is never filled: a generator works on"
            f" generator.max_in_flight = {generator.max_in_flight} sequences"
        )


def _source_warnings(config: VcppoConfig) -> Iterator[str]:
    source, name = config.task.reward_source, config.task.reward_source_name
    if source is None or source.url is None:
        return
    if source.patience_seconds >= config.learner.batch_deadline_seconds:
        yield (
            f"{name}.patience_seconds = {source.patience_seconds:g}: the learner gives a batch up sooner, after"
            f" learner.batch_deadline_seconds = {config.learner.batch_deadline_seconds:g}: raise the latter above it"
        )
    if source.key_file and source.url.startswith("http:") and not is_local(source.url):
        yield f"{name}.url = {source.url!r}: the key crosses the network unencrypted: use an https address"


def _batch_problems(config: VcppoConfig) -> Iterator[str]:
    rl, algorithm = config.rl, config.algorithm
    if rl.batch_size % rl.group_size:
        yield (
            f"rl.batch_size = {rl.batch_size}: not a multiple of rl.group_size = {rl.group_size}:"
            f" set rl.batch_size to {_multiples(rl.batch_size, rl.group_size)}"
        )
    yield from _dynamic_sampling_problems(config)
    yield from _difficulty_problems(config)
    if rl.batch_size < algorithm.num_mini_batches:
        yield (
            f"algorithm.num_mini_batches = {algorithm.num_mini_batches}: more mini-batches than the rl.batch_size ="
            f" {rl.batch_size} trajectories to share: lower it to {rl.batch_size} or less"
        )
    if config.learner.batch_deadline_seconds <= config.generator.lease_seconds:
        yield (
            f"learner.batch_deadline_seconds = {config.learner.batch_deadline_seconds:g}: must be above"
            f" generator.lease_seconds = {config.generator.lease_seconds:g}, or one dead generator stops the run before"
            f" its prompts go back to the queue: raise it to {10 * config.generator.lease_seconds:g}"
        )
    if (host := config.task.endpoint_host) in ("0.0.0.0", "::"):  # noqa: S104  (it is refused)
        yield (
            f"task.endpoint_host = {host!r}: agents are told this address, and it is no machine's: name the address of"
            " the generator's machine at which they reach it"
        )
    rollout, deadline = config.task.max_rollout_seconds, config.learner.batch_deadline_seconds
    if rollout >= deadline and rollout != type(config.task).model_fields["max_rollout_seconds"].default:
        yield (
            f"task.max_rollout_seconds = {rollout:g}: a batch waits for its slowest rollout, and the run stops after"
            f" learner.batch_deadline_seconds = {deadline:g}: lower it to {deadline / 2:g}, or raise the latter above"
            " it"
        )


def _dynamic_sampling_problems(config: VcppoConfig) -> Iterator[str]:
    rl = config.rl
    if rl.dynamic_sampling is not None and rl.group_size < 2:
        yield (
            f"rl.dynamic_sampling = {rl.dynamic_sampling}: compares responses of a prompt, and rl.group_size ="
            f" {rl.group_size}: set that to 2 or more, or rl.dynamic_sampling to null"
        )
    cap = rl.dynamic_sampling_max_batches
    if rl.dynamic_sampling is None and cap != type(rl)().dynamic_sampling_max_batches:
        yield (
            f"rl.dynamic_sampling_max_batches = {cap}: has no effect with rl.dynamic_sampling = null: set that to"
            " rewards or outcomes, or leave rl.dynamic_sampling_max_batches out"
        )


def _difficulty_problems(config: VcppoConfig) -> Iterator[str]:
    difficulty = config.rl.difficulty
    for name, value in difficulty:
        if not difficulty.enabled and name != "enabled" and value != getattr(type(difficulty)(), name):
            yield (
                f"rl.difficulty.{name} = {value}: has no effect with rl.difficulty.enabled = false: set that to true,"
                f" or leave rl.difficulty.{name} out"
            )
    if difficulty.hard_to >= difficulty.easy_from:
        yield (
            f"rl.difficulty.hard_to = {difficulty.hard_to:g}: not below rl.difficulty.easy_from ="
            f" {difficulty.easy_from:g}, so no problem is between: set it to {difficulty.easy_from / 4:g}"
        )
    if difficulty.easy_share + difficulty.edge_share + difficulty.hard_share == 0:
        yield "rl.difficulty.edge_share = 0: so are the shares of easy and hard: set it to 1"


def _schedule_problems(config: VcppoConfig) -> Iterator[str]:
    rl = config.rl
    for name in ("actor_warmup_steps", "critic_warmup_steps"):
        if (steps := getattr(rl, name)) >= rl.num_steps:
            yield (
                f"rl.{name} = {steps}: the run has rl.num_steps = {rl.num_steps}, so the full rate is never reached:"
                f" set it to {rl.num_steps - 1} or less"
            )


def _critic_pass_problems(config: VcppoConfig) -> Iterator[str]:
    """What speaks of more passes without any would silently do nothing."""
    critic, defaults = config.critic, type(config.critic)()
    if critic.passes == "auto" and config.rl.batch_size // config.rl.group_size < 2:
        yield (
            f"critic.passes = auto: a batch has one prompt (rl.batch_size = {config.rl.batch_size}, rl.group_size ="
            f" {config.rl.group_size}), so none can be held out: set it to a number, or use smaller groups"
        )
    if (critic.num_mini_batches or 0) > config.rl.batch_size:
        yield (
            f"critic.num_mini_batches = {critic.num_mini_batches}: more mini-batches than the rl.batch_size ="
            f" {config.rl.batch_size} responses: set it to {config.rl.batch_size} or less"
        )
    of_more = ("max_seconds", "num_mini_batches", "replay_batches")
    of_auto = ("max_passes", "held_out_fraction", "min_rise", "patience")
    for names, has_effect, needs in (
        (of_more, critic.passes != 1, "2 or more, or auto"),
        (of_auto, critic.passes == "auto", "auto"),
    ):
        for name in names:
            if (value := getattr(critic, name)) != getattr(defaults, name) and not has_effect:
                yield (
                    f"critic.{name} = {value}: has no effect with critic.passes = {critic.passes}: set that to {needs},"
                    f" or leave critic.{name} out"
                )


def _value_pretraining_problems(config: VcppoConfig) -> Iterator[str]:
    stage, group_size = config.value_pretraining, config.rl.group_size
    yield from _recordings_problems(config)
    if not stage.num_trajectories:
        if config.critic.init == "value_pretrained":
            yield (
                "critic.init = value_pretrained: needs value_pretraining.num_trajectories above 0 (it is 0):"
                f" set that to {-(-4096 // group_size) * group_size}, or critic.init to policy or to a folder"
            )
        return
    if stage.num_trajectories % group_size:
        yield (
            f"value_pretraining.num_trajectories = {stage.num_trajectories}: not a multiple of rl.group_size ="
            f" {group_size}: set it to {_multiples(stage.num_trajectories, group_size)}"
        )
        return
    held_out = stage.num_held_out_groups(group_size)
    num_training = stage.num_trajectories - held_out * group_size
    if held_out < 2:
        num_groups = stage.num_trajectories // group_size
        enough = f"raise it to {math.ceil(2000 / num_groups) / 1000:g}, or " if num_groups >= 4 else ""
        yield (
            f"value_pretraining.held_out_fraction = {stage.held_out_fraction:g}: holds out {held_out} of"
            f" {num_groups} prompts, explained variance needs 2: {enough}{_enough_to_hold_out(config)}"
        )
    elif num_training < stage.batch_size:
        lower = f"lower it to {num_training} or less, or " if num_training else ""
        yield (
            f"value_pretraining.batch_size = {stage.batch_size}: only {num_training} trajectories are left to train on:"
            f" {lower}{_enough_to_hold_out(config)}"
        )


def _recordings_problems(config: VcppoConfig) -> Iterator[str]:
    recordings = list(map(str, config.value_pretraining.recordings))
    if recordings and config.critic.init != "value_pretrained":
        yield (
            f"value_pretraining.recordings = {recordings}: has no effect with critic.init = {config.critic.init}: set"
            " that to value_pretrained, or value_pretraining.recordings to []"
        )
    for name in sorted({each for each in recordings if recordings.count(each) > 1}):
        yield f"value_pretraining.recordings: {name} is given twice: keep one"


def _enough_to_hold_out(config: VcppoConfig) -> str:
    """The number of trajectories with which two prompts are held out and one mini-batch is left, or the other way."""
    stage, group_size = config.value_pretraining, config.rl.group_size
    for groups in range(2, 1 << 16):
        held_out = round(groups * stage.held_out_fraction)
        if held_out >= 2 and (groups - held_out) * group_size >= stage.batch_size:
            return f"raise value_pretraining.num_trajectories to {groups * group_size}"
    return "set value_pretraining.held_out_fraction to 0.125"


def _sft_problems(config: VcppoConfig) -> Iterator[str]:
    sft = config.sft
    if sft.init == "scratch" and sft.phases and not sft.architecture:
        yield (
            "sft.architecture is empty: sft.init = scratch builds the model from it: give transformers config fields"
            " (model_type, hidden_size, ...) or name a model in sft.init"
        )
    if sft.init != "scratch" and sft.architecture:
        yield f"sft.architecture is given but sft.init = {sft.init} has its own: leave it out or set sft.init = scratch"


def _length_problems(config: VcppoConfig) -> Iterator[str]:
    longest = config.generator.max_model_len
    if config.sampling.max_response_tokens >= longest:
        yield (
            f"sampling.max_response_tokens = {config.sampling.max_response_tokens}: leaves no room for a prompt in"
            f" generator.max_model_len = {longest}: raise the latter above it, or lower it below {longest}"
        )
    shared_by = config.learner.sequence_parallel_size
    if config.learner.micro_batch_tokens * shared_by < longest:
        by = f" by {shared_by} ranks (learner.sequence_parallel_size)" if shared_by > 1 else ""
        yield (
            f"learner.micro_batch_tokens = {config.learner.micro_batch_tokens}: the longest sequence"
            f" (generator.max_model_len = {longest}) must fit{by}: raise it to {math.ceil(longest / shared_by)} or more"
        )
    needed_mib = longest * _WIRE_BYTES_PER_TOKEN / 2**20
    if config.transport.max_message_mib < needed_mib:
        yield (
            f"transport.max_message_mib = {config.transport.max_message_mib:g}: too small for generator.max_model_len ="
            f" {longest} tokens: raise it to {math.ceil(100 * needed_mib) / 100:g} or more"
        )
    if config.transport.spool_memory_mib < config.transport.max_message_mib:
        yield (
            f"transport.spool_memory_mib = {config.transport.spool_memory_mib:g}: must hold one message of"
            f" transport.max_message_mib = {config.transport.max_message_mib:g}: raise it to that or more"
        )


def _generator_problems(config: VcppoConfig) -> Iterator[str]:
    generator = config.generator
    if generator.lease_seconds <= 2 * generator.heartbeat_seconds:
        yield (
            f"generator.lease_seconds = {generator.lease_seconds:g}: must be above twice generator.heartbeat_seconds ="
            f" {generator.heartbeat_seconds:g}, or one late heartbeat loses the lease: raise it to"
            f" {3 * generator.heartbeat_seconds:g}"
        )
    for name in generator.engine_options:
        if name in _ENGINE_FIELDS:
            field = _ENGINE_FIELDS[name]
            remedy = f"set {field} instead" if field else "leave it out: vcppo sets it"
            yield f"generator.engine_options.{name} = {generator.engine_options[name]!r}: not to be set here: {remedy}"
    yield from _batched_token_problems(config)


def _batched_token_problems(config: VcppoConfig) -> Iterator[str]:
    """vLLM refuses these at its start, in words that name none of our fields."""
    generator = config.generator
    tokens = generator.engine_options.get("max_num_batched_tokens")
    if not isinstance(tokens, int):
        return
    name = f"generator.engine_options.max_num_batched_tokens = {tokens}"
    if tokens < generator.max_sequences:
        yield (
            f"{name}: a step takes a token of each sequence, and there are up to generator.max_in_flight ="
            f" {generator.max_in_flight} and {generator.max_sequences - generator.max_in_flight} more:"
            f" raise it to {generator.max_sequences} or more"
        )
    if generator.engine_options.get("enable_chunked_prefill") is False and tokens < generator.max_model_len:
        yield (
            f"{name}: with enable_chunked_prefill = false a prompt is taken in one step: raise it to"
            f" generator.max_model_len = {generator.max_model_len} or more"
        )


def _network_problems(config: VcppoConfig) -> Iterator[str]:
    if config.broadcast.backend == "nccl" and config.learner.device == "cpu":
        yield "broadcast.backend = nccl: can't run with learner.device = cpu: set it to auto or gloo"
    if config.broadcast.backend == "nccl" and config.launcher.share_gpus:
        yield (
            "broadcast.backend = nccl: NCCL takes one process a GPU, and launcher.share_gpus = true puts two on one:"
            " set it to auto or gloo"
        )
    yield from _redis_problems(config)
    endpoints = config.transport.endpoints or []
    for endpoint in endpoints:
        if not _is_endpoint(endpoint):
            yield f"transport.endpoints: {endpoint!r} is not an endpoint: write tcp://host:port (1-65535) or ipc://path"
        elif config.redis.url is None and not is_local(endpoint):
            yield (
                f"transport.endpoints: {endpoint!r} is elsewhere, but redis.url = null starts a Redis that only"
                " this machine reaches: set redis.url, or use tcp://127.0.0.1:port"
            )
    for endpoint in sorted({each for each in endpoints if endpoints.count(each) > 1}):
        yield f"transport.endpoints: {endpoint!r} is given twice: two buffers can't share a port: keep one"


def _redis_problems(config: VcppoConfig) -> Iterator[str]:
    url = config.redis.url
    try:
        parts = urlsplit(url or "")
        holds_password = bool(parts.password) or "password" in parse_qs(parts.query)
        _ = parts.port  # ValueError when it is none
    except ValueError as error:  # the URL is left out: half an address may still hold a password
        yield f"redis.url is no URL ({error}): write it as redis://host:port/0"
        return
    if url is not None and parts.scheme not in ("redis", "rediss", "unix"):
        yield f"redis.url = {url!r}: must begin with redis://, rediss:// or unix://, e.g. redis://127.0.0.1:6379/0"
    if holds_password:
        yield (
            "redis.url: holds a password, which would show in ps, logs and config.yaml: put it into a file and"
            " name that in redis.password_file, or into the environment's VCPPO_REDIS_PASSWORD"
        )
    if config.redis.ca_file is not None and parts.scheme != "rediss":
        yield f"redis.ca_file = {config.redis.ca_file!r} is of no use: redis.url must begin with rediss://"


def is_loopback_only(config: VcppoConfig) -> bool:
    """Whether nothing but this machine can reach the ports."""
    return all(map(is_local, [*(config.transport.endpoints or ()), f"tcp://{config.generator.control_host}"]))


def _is_endpoint(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        if parts.scheme == "ipc":
            return bool(parts.netloc or parts.path)
        return parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # urlsplit's word for a port that is none, or half an IPv6 address
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_local(endpoint: str) -> bool:
    """Whether nothing but this machine can reach what listens there."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if parts.scheme == "ipc" or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _multiples(value: int, divisor: int) -> str:
    """The multiples around a value: ``96 or 104``."""
    below = value - value % divisor
    return f"{below} or {below + divisor}" if below else str(divisor)
