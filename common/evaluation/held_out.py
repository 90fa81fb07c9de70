"""Which held-out problems an evaluation asks, and each sample's seed: the same for `vcppo eval` and in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import Problem, Task, TaskError, Text
from vcppo.common.tasks.lengths import LongPrompt, PromptLengths, prompt_room

log = structlog.get_logger(__name__)


class HeldOut(NamedTuple):
    """Problems whose prompts have room, and how many were left out for want of it."""

    problems: list[Problem]
    left_out: int


def held_out_problems(
    config: VcppoConfig, task: Task, count: int, lengths_of: Callable[[Sequence[Text]], Sequence[int]] | None
) -> HeldOut:
    """The first `count` held-out problems, or all there are.

    Args:
        lengths_of: prompts to their numbers of tokens; with it, those for whose prompts ``generator.max_model_len`` has
            room.

    Raises:
        TaskError: a task or data at fault; a prompt is too long and ``task.overlong`` is ``refuse``; all are.
    """
    known = task.num_problems("held_out")
    problems = problems_of(task, "held_out", config.eval.seed, 0, count if known is None else min(count, known))
    if not problems:
        raise TaskError(
            f"task {config.task.name}: there is no held-out problem to evaluate on: it gives none for split "
            "'held_out'; give the task some for it"
        )
    if lengths_of is None:
        return HeldOut(problems, 0)
    room = prompt_room(config, "held_out")
    lengths = lengths_of([problem.prompt for problem in problems])
    too_long = {i: tokens for i, tokens in enumerate(lengths) if tokens > room.tokens}
    if not too_long:
        return HeldOut(problems, 0)
    places = [LongPrompt(i, task.where("held_out", config.eval.seed, i), n) for i, n in too_long.items()]
    found = PromptLengths.of("held_out", room, len(problems), max(lengths), places)
    if found.leaves_none or (config.task.overlong == "refuse" and known is not None):
        raise TaskError(f"task {config.task.name}: {found.problem()}: {found.remedy()}")
    log.warning("overlong_problems_left_out", count=len(too_long), of=len(problems), where=found.describe())
    return HeldOut([problem for i, problem in enumerate(problems) if i not in too_long], len(too_long))


def sample_seed(seed: int, key: str, sample: int) -> int:
    """In [0, 2**31): a sample's own, whoever makes it and however many there are.

    Args:
        key: of the problem (`vcppo.common.evaluation.eval_samples.problem_keys`).
    """
    digest = blake2b(f"{seed} {key} {sample}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
