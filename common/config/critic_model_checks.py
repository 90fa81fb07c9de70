"""What must hold between the fields of the critic's backbone, head and adapters, and the task's rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vcppo.common.config.training import HL_GAUSS_MARGIN

if TYPE_CHECKING:
    from vcppo.common.config.tree import VcppoConfig


def critic_model_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction."""
    critic, defaults = config.critic, type(config.critic)()
    for names, has_effect, needs in (
        (("num_bins", "value_min", "value_max"), critic.head != "scalar", "two_hot or hl_gauss"),
        (("sigma_ratio",), critic.head == "hl_gauss", "hl_gauss"),
    ):
        for name in names:
            if (value := getattr(critic, name)) != getattr(defaults, name) and not has_effect:
                yield (
                    f"critic.{name} = {value:g}: has no effect with critic.head = {critic.head}: set that to {needs},"
                    f" or leave critic.{name} out"
                )
    if critic.model is not None and critic.init not in ("value_pretrained", "policy"):
        yield (
            f"critic.model = {critic.model}: has no effect with critic.init = {critic.init}, which is a whole critic:"
            " set that to policy or value_pretrained, or leave critic.model out"
        )
    if critic.head != "scalar":
        yield from _bin_problems(config)


def lora_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction."""
    lora, stage = config.lora, config.learner.zero_stage
    if lora.rank is None:
        for name, given in (("alpha", lora.alpha), ("target_modules", lora.target_modules)):
            if given:
                yield (
                    f"lora.{name} = {given}: has no effect with lora.rank = null: set lora.rank to 16, or leave"
                    f" lora.{name} out"
                )
    elif stage == 3:
        yield (
            f"learner.zero_stage = 3: splits each model for itself, and with lora.rank = {lora.rank} actor and critic"
            " share one: set learner.zero_stage to 2, which splits gradients and optimizer, or lora.rank to null"
        )


def _bin_problems(config: VcppoConfig) -> Iterator[str]:
    critic, rule, clip = config.critic, config.reward_rule, config.algorithm.value_clip
    if clip is not None:
        yield (
            f"algorithm.value_clip = {clip:g}: is of the squared error, which critic.head = {critic.head} does not"
            " have: set it to null, or critic.head to scalar"
        )
    least, greatest = rule.low, rule.high
    if config.algorithm.gamma < 1:  # far from the end of a response, a return is nearly 0
        least, greatest = min(0.0, least), max(0.0, greatest)
    graded = (rule.low, rule.high) != (rule.wrong, rule.correct)
    lower, upper = ("task.reward_range",) * 2 if graded else ("task.reward_wrong", "task.reward_correct")
    if critic.value_min is not None and critic.value_min > least:
        yield (
            f"critic.value_min = {critic.value_min:g}: returns down to {least:g} lie beyond it ({lower},"
            f" algorithm.gamma): set it to {least:g}, or leave it out"
        )
    if critic.value_max is not None and critic.value_max < greatest:
        yield (
            f"critic.value_max = {critic.value_max:g}: returns up to {greatest:g} lie beyond it ({upper},"
            f" algorithm.gamma): set it to {greatest:g}, or leave it out"
        )
    if critic.head == "hl_gauss" and critic.num_bins <= (least := 2 * HL_GAUSS_MARGIN * critic.sigma_ratio):
        yield (
            f"critic.num_bins = {critic.num_bins}: with critic.sigma_ratio = {critic.sigma_ratio:g} the margins of the"
            f" range alone take {least:g}: raise it to {max(51, math.ceil(2 * least))} or more, or lower"
            " critic.sigma_ratio to 0.25"
        )
