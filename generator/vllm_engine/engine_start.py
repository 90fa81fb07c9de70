"""What vLLM's processes need around them, and why vLLM could not start, in the words of our settings."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

OWNER_VARIABLE = "VCPPO_ENGINE_OWNER"
_PR_SET_PDEATHSIG = 1
# vLLM's words (v1/core/kv_cache_utils.py); where it changes them, its text is shown as it is.
_NEEDED = re.compile(r"\(([\d.]+) GiB KV cache is needed, which is larger than the available KV cache memory")
_NOTHING_LEFT = "No available memory for the cache blocks"
_UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")


def start_failure(config: VcppoConfig, model: str, error: Exception) -> str:
    """The text of the error. A KV cache in which not one sequence fits gets the number needed and the setting."""
    text = str(error)
    generator = config.generator
    if (found := _NEEDED.search(text)) or _NOTHING_LEFT in text:
        needed = float(found[1]) if found else None
        return _kv_cache(config, needed)
    if (found := _UNKNOWN_OPTION.search(text)) and found[1] in generator.engine_options:
        return f"generator.engine_options.{found[1]}: vLLM's EngineArgs have no such option: correct the name"
    return f"vLLM could not start with model {model}: {one_line(error)}"


def _kv_cache(config: VcppoConfig, needed_gib: float | None) -> str:
    generator = config.generator
    more = f"needs {needed_gib:g} GiB" if needed_gib is not None else "needs more than there is"
    sequence = f"one sequence of generator.max_model_len = {generator.max_model_len} tokens {more}"
    return (
        f"generator.kv_cache_gib = {generator.kv_cache_gib:g} (on a GPU: generator.gpu_memory_utilization ="
        f" {generator.gpu_memory_utilization:g}): the KV cache is too small: {sequence}: raise it"
        " (generator.max_in_flight times as much for all sequences at full length), or lower generator.max_model_len"
    )


def die_with_parent() -> None:
    """Ask Linux to kill this child when its parent dies: a SIGKILLed generator must not leave its engine running."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: vLLM's own pipes still end it, later
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def log_room(config: VcppoConfig, cache: Any) -> None:
    """Say so when not all sequences fit into the KV cache: vLLM then preempts and computes them anew, which is slow."""
    blocks, size = cache.num_gpu_blocks, cache.block_size
    generator = config.generator
    if not blocks or not size:  # a model without attention has none
        return
    room, wanted = blocks * size // generator.max_model_len, generator.max_in_flight
    if room < wanted:
        log.warning(
            "kv_cache_small",
            holds_full_length_sequences=room,
            max_in_flight=wanted,
            remedy="raise generator.kv_cache_gib (CPU) or generator.gpu_memory_utilization, or lower"
            " generator.max_in_flight: sequences that do not fit are interrupted and computed again",
        )


def set_environment(config: VcppoConfig) -> None:
    """Switches of vLLM and below it that are environment variables; what the user set stays."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are the launcher's to give (taskset)
        "OMP_NUM_THREADS": "1",
        # Kernels, one for each shape of weight and number of tokens in a step, of 0.3 MiB. oneDNN's own 1,024 take half
        # an hour to collect, and most are never asked for again: vLLM itself keeps those of the last sizes of a step.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if config.generator.enforce_eager:
        defaults["TORCHDYNAMO_DISABLE"] = "1"  # else the sampler still compiles a few lines for ten seconds
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER_VARIABLE] = str(os.getpid())
