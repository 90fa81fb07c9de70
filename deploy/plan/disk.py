"""What a run writes into its folder, in bytes. Pure, as the rest of the plan."""

from __future__ import annotations

from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.deploy.plan.architecture import Models
from vcppo.deploy.plan.arithmetic import flow_plan, rank_plan

_OF_EVALUATIONS = 3
_REWRITE = 2  # Redis' append-only file and its successor, while it is rewritten


class DiskPlan(NamedTuple):
    """Bytes by what they are for.

    Attributes:
        parts: name and bytes; the recording and the store as if every response had full length.
        certain: bytes that do not depend on how long responses are.
    """

    parts: tuple[tuple[str, int], ...]
    certain: int

    @property
    def total(self) -> int:
        """Bytes, the recording and the store at their largest."""
        return sum(size for _, size in self.parts)


def disk_plan(models: Models, config: VcppoConfig) -> DiskPlan:
    """Of a whole run: its checkpoints and the one being written, recording, pretrained critic, exports, store."""
    flow = flow_plan(models.policy, config)
    export = flow.update_bytes
    width = export // models.policy.policy_parameters
    records = config.algorithm.has_critic and config.critic.init == "value_pretrained"
    recorded = config.value_pretraining.num_trajectories if records else 0
    keeps_best = config.eval.keeps_best_version
    checkpoints = (config.learner.keep_checkpoints + 1 + keeps_best) * rank_plan(models, config).checkpoint
    on_the_way = _num_exports(config) * export
    of_critic = models.critic.critic_parameters
    if config.lora.rank is not None:
        of_critic = (
            models.critic.adapter_parameters(config.lora.rank, config.lora.target_modules) + models.critic.hidden
        )
    critic = width * of_critic if records else 0
    return DiskPlan(
        (
            ("checkpoints", checkpoints),
            ("recording", recorded * flow.trajectory_bytes),
            ("critic", critic),
            ("export", export),
            ("exports on the way", on_the_way),
            ("redis", _REWRITE * flow.store_bytes if config.redis.url is None else 0),
        ),
        certain=checkpoints + critic + export + on_the_way,
    )


def _num_exports(config: VcppoConfig) -> int:
    """Beside the run's own: of the version that is being evaluated, of the best and the last; and the regular ones."""
    every = config.learner.export_every
    return (_OF_EVALUATIONS if config.eval.keeps_best_version else 0) + (config.rl.num_steps // every if every else 0)
