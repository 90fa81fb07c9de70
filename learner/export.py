"""The trained policy as a Hugging Face folder: config, tokenizer, safetensors. transformers and vLLM load it.

With ``lora.rank`` the weights in it have the adapters merged, and its folder ``adapter`` has them alone, for peft.

``python -m vcppo.learner.export --checkpoint runs/demo/checkpoints/step-000040 --output DIR`` exports one that was
kept.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
import torch
from transformers import AutoModelForCausalLM

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import VcppoError
from vcppo.common.files.whole_folder import written_whole
from vcppo.common.model_folder.tokenizer import load_tokenizer as tokenizer_of
from vcppo.common.model_folder.tokenizer import save_tokenizer
from vcppo.common.process.end_process import end_process
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.log import configure_logging
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.engine.checkpoint import verify
from vcppo.learner.engine.deepspeed_engine import (
    EngineOptions,
    TrainEngine,
    load_module_weights,
    rank,
)
from vcppo.learner.kernels.sequence_parallel import check_heads_of
from vcppo.learner.models.adapters import add_adapters, save_adapter, share
from vcppo.learner.models.base_model import check_base_models
from vcppo.learner.models.freezing import freeze
from vcppo.learner.models.merged_weights import is_adapter
from vcppo.learner.models.models import PolicyModel, load_policy, save_model
from vcppo.learner.models.saving import NotSaveable
from vcppo.learner.models.wire_weights import own_weights, whole_state

log = structlog.get_logger(__name__)

ADAPTER_FOLDER = "adapter"  # in an export


def make_policy(config: VcppoConfig, *, as_stored: bool = False) -> PolicyModel:
    """The policy at ``model.path``, as the learner computes it; `as_stored` as of `load_policy`.

    Raises:
        VcppoError: as `load_policy` does, or the ranks of learner.sequence_parallel_size can't share its heads.
    """
    policy = load_policy(
        config.model.path,
        dtype=EngineOptions.from_config(config).torch_dtype,
        as_stored=as_stored,
        trust_remote_code=config.model.trust_remote_code,
        recomputed_every=config.learner.recomputed_every,
        max_tokens=config.generator.max_model_len,
        chunk_tokens=config.learner.log_prob_chunk_tokens,
        chunk_vocab=config.learner.log_prob_chunk_vocab,
    )
    check_heads_of(policy.hf_model.config, config.learner.sequence_parallel_size, config.model.path)
    return policy


def load_tokenizer(config: VcppoConfig) -> Any:
    """The policy's tokenizer, at ``model.path``, which can be saved too.

    Raises:
        VcppoError: there is none to be had, or it can be loaded and not be saved.
    """
    tokenizer = tokenizer_of(config.model.path, config.model.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="vcppo-tokenizer-") as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # tokenizers raise nearly anything, and now is better than after the last step
            raise NotSaveable(
                f"model.path = {config.model.path!r}: its tokenizer can't be saved ({one_line(error)}), so the trained "
                "policy could not be exported: mend its tokenizer files, or choose another model.path"
            ) from error
    return tokenizer


def with_adapters(policy: PolicyModel, config: VcppoConfig) -> PolicyModel:
    """Another policy over the same weights, which stay frozen, with new adapters as ``lora`` says; without, itself."""
    if config.lora.rank is None:
        return policy
    model = share(policy.hf_model)
    add_adapters(model, config.lora)
    learner = config.learner
    return PolicyModel(model, chunk_tokens=learner.log_prob_chunk_tokens, chunk_vocab=learner.log_prob_chunk_vocab)


def make_actor(config: VcppoConfig, base: PolicyModel | None = None) -> TrainEngine:
    """The actor's engine, from ``model.path``. Raises ConfigError when ``rl.actor_freeze`` finds or leaves nothing.

    Args:
        base: `make_policy`'s, where it is loaded already; with ``lora.rank`` its weights are shared and stay frozen.
    """
    options = EngineOptions.from_config(config)
    policy = with_adapters(base or make_policy(config, as_stored=options.zero_stage == 3), config)
    freeze(policy.hf_model, config.rl.actor_freeze, "rl.actor_freeze")
    return TrainEngine(
        policy,
        learning_rate=config.rl.actor_learning_rate,
        options=options,
        rate_setting="rl.actor_learning_rate",
    )


def export_policy(actor: TrainEngine, config: VcppoConfig, folder: Path) -> None:
    """Write the folder; it appears by rename when it is whole. Collective (gathers under ZeRO-3); rank 0 writes.

    Tied weights are written once, as transformers does; ``tie_word_embeddings`` in the config says so.
    """
    state = actor.gather_full_state_dict()
    if rank() != 0:
        return
    assert isinstance(actor.module, PolicyModel)
    with written_whole(folder) as staging:
        write_export(actor.module, state, config, staging)
    log.info("policy_exported", folder=str(folder))


def write_export(policy: PolicyModel, state: dict[str, torch.Tensor] | None, config: VcppoConfig, folder: Path) -> None:
    """Config, generation config, weights, the model's own code, tokenizer.

    Args:
        state: full weights ``[...]`` by name, adapters besides; None: the model's own.
    """
    save_model(policy, folder, state)
    save_tokenizer(load_tokenizer(config), folder)
    if adapter := {name: tensor for name, tensor in (state or {}).items() if is_adapter(name)}:
        save_adapter(policy.hf_model, folder / ADAPTER_FOLDER, config.model.path, adapter)


def try_export(policy: PolicyModel, config: VcppoConfig, folder: Path) -> None:
    """Export into the empty `folder` and load that with plain transformers: what the end of a run does, for a check.

    Raises:
        NotSaveable: it can't be written or loaded, or comes back with other weights.
    """
    try:
        write_export(policy, None, config, folder)
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=policy.hf_model.dtype, trust_remote_code=config.model.trust_remote_code
        )
    except VcppoError:
        raise
    except Exception as error:  # transformers raises nearly anything here
        raise NotSaveable(f"model {config.model.path}: its export fails: {one_line(error)}") from error
    found = own_weights(again)
    changed = [name for name, tensor in own_weights(policy.hf_model).items() if not _is_same(tensor, found.get(name))]
    if changed:
        raise NotSaveable(
            f"model {config.model.path}: after an export transformers loads {len(changed)} of its weights otherwise "
            f"({', '.join(changed[:3])}, ...): choose another model.path"
        )


def _is_same(left: torch.Tensor, right: torch.Tensor | None) -> bool:
    return right is not None and torch.equal(left.detach().cpu(), right.detach())


def export_checkpoint(checkpoint: Path, output: Path, config: VcppoConfig) -> None:
    """Verify a checkpoint and export its policy: one process, whatever number of ranks wrote it, and no optimizer."""
    verify(checkpoint)
    check_base_models(checkpoint, config, "actor")
    policy = with_adapters(make_policy(config), config)
    load_module_weights(policy, checkpoint / "actor", EngineOptions.from_config(config).torch_dtype)
    state = None if config.lora.rank is None else whole_state(policy.hf_model)
    with written_whole(output) as staging:
        write_export(policy, state, config, staging)
    log.info("policy_exported", folder=str(output))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: a checkpoint's policy as a Hugging Face folder. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vcppo.learner.export", description="Export a checkpoint's policy.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a folder of <run>/checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="the Hugging Face folder to write")
    parser.add_argument("--config", type=Path, help="default: config.yaml of the run the checkpoint lies in")
    given = parser.parse_args(arguments)
    try:
        run = RunFolder(given.checkpoint.resolve().parent.parent)
        config = load_config(given.config or run.config, [])
        configure_logging(config.logging, "export", config.run.name)
        export_checkpoint(given.checkpoint, given.output, config)
    except VcppoError as error:
        log.critical("fatal", error=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    end_process(main())
