"""The prompts a run issues: prompt number i of a stage is a pure function of (config, purpose, i).

So a resumed run issues exactly the continuation, and issuing again after a crash (the index is stored after
the prompts are) is recognised by the store: the ids are the same.

    index i  →  group i // group_size, sample i % group_size  →  id ``rl-00000012-3``
    problem  =  task.problems("train", seed of the purpose, group, 1)
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Protocol

from common.config import VcppoConfig
from common.errors import VcppoError
from common.prompt_ids import PURPOSE_PREFIX, group_name, prompt_name
from common.tasks import Problem, Task
from common.trajectory import Int32Array, Prompt, Purpose

MAX_SAMPLES_PER_SLOT = 16  # a group is topped up until it has used this many times its size


class PromptTooLong(VcppoError):
    """A task's prompt does not fit the engine."""


class PromptEncoder(Protocol):
    """Text or chat messages → token ids ``[P]`` int32."""

    def __call__(self, prompt: object) -> Int32Array: ...


class PromptSource:
    """Makes prompts by number; keeps no position (the loop does, in the store and in checkpoints)."""

    def __init__(self, config: VcppoConfig, task: Task, encode: PromptEncoder) -> None:
        self._config = config
        self._task = task
        self._encode = encode
        self._group_size = config.rl.group_size

    @property
    def task(self) -> Task:
        return self._task

    def problems_digest(self, count: int) -> str:
        """Of the first `count` problems of value pretraining, answers included: other data make another one."""
        found = blake2b(digest_size=16)
        for group in range(count):
            problem = self._problem("value_pretraining", group)
            found.update(json.dumps([problem.prompt, problem.answer], sort_keys=True, default=str).encode())
        return found.hexdigest()

    def prompts(self, purpose: Purpose, start: int, count: int, issue_version: int) -> list[Prompt]:
        """Prompts number ``start … start + count - 1``."""
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
        prefix, group = group_id.rsplit("-", 1)
        purpose = next(purpose for purpose, known in PURPOSE_PREFIX.items() if known == prefix)
        return self._make(purpose, int(group), self._group_size + attempt, issue_version)

    def _make(self, purpose: Purpose, group: int, sample: int, issue_version: int) -> Prompt:
        problem = self._problem(purpose, group)
        token_ids = self._encode(problem.prompt)
        self._check_length(token_ids)
        group_id = group_name(purpose, group)
        return Prompt(
            id=prompt_name(group_id, sample),
            group_id=group_id,
            sample_index=sample,
            task=self._config.task.name,
            token_ids=token_ids,
            problem=problem.answer,
            seed=derive_seed(self._config.run.seed, purpose, group, sample),
            issue_version=issue_version,
            purpose=purpose,
            max_response_tokens=self._config.sampling.max_response_tokens,
        )

    def _problem(self, purpose: Purpose, group: int) -> Problem:
        (problem,) = self._task.problems("train", derive_seed(self._config.run.seed, purpose), group, 1)
        return problem

    def _check_length(self, token_ids: Int32Array) -> None:
        longest = len(token_ids) + self._config.sampling.max_response_tokens
        limits = {
            "generator.max_model_len": self._config.generator.max_model_len,
            "learner.micro_batch_tokens": self._config.learner.micro_batch_tokens,
        }
        for name, limit in limits.items():
            if longest > limit:
                raise PromptTooLong(
                    f"a prompt of {len(token_ids)} tokens and sampling.max_response_tokens = "
                    f"{self._config.sampling.max_response_tokens} need {longest} tokens, but {name} = {limit}: raise it"
                )


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part; parts never collide by concatenation."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
