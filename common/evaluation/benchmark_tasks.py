"""Benchmarks that are evaluated during training beside the task's own held-out problems (``eval.benchmarks``).

A benchmark's problems go through the same generators. Another task judges them, and its verdict's outcome is all that
counts: the run's reward functions, shaping and sources are for its own task.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcppo.common.config import BenchmarkConfig, TaskConfig, VcppoConfig
from vcppo.common.tasks import task_class
from vcppo.common.tasks.interface import TaskError


def benchmark_tasks(config: VcppoConfig, which: Sequence[BenchmarkConfig] | None = None) -> dict[str, TaskConfig]:
    """The task of each, by the benchmark's name, in the order of the config; empty without any.

    Args:
        which: of the config's benchmarks; None: all.

    Raises:
        TaskError: there is no such task, or it has several turns.
    """
    found = config.eval.benchmarks if which is None else which
    return {each.name: _task(config, each.name, each.task, each.options) for each in found}


def with_task(config: VcppoConfig, task: TaskConfig) -> VcppoConfig:
    """The config with another task, for what looks at both."""
    return config.model_copy(update={"task": task})


def _task(config: VcppoConfig, name: str, task: str, options: dict[str, object]) -> TaskConfig:
    if task_class(task).is_environment:
        raise TaskError(
            f"eval.benchmarks: {name}: task {task} has several turns, and a benchmark during training has one:"
            " evaluate it with vcppo eval, or leave it out"
        )
    plain = TaskConfig(name=task, options=options)
    limits = ("overlong", "verifier_timeout_seconds", "verifier_memory_mib", "verifier_processes")
    return plain.model_copy(update={field: getattr(config.task, field) for field in limits})
