"""Benchmarks that are evaluated during training beside the task's own held-out problems (``eval.benchmarks``).

A benchmark's problems go through the same generators. Another task judges them, and its verdict's outcome is all that
counts: the run's reward functions, shaping and sources are for its own task.
"""

from __future__ import annotations

from vcppo.common.config import BenchmarkConfig, TaskConfig, VcppoConfig
from vcppo.common.tasks import task_class
from vcppo.common.tasks.interface import TaskError


def benchmark_tasks(config: VcppoConfig) -> dict[str, TaskConfig]:
    """The task of each, by the benchmark's name, in the order of the config; empty without any.

    Raises:
        TaskError: see `benchmark_task`.
    """
    return {each.name: benchmark_task(config, each) for each in config.eval.benchmarks}


def benchmark_task(config: VcppoConfig, benchmark: BenchmarkConfig) -> TaskConfig:
    """The task of one, with the limits of the run's own.

    Raises:
        TaskError: there is no such task, or it has several turns.
    """
    if task_class(benchmark.task).is_environment:
        raise TaskError(
            f"eval.benchmarks: {benchmark.name}: task {benchmark.task} has several turns, and a benchmark during"
            " training has one: evaluate it with vcppo eval, or leave it out"
        )
    plain = TaskConfig(name=benchmark.task, options=benchmark.options)
    limits = ("overlong", "verifier_timeout_seconds", "verifier_memory_mib", "verifier_processes")
    return plain.model_copy(update={field: getattr(config.task, field) for field in limits})


def with_task(config: VcppoConfig, task: TaskConfig) -> VcppoConfig:
    """The config with another task, for what looks at both."""
    return config.model_copy(update={"task": task})
