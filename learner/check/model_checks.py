"""Does the model load as a policy, and a critic beside it?"""

from __future__ import annotations

import torch

from vcppo.common.check.check_lines import NotPossible, Result, failed, passed, skipped, warned
from vcppo.learner.check.loaded_model import Context, num_bytes
from vcppo.learner.critic_model.critic_engine import make_critic
from vcppo.learner.critic_model.critic_vocabulary import usable_vocabulary
from vcppo.learner.export import with_adapters
from vcppo.learner.models.freezing import freeze, trained_share

_GIB = 2**30


def device(context: Context) -> Result:
    """What torch itself says of CUDA, which only an import can tell."""
    wanted = context.config.learner.device
    if torch.cuda.is_available():
        names = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
        return passed(f"learner.device = {wanted}: {torch.cuda.device_count()} GPUs ({', '.join(names)})")
    if wanted == "cuda":
        reason = "it is built for the CPU" if torch.version.cuda is None else "it sees no GPU or no driver"
        return failed(
            f"learner.device = cuda, but torch {torch.__version__} can't use CUDA: {reason}",
            "make setup DEVICE=cuda, look at nvidia-smi, or set learner.device=cpu",
        )
    return passed(f"learner.device = {wanted}: the CPU, {torch.get_num_threads()} threads here")


def policy(context: Context) -> Result:
    """Load it. The proof of its architecture on packed sequences is part of loading."""
    model = with_adapters(context.policy, context.config)
    freeze(model.hf_model, context.config.rl.actor_freeze, "rl.actor_freeze")
    count = sum(parameter.numel() for parameter in model.parameters())
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    hf_model = model.hf_model
    text = (
        f"{type(hf_model).__name__}, {count / 1e6:,.1f} M parameters, {', '.join(kinds)},"
        f" {num_bytes(model) / _GIB:.2f} GiB{trained_share(hf_model)}"
    )
    stored = getattr(hf_model.config, "dtype", None)
    longest = getattr(hf_model.config.get_text_config(), "max_position_embeddings", None)
    needed = context.config.generator.max_model_len
    if longest is not None and longest < needed:
        return warned(
            f"{text}; generator.max_model_len = {needed}, but the model has positions up to {longest}",
            f"set generator.max_model_len={longest} or lower",
        )
    return passed(f"{text}; stored as {str(stored).removeprefix('torch.')}")


def critic(context: Context) -> Result:
    """A critic as RL will make it: a backbone with a value head, or the folder in ``critic.init``. It must have the
    policy's vocabulary."""
    config = context.config
    if not config.algorithm.has_critic:
        return skipped(f"algorithm.advantage_estimator = {config.algorithm.advantage_estimator} has none")
    shares = config.lora.rank is not None and config.critic.model is None
    try:
        context.need(0 if shares else num_bytes(context.policy), "loading a critic")
    except NotPossible:
        if config.critic.init in ("policy", "value_pretrained"):
            raise
    is_pretrained = config.critic.init == "value_pretrained"  # it is not there yet: a new head stands for it
    usable_vocabulary(config)
    init = "policy" if is_pretrained else config.critic.init
    model = make_critic(config, init, in_rl=not is_pretrained, policy=context.policy if shares else None)
    if is_pretrained:
        freeze(model.hf_model, config.rl.critic_freeze, "rl.critic_freeze")
    count = sum(parameter.numel() for parameter in model.parameters())
    return passed(
        f"critic.init = {config.critic.init}: {type(model.hf_model).__name__}, {count / 1e6:,.1f} M"
        f" parameters{trained_share(model.hf_model)}, critic.head = {config.critic.head}"
    )
