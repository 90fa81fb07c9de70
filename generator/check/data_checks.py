"""The task's data: does it load, which rows are at fault, what can an evaluation tell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from vcppo.common.check.check_lines import Result, failed, passed, warned
from vcppo.common.evaluation.benchmark_tasks import benchmark_task, with_task
from vcppo.common.evaluation.held_out import held_out_problems
from vcppo.common.tasks import Finding, TaskError, load_task
from vcppo.generator.check.data_context import Context

_SHOWN = 4  # findings of one kind that are shown in full
_NAMED = 20  # of the others, by place
_Z_95 = 1.959964
_WIDE = 0.05  # half-width of pass@1's interval from which on an evaluation can't tell small gains


def task(context: Context) -> Result:
    """Make the task as every process will."""
    found = context.task
    sizes = [(split, found.size(split)) for split in ("train", "held_out")]
    text = ", ".join(f"{split} {'without end' if size is None else f'{size:,}'}" for split, size in sizes)
    if sizes[0][1] == 0:
        return failed(
            f"task.name = {context.config.task.name}: {text} problems: there is nothing to train on",
            "name another task, or data for training in task.options.path",
        )
    return _wrong_with_settings(context) or passed(f"{context.config.task.name}: {text} problems")


def _wrong_with_settings(context: Context) -> Result | None:
    """Settings that go with some tasks only."""
    config, found = context.config, context.task
    if config.rl.difficulty.enabled and not found.size("train"):
        return failed(
            f"rl.difficulty.enabled = true: task {config.task.name} has no finite set of problems that come again",
            "set rl.difficulty.enabled=false, or use a task of rows, such as dataset",
        )
    rollout, deadline = config.task.max_rollout_seconds, config.learner.batch_deadline_seconds
    if found.is_environment and rollout >= deadline:
        return failed(
            f"task.max_rollout_seconds = {rollout:g}: a batch waits for its slowest rollout, and the run stops after"
            f" learner.batch_deadline_seconds = {deadline:g}",
            f"set task.max_rollout_seconds={deadline / 2:g}, or raise the latter above it",
        )
    return None


def rows(context: Context) -> Iterator[Result]:
    """What the task itself finds wrong with its rows and options: errors first, findings of a kind together."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in context.task.findings():
        kinds.setdefault((finding.level, finding.remedy), []).append(finding)
    for (level, remedy), found in sorted(kinds.items(), key=lambda kind: kind[0][0]):  # "error" before "warning"
        shown = found[:_SHOWN]
        details = [f"{finding.where}: {finding.text}" for finding in shown[1:]]
        if more := found[_SHOWN:]:
            places = ", ".join(finding.where for finding in more[:_NAMED])
            details.append(f"{len(more)} more: {places}{', ...' if len(more) > _NAMED else ''}")
        text = f"{shown[0].where}: {shown[0].text}"
        yield (failed if level == "error" else warned)(text, remedy, *details)
    left_out = sum((Counter(part.left_out()) for part in context.task.parts()), Counter[str]())
    if left_out:
        each = ", ".join(f"{count:,} by {name}" for name, count in left_out.items())
        yield passed(f"{left_out.total():,} rows are left out by the task's filters: {each}")
    if not kinds:
        yield passed("the task finds nothing wrong with its rows and options")


def held_out(context: Context) -> Result:
    """How wide the interval of a held-out accuracy will be."""
    size, wanted = context.task.num_problems("held_out"), context.config.eval.num_problems
    count = wanted if size is None else min(size, wanted)
    if count == 0:
        return failed("no held-out problem: no evaluation can be made", "set task.options.held_out_path")
    half = half_width(count)
    text = f"an evaluation asks {count} problems: pass@1 to within ±{100 * half:.1f} points (95 %)"
    enough = math.ceil((_Z_95 * 0.5 / _WIDE) ** 2)
    if half <= _WIDE or (size is not None and size <= wanted):  # the task itself warns of data that are too few
        return passed(text)
    most = enough if size is None else min(size, enough)
    return warned(text, f"smaller gains can't be told from chance: set eval.num_problems={most}")


def on_the_way(context: Context) -> Iterator[Result]:
    """What is evaluated while the run trains, its benchmarks loaded."""
    config = context.config
    settings, most = config.eval, config.eval.num_problems_during_training
    if not settings.is_during_training:
        yield passed("nothing is evaluated while the run trains: eval.every = 0")
        return
    size = context.task.num_problems("held_out")
    count = most if size is None else min(size, most)
    yield passed(
        f"{count} held-out problems every {settings.every} steps, each figure to within ±{100 * half_width(count):.0f}"
        " points (95 %)"
        if settings.every
        else f"{count} held-out problems before the first step"
    )
    for each in settings.benchmarks:
        try:
            task = benchmark_task(config, each)
            found = held_out_problems(with_task(config, task), load_task(task), most, None)
        except TaskError as error:
            yield failed(f"eval.benchmarks: {each.name}: {error}", f"mend it, or leave {each.name} out")
        else:
            yield passed(f"benchmark {each.name}: {len(found.problems)} problems")


def half_width(num_problems: int) -> float:
    """Half of a 95 % interval of a proportion near 1/2, where it is widest; one sample a problem."""
    return _Z_95 * 0.5 / math.sqrt(num_problems)
