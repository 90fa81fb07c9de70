"""The run's critic as the config describes it: backbone, head, adapters, what is frozen; and its engine."""

from __future__ import annotations

from pathlib import Path

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import ConfigError
from vcppo.common.run_folder import CRITIC_FOLDER, RunFolder
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine
from vcppo.learner.kernels.sequence_parallel import check_heads_of
from vcppo.learner.models.adapters import add_adapters, load_adapter
from vcppo.learner.models.base_model import check_base_models, has_adapter
from vcppo.learner.models.freezing import freeze
from vcppo.learner.models.models import CriticModel, PolicyModel, check_stated, critic_over, load_critic


def make_critic(
    config: VcppoConfig, init: str, *, in_rl: bool = False, as_stored: bool = False, policy: PolicyModel | None = None
) -> CriticModel:
    """Load it.

    Args:
        init: ``policy``: a new head; else the folder of a critic or reward model, or of a critic's adapters.
        in_rl: ``rl.critic_freeze`` holds as well.
        as_stored: as of `load_policy`.
        policy: with ``lora.rank``: shares its frozen base with the critic where both are over the same model.

    Raises:
        VcppoError: as `load_critic` does; the adapters are of another base; the ranks of
            learner.sequence_parallel_size can't share its heads.
        ConfigError: ``critic.freeze`` or ``rl.critic_freeze`` finds nothing, leaves nothing, or finds a new head.
    """
    adapter = Path(init) if has_adapter(init) else None
    if adapter is not None:
        check_base_models(adapter, config, "critic")
        check_stated(init, config.model.trust_remote_code, ValueBins.of(config), config.critic.sees_log_probs)
        init = "policy"
    if policy is not None and init == "policy" and config.critic.model is None:
        critic = critic_over(
            policy,
            bins=ValueBins.of(config),
            sees_log_probs=config.critic.sees_log_probs,
            recomputed_every=config.learner.recomputed_every,
        )
    else:
        critic = _load(config, init, as_stored=as_stored)
    if config.lora.rank is not None:
        add_adapters(critic.hf_model, config.lora)
        if adapter is not None:
            load_adapter(critic.hf_model, adapter)
    path = config.critic.model or config.model.path
    check_heads_of(critic.hf_model.config, config.learner.sequence_parallel_size, path)
    _freeze(critic, config, init, in_rl=in_rl)
    return critic


def _load(config: VcppoConfig, init: str, *, as_stored: bool) -> CriticModel:
    return load_critic(
        config.critic.model or config.model.path,
        init=init,
        bins=ValueBins.of(config),
        sees_log_probs=config.critic.sees_log_probs,
        dtype=EngineOptions.from_config(config).torch_dtype,
        as_stored=as_stored,
        trust_remote_code=config.model.trust_remote_code,
        recomputed_every=config.learner.recomputed_every,
        max_tokens=config.generator.max_model_len,
    )


def _freeze(critic: CriticModel, config: VcppoConfig, init: str, *, in_rl: bool) -> None:
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


def make_critic_engine(
    config: VcppoConfig,
    init: str,
    learning_rate: float,
    rate_setting: str,
    *,
    in_rl: bool = False,
    policy: PolicyModel | None = None,
) -> TrainEngine:
    """The same with its optimizer; collective. Raises as `make_critic` does."""
    options = EngineOptions.from_config(config)
    critic = make_critic(config, init, in_rl=in_rl, as_stored=options.zero_stage == 3, policy=policy)
    return TrainEngine(critic, learning_rate=learning_rate, options=options, rate_setting=rate_setting)


def make_rl_critic(config: VcppoConfig, policy: PolicyModel | None = None) -> TrainEngine:
    """The critic that RL starts from: pretrained for values, or as ``critic.init`` says. Collective.

    Args:
        policy: as of `make_critic`.
    """
    init = config.critic.init
    if init == "value_pretrained":
        init = str(RunFolder(config.run.path).value_pretraining / CRITIC_FOLDER)
    return make_critic_engine(
        config, init, config.rl.critic_learning_rate, "rl.critic_learning_rate", in_rl=True, policy=policy
    )
