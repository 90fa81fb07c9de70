"""What the cold start begins with: a model named in the config, or random weights with the task's own tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import structlog
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.model_folder.tokenizer import load_tokenizer, plain_difference
from vcppo.common.tasks import Task
from vcppo.common.tasks.asking import demonstrations_of
from vcppo.learner.engine.deepspeed_engine import barrier, rank

log = structlog.get_logger(__name__)


def starting_point(config: VcppoConfig, task: Task, partial: Path) -> tuple[str, Any]:
    """(path of the model training starts from, its tokenizer); rank 0 makes `partial` with the tokenizer in it."""
    scratch = config.sft.init == "scratch"
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        tokenizer = _task_tokenizer(config, task) if scratch else _load_tokenizer(config.sft.init, config)
        tokenizer.save_pretrained(str(partial))
        if scratch:
            _write_random_model(config, tokenizer, partial)
    barrier()
    tokenizer = _load_tokenizer(str(partial), config)
    if scratch:
        _check_plain_loading(tokenizer, partial, task, config)
    return (str(partial) if scratch else config.sft.init), tokenizer


def _check_plain_loading(tokenizer: Any, folder: Path, task: Task, config: VcppoConfig) -> None:
    """transformers may make another tokenizer class of a folder than was saved (for qwen2 it does)."""
    text = demonstrations_of(task, 0, 1, {})[0].response
    if (difference := plain_difference(tokenizer, folder, [text])) is not None:
        raise VcppoError(
            f"sft.architecture.model_type = {config.sft.architecture.get('model_type')}: AutoTokenizer would make "
            f"another tokenizer of its folder than the task's ({difference}): use llama"
        )


def _task_tokenizer(config: VcppoConfig, task: Task) -> PreTrainedTokenizerFast:
    tokenizer = task.tokenizer()
    if tokenizer is None:
        raise VcppoError(
            f"sft.init = scratch needs a task that brings a tokenizer, and {config.task.name} does not: "
            "name a model in sft.init"
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    made.chat_template = task.chat_template()
    return made


def _load_tokenizer(path: str, config: VcppoConfig) -> Any:
    tokenizer = load_tokenizer(path, config.model.trust_remote_code, field="sft.init")
    if tokenizer.eos_token_id is None:
        raise VcppoError(f"the tokenizer of {path!r} has no end-of-sequence token: responses could never end")
    return tokenizer


def _write_random_model(config: VcppoConfig, tokenizer: Any, folder: Path) -> None:
    """A model of ``sft.architecture`` with random weights (seeded by the run) and the tokenizer's vocabulary."""
    fields = dict(config.sft.architecture)
    model_type = str(fields.pop("model_type", "llama"))
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        unknown = [name for name in fields if not hasattr(AutoConfig.for_model(model_type), name)]
        if unknown:  # transformers would keep them without a word
            raise VcppoError(f"sft.architecture.{unknown[0]}: {model_type} has no such field: check its spelling")
        model_config = AutoConfig.for_model(model_type, **{**tokens, **fields})
        torch.manual_seed(config.run.seed)
        model = AutoModelForCausalLM.from_config(model_config)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise VcppoError(f"sft.architecture makes no {model_type}: {_first_line(error)}") from error
    model.save_pretrained(str(folder))
    log.info("model_made", num_parameters=model.num_parameters(), vocab_size=model_config.vocab_size)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
