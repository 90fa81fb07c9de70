"""The whole config tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from vcppo.common.config.base import Section
from vcppo.common.config.checks import config_problems, is_loopback_only
from vcppo.common.config.services import (
    BroadcastConfig,
    GeneratorConfig,
    LauncherConfig,
    LearnerConfig,
    LoggingConfig,
    MetricsConfig,
    RedisConfig,
    RunConfig,
    SecurityConfig,
    TransportConfig,
    WatchdogConfig,
)
from vcppo.common.config.task import TaskConfig
from vcppo.common.config.training import (
    AlgorithmConfig,
    CriticConfig,
    EvalConfig,
    ModelConfig,
    RewardModelConfig,
    RlConfig,
    SamplingConfig,
    SftConfig,
    ValuePretrainingConfig,
)
from vcppo.common.rewards.reward_rule import RewardRule
from vcppo.common.text.yaml_text import one_line

_MAX_PROBLEM = 1000
PROBLEM_SEPARATOR = "\n"  # between the lines of a failed cross-field check


class VcppoConfig(Section):
    """The whole tree."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    task: TaskConfig = TaskConfig()
    sampling: SamplingConfig = SamplingConfig()
    sft: SftConfig = SftConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    critic: CriticConfig = CriticConfig()
    value_pretraining: ValuePretrainingConfig = ValuePretrainingConfig()
    rl: RlConfig = RlConfig()
    learner: LearnerConfig = LearnerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    redis: RedisConfig = RedisConfig()
    transport: TransportConfig = TransportConfig()
    security: SecurityConfig = SecurityConfig()
    broadcast: BroadcastConfig = BroadcastConfig()
    logging: LoggingConfig = LoggingConfig()
    metrics: MetricsConfig = MetricsConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    launcher: LauncherConfig = LauncherConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def reward_rule(self) -> RewardRule:
        """How the reward of a response is made, and what it can be."""
        return self.task.reward_rule(self.sampling.max_response_tokens)

    def transfer_backend(self, *, on_cuda: bool) -> Literal["gloo", "nccl"]:
        """What weights go by: `broadcast.backend`, with ``auto`` resolved for the device of either end."""
        if self.broadcast.backend != "auto":
            return self.broadcast.backend
        # NCCL refuses a group with two members on one GPU.
        return "nccl" if on_cuda and not self.launcher.share_gpus else "gloo"

    @property
    def uses_curve(self) -> bool:
        """Whether ZeroMQ's sockets want keys."""
        security = self.security.curve
        return security == "always" or (security == "auto" and not is_loopback_only(self))

    @property
    def keys_folder(self) -> Path:
        """Where the key files are."""
        return Path(self.security.keys) if self.security.keys is not None else self.run.path / "keys"

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_pretrain_by_default_without_critic(cls, tree: Any) -> Any:
        """The default of value_pretraining.num_trajectories belongs to the estimator that has a critic."""
        algorithm = tree.get("algorithm") if isinstance(tree, dict) else None
        stage = tree.get("value_pretraining", {}) if isinstance(tree, dict) else None
        if not (isinstance(algorithm, dict) and isinstance(stage, dict)):
            return tree  # malformed: the fields' own checks say how
        if algorithm.get("advantage_estimator", "gae") == "gae":
            return tree
        return {**tree, "value_pretraining": {"num_trajectories": 0, **stage}}

    @model_validator(mode="after")
    def _check(self) -> VcppoConfig:
        problems = [one_line(problem, _MAX_PROBLEM) for problem in config_problems(self)]
        if problems:
            raise ValueError(PROBLEM_SEPARATOR.join(problems))
        return self
