"""The trained policy as a Hugging Face folder: config, tokenizer, safetensors. transformers and vLLM load it.

``python -m learner.export --checkpoint runs/demo/checkpoints/step-000040 --output DIR`` exports one that was kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from common.config import VcppoConfig, load_config
from common.config.yaml_text import one_line
from common.end_process import end_process
from common.errors import VcppoError
from common.log import configure_logging
from common.run_folder import RunFolder
from common.whole_folder import written_whole
from learner.checkpoint import check_ranks, verify
from learner.engine import (
    EngineOptions,
    TrainEngine,
    init_distributed,
    num_ranks,
    rank,
    shutdown_distributed,
)
from learner.models import PolicyModel, load_policy, save_model

log = structlog.get_logger(__name__)


def make_policy(config: VcppoConfig) -> PolicyModel:
    """The policy at ``model.path``, as the learner computes it."""
    return load_policy(
        config.model.path,
        dtype=EngineOptions.from_config(config).torch_dtype,
        trust_remote_code=config.model.trust_remote_code,
        gradient_checkpointing=config.learner.gradient_checkpointing,
        max_tokens=config.generator.max_model_len,
        chunk_tokens=config.learner.log_prob_chunk_tokens,
        chunk_vocab=config.learner.log_prob_chunk_vocab,
    )


def load_tokenizer(config: VcppoConfig) -> Any:
    """The policy's tokenizer, at ``model.path``. Raises VcppoError when there is none to be had."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    except Exception as error:  # a broken folder makes tokenizers raise nearly anything, bare Exception included
        raise VcppoError(
            f"model.path = {config.model.path!r}: no tokenizer can be loaded from it ({one_line(error)}); "
            "give a model folder such as the one `vcppo sft` writes, or a Hugging Face id"
        ) from error


def make_actor(config: VcppoConfig) -> TrainEngine:
    """The actor's engine, from ``model.path``."""
    options = EngineOptions.from_config(config)
    return TrainEngine(make_policy(config), learning_rate=config.rl.actor_learning_rate, options=options)


def export_policy(actor: TrainEngine, config: VcppoConfig, folder: Path) -> None:
    """Write the folder; it appears by rename when it is whole. Collective (gathers under ZeRO-3); rank 0 writes.

    Tied weights are written once, as transformers does; ``tie_word_embeddings`` in the config says so.
    """
    state = actor.gather_full_state_dict()
    if rank() != 0:
        return
    assert isinstance(actor.module, PolicyModel)
    with written_whole(folder) as staging:
        save_model(actor.module, staging, state)
        load_tokenizer(config).save_pretrained(staging)
    log.info("policy_exported", folder=str(folder))


def export_checkpoint(checkpoint: Path, output: Path, config: VcppoConfig) -> None:
    """Verify and load a checkpoint, export its policy."""
    state = verify(checkpoint)
    init_distributed(config.learner.device)
    check_ranks(checkpoint, state, num_ranks(), config.learner.zero_stage, config.model.dtype)
    actor = make_actor(config)
    actor.load(checkpoint / "actor")
    export_policy(actor, config, output)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m learner.export", description="Export a checkpoint's policy.")
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
    finally:
        shutdown_distributed()
    return 0


if __name__ == "__main__":
    end_process(main())
