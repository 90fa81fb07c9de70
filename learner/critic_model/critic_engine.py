"""The run's critic as the config describes it: backbone, head, what is frozen; and its engine."""

from __future__ import annotations

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import ConfigError
from vcppo.common.run_folder import CRITIC_FOLDER, RunFolder
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine
from vcppo.learner.kernels.sequence_parallel import check_heads_of
from vcppo.learner.models.freezing import freeze
from vcppo.learner.models.models import CriticModel, load_critic


def make_critic(config: VcppoConfig, init: str, *, in_rl: bool = False) -> CriticModel:
    """Load it.

    Args:
        init: ``policy``: a new head; else the folder of a critic or reward model.
        in_rl: ``rl.critic_freeze`` holds as well.

    Raises:
        VcppoError: as `load_critic` does.
        ConfigError: ``critic.freeze`` or ``rl.critic_freeze`` finds nothing, leaves nothing, or finds a new head.
    """
    critic = load_critic(
        config.critic.model or config.model.path,
        init=init,
        bins=ValueBins.of(config),
        sees_log_probs=config.critic.sees_log_probs,
        dtype=EngineOptions.from_config(config).torch_dtype,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=config.learner.gradient_checkpointing,
        max_tokens=config.generator.max_model_len,
    )
    path = config.critic.model or config.model.path
    check_heads_of(critic.hf_model.config, config.learner.sequence_parallel_size, path)
    patterns = {"critic.freeze": config.critic.freeze}
    if in_rl:
        patterns["rl.critic_freeze"] = config.rl.critic_freeze
    for setting, found in patterns.items():
        freeze(critic.hf_model, found, setting)
        if init == "policy" and not critic.hf_model.score.weight.requires_grad:
            raise ConfigError(
                f"{setting} = {found}: finds score.weight, a new value head of zeros: nothing below it could learn"
                " either: make the pattern narrower"
            )
    return critic


def make_critic_engine(
    config: VcppoConfig, init: str, learning_rate: float, rate_setting: str, *, in_rl: bool = False
) -> TrainEngine:
    """The same with its optimizer; collective. Raises as `make_critic` does."""
    critic = make_critic(config, init, in_rl=in_rl)
    options = EngineOptions.from_config(config)
    return TrainEngine(critic, learning_rate=learning_rate, options=options, rate_setting=rate_setting)


def make_rl_critic(config: VcppoConfig) -> TrainEngine:
    """The critic that RL starts from: pretrained for values, or as ``critic.init`` says. Collective."""
    init = config.critic.init
    if init == "value_pretrained":
        init = str(RunFolder(config.run.path).value_pretraining / CRITIC_FOLDER)
    return make_critic_engine(config, init, config.rl.critic_learning_rate, "rl.critic_learning_rate", in_rl=True)
