"""The prompts a run issues: prompt number i of a stage is a pure function of (config, purpose, i).

So a resumed run issues exactly the continuation, and issuing again after a crash (the index is stored after
the prompts are) is recognised by the store: the ids are the same.

    index i  →  group i // group_size, sample i % group_size  →  id ``rl-00000012-3``
    problem  =  task.problems("train", seed of the purpose, group, 1)

With ``rl.difficulty.enabled`` the problem of an RL group is drawn from the data set instead, by how often each was
answered right (`vcppo.learner.supply.drawn_problems`).

A prompt may leave no room for the response. `PromptSource` looks at all prompts of a finite task when it is made, and
refuses them by name (``task.overlong: refuse``) or says how many are left out (``skip``). Where one comes up all the
same, a substitute takes its place: a problem so far on in the task's sequence that no group has it as its own. Which
one is a pure function of the group, too.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Protocol

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.records.ids import make_group_id, make_prompt_id, parse_group_id
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Int32Array, Prompt, Purpose
from vcppo.common.tasks import Problem, Task, TaskError, Text
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.lengths import LengthsOf, measure_prompts, prompt_room
from vcppo.learner.supply.drawn_problems import DrawnProblems

log = structlog.get_logger(__name__)

MAX_SAMPLES_PER_SLOT = 16  # a group is topped up until it has used this many times its size
MAX_SUBSTITUTES = 256  # too long in a row: then nearly all of them are
_FIRST_SUBSTITUTE = 1 << 40  # beyond every group's own number
_LOGGED_ONE_BY_ONE = 10


class PromptTooLong(VcppoError):
    """Prompts of the task do not fit the engine."""

    exit_code = EXIT_USAGE


class PromptEncoder(Protocol):
    """Text or chat messages → token ids ``[P]`` int32."""

    def __call__(self, prompt: Text, /) -> Int32Array: ...


class _Chosen(NamedTuple):
    """A problem, and its prompt as tokens."""

    problem: Problem
    token_ids: Int32Array


class PromptSource:
    """Makes prompts by number; keeps no position (the loop does, in the store and in checkpoints).

    Args:
        encode: of one prompt.
        lengths: number of tokens of many prompts, for the look through all of them; default: by `encode`.

    Raises:
        PromptTooLong: some prompts leave no room for a response, and ``task.overlong`` is ``refuse``; or all do.
        TaskError: RL is to draw by difficulty, and there is no end to the task's problems.
    """

    def __init__(
        self, config: VcppoConfig, task: Task, encode: PromptEncoder, lengths: LengthsOf | None = None
    ) -> None:
        self.num_passed_over = 0  # groups whose own problem was too long, of those made by this process
        self._config = config
        self._task = task
        self._encode = encode
        self._group_size = config.rl.group_size
        self._room = prompt_room(config)
        self._chosen = lru_cache(maxsize=256)(self._choose)
        self._drawn: DrawnProblems | None = None
        if config.rl.difficulty.enabled and not task.size("train"):
            raise TaskError(
                f"rl.difficulty.enabled = true: task {config.task.name} has no finite set of problems that come again:"
                " set rl.difficulty.enabled to false, or use a task of rows, such as dataset"
            )
        self._look_through(lengths or self._lengths)

    def draw_by(self, drawn: DrawnProblems) -> None:
        """RL groups ask what `drawn` draws, from here on."""
        self._drawn = drawn

    @property
    def task(self) -> Task:
        """The task whose problems become prompts."""
        return self._task

    def problems_digest(self, count: int, run_seed: int | None = None) -> str:
        """Of the first `count` problems of value pretraining, answers included: other data make another one.

        Args:
            run_seed: as a run of this seed draws them; None: this run's.
        """
        found = blake2b(digest_size=16)
        seed = derive_seed(self._config.run.seed if run_seed is None else run_seed, "value_pretraining")
        for group in range(count):
            (problem,) = problems_of(self._task, "train", seed, group, 1)
            found.update(json.dumps([problem.prompt, problem.answer], sort_keys=True, default=str).encode())
        return found.hexdigest()

    def prompts(self, purpose: Purpose, start: int, count: int, issue_version: int) -> list[Prompt]:
        """Prompts number ``start … start + count - 1``."""
        if self._drawn is not None and purpose == "rl" and count:
            self._drawn.draw(range(start // self._group_size, -(-(start + count) // self._group_size)), issue_version)
        return [
            self._make(purpose, index // self._group_size, index % self._group_size, issue_version)
            for index in range(start, start + count)
        ]

    def extra_sample(self, group_id: str, attempt: int, issue_version: int) -> Prompt:
        """Another sample of a group that lost one: sample number ``group_size + attempt``."""
        if attempt >= (MAX_SAMPLES_PER_SLOT - 1) * self._group_size:
            raise VcppoError(
                f"group {group_id} lost {attempt} trajectories: they are rejected one after the other; "
                "see the dead letters (`vcppo ledger`) for the reason"
            )
        purpose, group = parse_group_id(group_id)
        return self._make(purpose, group, self._group_size + attempt, issue_version)

    def tokens_of(self, purpose: Purpose, number: int) -> Int32Array:
        """``[P]`` the prompt of problem `number` of the stage's own sequence, whatever its groups are drawn to ask.

        Raises:
            PromptTooLong: it has no room, and neither have its substitutes.
        """
        return self._chosen(purpose, number).token_ids

    def _make(self, purpose: Purpose, group: int, sample: int, issue_version: int) -> Prompt:
        own = group if self._drawn is None or purpose != "rl" else self._drawn.problem_of(group)
        problem, token_ids = self._chosen(purpose, own)
        group_id = make_group_id(purpose, group)
        return Prompt(
            id=make_prompt_id(group_id, sample),
            group_id=group_id,
            sample_index=sample,
            task=self._config.task.name,
            token_ids=token_ids,
            answer=problem.answer,
            seed=derive_seed(self._config.run.seed, purpose, group, sample),
            issue_version=issue_version,
            purpose=purpose,
            max_response_tokens=self._config.sampling.max_response_tokens,
            is_open=self._task.is_agent,
        )

    def _choose(self, purpose: Purpose, own: int) -> _Chosen:
        """Problem `own` of the stage's sequence, or the first of its substitutes that has room."""
        seed = derive_seed(self._config.run.seed, purpose)
        substitutes = range(_FIRST_SUBSTITUTE + own * MAX_SUBSTITUTES, _FIRST_SUBSTITUTE + (own + 1) * MAX_SUBSTITUTES)
        shortest = None
        for number in (own, *substitutes):
            (problem,) = problems_of(self._task, "train", seed, number, 1)
            token_ids = self._encode(problem.prompt)
            if len(token_ids) <= self._room.tokens:
                return _Chosen(problem, token_ids)
            if number == own:
                self._pass_over(seed, own, len(token_ids))
            shortest = min(len(token_ids), shortest or len(token_ids))
        needed = (shortest or 0) + self._room.response
        raise PromptTooLong(
            f"task {self._config.task.name}: {MAX_SUBSTITUTES + 1} prompts in a row are longer than"
            f" {self._room.tokens} tokens, the shortest of them has {shortest}: {self._room.field} ="
            f" {self._room.limit} less sampling.max_response_tokens ="
            f" {self._room.response}. Raise {self._room.field} to {needed} or more"
        )

    def _pass_over(self, seed: int, group: int, tokens: int) -> None:
        """Say which problem is left out: the first ones each, then at every doubling of their number."""
        self.num_passed_over += 1
        count = self.num_passed_over
        if count <= _LOGGED_ONE_BY_ONE or count & (count - 1) == 0:
            where = self._task.where("train", seed, group)
            log.warning("prompt_passed_over", where=where, tokens=tokens, room=self._room.tokens, passed_over=count)

    def _look_through(self, lengths: LengthsOf) -> None:
        """All prompts of a finite task, before the first is issued."""
        began = time.monotonic()
        left_out = sum((Counter(part.left_out()) for part in self._task.parts()), Counter[str]())
        if left_out:
            log.info("rows_left_out_by_filters", count=left_out.total(), by=dict(left_out))
        found = measure_prompts(self._config, self._task, "train", lengths)
        if found is None:
            return
        log.info("prompts_looked_through", prompts=found.num_prompts, seconds=round(time.monotonic() - began, 1))
        if not found.too_long:
            return
        if self._config.task.overlong == "refuse" or found.leaves_none:
            raise PromptTooLong(f"task {self._config.task.name}: {found.problem()}: {found.remedy()}")
        log.warning(
            "overlong_prompts_left_out",
            count=len(found.too_long),
            of=found.num_prompts,
            where=found.describe(),
            room=found.room.tokens,
        )

    def _lengths(self, prompts: Sequence[Text]) -> list[int]:
        return [len(self._encode(prompt)) for prompt in prompts]
