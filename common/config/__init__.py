"""The one config tree of a run: what every process reads, documented field by field.

A YAML file gives the tree (``vcppo up -c run.yaml``); ``section.field=value`` on the command line
overrides it. Unknown keys are refused. Cross-field checks name the field, its value and the remedy.

    task.py, reward_sources.py, training.py, services.py   the sections and their fields: the documentation
    tree.py     the whole tree
    checks.py   what must hold between fields
    loading.py  YAML + overrides → VcppoConfig, or one clear line per problem
    fields.py   the tree as a list of fields, and as docs/configuration.md
"""

from vcppo.common.config.base import Section
from vcppo.common.config.checks import config_warnings
from vcppo.common.config.fields import ConfigField, config_fields, render_markdown
from vcppo.common.config.loading import dump_config, load_config
from vcppo.common.config.reward_sources import JudgeConfig, RewardServiceConfig, RewardSourceConfig
from vcppo.common.config.services import (
    BroadcastConfig,
    GeneratorConfig,
    LauncherConfig,
    LearnerConfig,
    LoggingConfig,
    MetricsConfig,
    RedisConfig,
    RunConfig,
    TransportConfig,
    WatchdogConfig,
)
from vcppo.common.config.task import RewardFunctionConfig, TaskConfig
from vcppo.common.config.training import (
    AlgorithmConfig,
    BenchmarkConfig,
    CriticConfig,
    DifficultyConfig,
    EvalConfig,
    LoraConfig,
    ModelConfig,
    RlConfig,
    SamplingConfig,
    SftConfig,
    SftPhase,
    ValuePretrainingConfig,
)
from vcppo.common.config.tree import VcppoConfig
from vcppo.common.errors import ConfigError

__all__ = [
    "AlgorithmConfig",
    "BroadcastConfig",
    "ConfigError",
    "ConfigField",
    "CriticConfig",
    "DifficultyConfig",
    "BenchmarkConfig",
    "EvalConfig",
    "GeneratorConfig",
    "JudgeConfig",
    "LauncherConfig",
    "LearnerConfig",
    "LoggingConfig",
    "LoraConfig",
    "MetricsConfig",
    "ModelConfig",
    "RedisConfig",
    "RewardFunctionConfig",
    "RewardServiceConfig",
    "RewardSourceConfig",
    "RlConfig",
    "RunConfig",
    "SamplingConfig",
    "Section",
    "SftConfig",
    "SftPhase",
    "TaskConfig",
    "TransportConfig",
    "ValuePretrainingConfig",
    "VcppoConfig",
    "WatchdogConfig",
    "config_fields",
    "config_warnings",
    "dump_config",
    "load_config",
    "render_markdown",
]
