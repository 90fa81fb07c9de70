"""What must hold between the fields of ``algorithm``: losses, corrections, penalties, estimators without a critic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vcppo.common.config.tree import VcppoConfig


def algorithm_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction, whatever the estimator."""
    algorithm = config.algorithm
    if algorithm.old_log_probs == "behaviour" and algorithm.importance_truncation is not None:
        yield (
            f"algorithm.importance_truncation = {algorithm.importance_truncation:g}: needs algorithm.old_log_probs ="
            " proximal (it is behaviour, whose ratio has the correction in it): set it to null"
        )
    yield from _off_policy_problems(config)
    yield from _loss_problems(config)
    yield from _sequence_parallel_problems(config)


def kl_warnings(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per estimator of the KL that hardly works where it stands."""
    algorithm = config.algorithm
    if not algorithm.kl_coefficient:
        return
    if algorithm.kl_in == "loss" and algorithm.kl_estimator == "k1":
        yield "algorithm.kl_estimator = k1: the mean of its gradient is 0, so it only adds noise: k2 or k3 hold pi back"
    if algorithm.kl_in == "reward" and algorithm.kl_estimator != "k1":
        yield (
            f"algorithm.kl_estimator = {algorithm.kl_estimator} with algorithm.kl_in = reward: near the reference"
            " policy the mean of its gradient is 0, so it hardly holds pi back: k1 does"
        )


def _sequence_parallel_problems(config: VcppoConfig) -> Iterator[str]:
    size, num_ranks = config.learner.sequence_parallel_size, config.learner.num_ranks
    if num_ranks % size:
        fitting = " or ".join(str(n) for n in range(1, num_ranks + 1) if num_ranks % n == 0)
        yield (
            f"learner.sequence_parallel_size = {size}: does not divide learner.num_ranks = {num_ranks}: set it to"
            f" {fitting}, or learner.num_ranks to a multiple of {size}"
        )
    if size > 1 and config.algorithm.objective == "gspo":
        yield (
            f"learner.sequence_parallel_size = {size}: not with algorithm.objective = gspo, whose ratio is of whole"
            " sequences, which lie on several ranks: set it to 1, or take another objective"
        )


def _off_policy_problems(config: VcppoConfig) -> Iterator[str]:
    """What speaks of a correction that is off would silently do nothing."""
    algorithm, defaults = config.algorithm, type(config.algorithm)()
    if algorithm.rejection and algorithm.old_log_probs == "behaviour":
        yield (
            f"algorithm.rejection = {algorithm.rejection}: compares with the proximal policy, and"
            " algorithm.old_log_probs = behaviour has none: set that to proximal, or algorithm.rejection to null"
        )
    for name in ("rejection_low", "rejection_high"):
        if (value := getattr(algorithm, name)) != getattr(defaults, name) and not algorithm.rejection:
            yield (
                f"algorithm.{name} = {value:g}: has no effect with algorithm.rejection = null: set that to token,"
                f" sequence or geometric, or leave algorithm.{name} out"
            )
    for name, unset in (("importance_level", "token"), ("importance_normalised", False)):
        if (value := getattr(algorithm, name)) != unset and algorithm.importance_truncation is None:
            yield (
                f"algorithm.{name} = {str(value).lower()}: has no effect with algorithm.importance_truncation = null:"
                f" set it to {str(unset).lower()}, or leave it out"
            )


def _loss_problems(config: VcppoConfig) -> Iterator[str]:
    algorithm = config.algorithm
    if algorithm.dual_clip is not None and algorithm.objective in ("cispo", "dis"):
        yield (
            f"algorithm.dual_clip = {algorithm.dual_clip:g}: has no meaning with algorithm.objective ="
            f" {algorithm.objective}, whose ratio has no gradient: set it to null"
        )
    elif algorithm.dual_clip is not None and algorithm.dual_clip <= 1 + algorithm.clip_high:
        yield (
            f"algorithm.dual_clip = {algorithm.dual_clip:g}: must be above 1 + algorithm.clip_high ="
            f" {1 + algorithm.clip_high:g}, or it is the tighter clip: raise it to {2 + algorithm.clip_high:g}"
        )
    yield from _kl_problems(config)
    yield from _entropy_problems(config)


def _kl_problems(config: VcppoConfig) -> Iterator[str]:
    """What speaks of a KL penalty that is off would silently do nothing."""
    algorithm = config.algorithm
    if algorithm.kl_coefficient:
        return
    given = {
        "kl_in": algorithm.kl_in if algorithm.kl_in != "loss" else None,
        "kl_estimator": algorithm.kl_estimator
        if algorithm.kl_estimator != "k3" and algorithm.kl_in == "loss"
        else None,
        "reference_refresh_steps": algorithm.reference_refresh_steps,
    }
    for name, value in given.items():
        if value is not None:
            yield (
                f"algorithm.{name} = {value}: has no effect with algorithm.kl_coefficient = 0: set that above 0, or"
                f" leave algorithm.{name} out"
            )


def _entropy_problems(config: VcppoConfig) -> Iterator[str]:
    algorithm, defaults = config.algorithm, type(config.algorithm)()
    target = algorithm.entropy_target
    if target is not None and algorithm.entropy_coefficient:
        yield (
            f"algorithm.entropy_target = {target:g}: the coefficient adapts, and algorithm.entropy_coefficient ="
            f" {algorithm.entropy_coefficient:g} is a fixed one: set that to 0, or algorithm.entropy_target to null"
        )
    if target is not None and algorithm.entropy_step > algorithm.entropy_limit:
        yield (
            f"algorithm.entropy_step = {algorithm.entropy_step:g}: is above algorithm.entropy_limit ="
            f" {algorithm.entropy_limit:g}, so the coefficient is only ever 0 or that: lower it to"
            f" {algorithm.entropy_limit / 20:g}"
        )
    for name in ("entropy_step", "entropy_limit"):
        if target is None and (value := getattr(algorithm, name)) != getattr(defaults, name):
            yield (
                f"algorithm.{name} = {value:g}: has no effect with algorithm.entropy_target = null: set that, or leave"
                f" algorithm.{name} out"
            )


def turn_problems(config: VcppoConfig) -> Iterator[str]:
    """Turns or segments as steps of GAE."""
    algorithm, defaults = config.algorithm, type(config.algorithm)()
    level = algorithm.advantage_level
    if level != "token" and algorithm.gamma != 1:
        yield (
            f"algorithm.gamma = {algorithm.gamma:g}: discounts by the token, also in value pretraining, and with"
            f" algorithm.advantage_level = {level} a step is a {level}: set it to 1, or algorithm.advantage_level to"
            " token"
        )
    for name in ("segment_cutpoints", "segment_probability"):
        if level != "segment" and (value := getattr(algorithm, name)) != getattr(defaults, name):
            yield (
                f"algorithm.{name} = {value:g}: has no effect with algorithm.advantage_level = {level}: set that to"
                f" segment, or leave algorithm.{name} out"
            )


def no_critic_problems(config: VcppoConfig) -> Iterator[str]:
    """An estimator without a critic: what speaks of one would silently do nothing."""
    algorithm = config.algorithm
    estimator = f"algorithm.advantage_estimator = {algorithm.advantage_estimator}"
    if algorithm.centres and algorithm.whiten_advantages is False:
        yield (
            f"algorithm.whiten_advantages = false: {estimator} is whitened over the batch by definition: set it to"
            " null, or algorithm.advantage_estimator to group_centred"
        )
    if algorithm.advantage_level != "token":
        yield (
            f"algorithm.advantage_level = {algorithm.advantage_level}: has no effect with {estimator}, which has no"
            " critic: set it to token, or leave it out"
        )
    if algorithm.has_group_baseline and config.rl.group_size < 2:
        yield f"rl.group_size = {config.rl.group_size}: {estimator} compares responses of a prompt: set it to 2 or more"
    if algorithm.truncation == "bootstrap":
        yield f"algorithm.truncation = bootstrap: {estimator} has no critic to ask: set it to terminal or mask"
    critic, rl = config.critic, config.rl
    for field, given, default in (
        ("critic.passes", critic.passes, 1),
        ("critic.head", critic.head, "scalar"),
        ("critic.sees_log_probs", critic.sees_log_probs, False),
        ("critic.model", critic.model, None),
        ("critic.freeze", critic.freeze, []),
        ("rl.critic_freeze", rl.critic_freeze, []),
    ):
        if given != default:
            to = "null" if default is None else _in_yaml(default)
            yield f"{field} = {_in_yaml(given)}: {estimator} has no critic: set it to {to}, or leave it out"
    for name, unset in (
        ("length_adaptive_alpha", None),
        ("value_clip", None),
        ("lambda_actor", 0.95),
        ("lambda_critic", 1.0),
    ):
        value = getattr(algorithm, name)
        if value != unset:
            yield (
                f"algorithm.{name} = {value:g}: has no effect with {estimator}, which has no critic: set it to"
                f" {'null' if unset is None else f'{unset:g}'}, or leave it out"
            )
    if config.value_pretraining.recordings:
        yield (f"value_pretraining.recordings: {estimator} has no critic to pretrain: set it to [], or leave it out")
    if config.value_pretraining.num_trajectories:
        yield (
            f"value_pretraining.num_trajectories = {config.value_pretraining.num_trajectories}: {estimator} has no"
            " critic to pretrain: set it to 0"
        )


def _in_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
