"""The whole config tree."""

from __future__ import annotations

from pydantic import model_validator

from common.config.base import Section
from common.config.checks import config_problems
from common.config.services import (
    BroadcastConfig,
    GeneratorConfig,
    LauncherConfig,
    LearnerConfig,
    LoggingConfig,
    RedisConfig,
    RunConfig,
    TransportConfig,
)
from common.config.training import (
    AlgorithmConfig,
    CriticConfig,
    EvalConfig,
    ModelConfig,
    RlConfig,
    SamplingConfig,
    SftConfig,
    TaskConfig,
    ValuePretrainingConfig,
)

PROBLEM_SEPARATOR = "\n"  # between the lines of a failed cross-field check


class VcppoConfig(Section):
    """The whole tree."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    task: TaskConfig = TaskConfig()
    sampling: SamplingConfig = SamplingConfig()
    sft: SftConfig = SftConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    critic: CriticConfig = CriticConfig()
    value_pretraining: ValuePretrainingConfig = ValuePretrainingConfig()
    rl: RlConfig = RlConfig()
    learner: LearnerConfig = LearnerConfig()
    generator: GeneratorConfig = GeneratorConfig()
    redis: RedisConfig = RedisConfig()
    transport: TransportConfig = TransportConfig()
    broadcast: BroadcastConfig = BroadcastConfig()
    logging: LoggingConfig = LoggingConfig()
    launcher: LauncherConfig = LauncherConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check(self) -> VcppoConfig:
        problems = list(config_problems(self))
        if problems:
            raise ValueError(PROBLEM_SEPARATOR.join(problems))
        return self
