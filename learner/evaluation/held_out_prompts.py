"""The prompts of one evaluation during training, and what their answers come to. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.eval_samples import problem_keys
from vcppo.common.evaluation.held_out import HeldOut, sample_seed
from vcppo.common.evaluation.pass_at_k import pass_figures
from vcppo.common.records.ids import MAX_EVALUATED, make_evaluation_number, make_group_id, make_prompt_id
from vcppo.common.records.trajectory import Int32Array, Prompt, Trajectory
from vcppo.common.tasks import Text
from vcppo.common.tasks.interface import TaskError

Encode = Callable[[Text], Int32Array]
"""Text or chat messages → token ids ``[P]`` int32."""


class Asked(NamedTuple):
    """A held-out problem as it is asked: the same in every evaluation of a run. ``task``: or benchmark it is of."""

    task: str
    token_ids: Int32Array
    answer: dict[str, object]
    key: str


class HeldOutPrompts:
    """Makes the prompts of a version. The seed of a sample depends on problem and number only, so that versions are
    compared on the same draws, and with what `vcppo eval` asks.

    Args:
        held_out: problems by name: the task's own first, under the task's name, then those of benchmarks.
        is_open: an agent makes prompts of its own of the task's.
    """

    def __init__(self, config: VcppoConfig, held_out: Mapping[str, HeldOut], encode: Encode, *, is_open: bool) -> None:
        self._config, self._is_open, self._own = config, is_open, next(iter(held_out))
        self._asked = [
            Asked(name, encode(problem.prompt), problem.answer, key)
            for name, found in held_out.items()
            for problem, key in zip(found.problems, problem_keys(found.problems), strict=True)
        ]
        if len(self._asked) >= MAX_EVALUATED:
            raise TaskError(
                f"eval.benchmarks: {len(self._asked):,} held-out problems in all, fewer than {MAX_EVALUATED:,} can be"
                " asked: lower eval.num_problems_during_training"
            )

    def of(self, version: int) -> list[Prompt]:
        """Of all problems the first sample, then of all the second one, and so on."""
        samples = range(self._config.eval.samples_per_problem)
        return [self._prompt(version, number, sample) for sample in samples for number in range(len(self._asked))]

    def figures(self, version: int, answers: Iterable[Trajectory]) -> dict[str, Any] | None:
        """What a version's answers come to, as a row of `vcppo.common.evaluation.on_the_way`; None without any problem
        of the task's own of which all samples are there. The figures of benchmarks are under ``benchmarks``, by name.

        A problem of which a sample was given up is left out and counted: its other samples were drawn as they would
        have been, but pass@k of fewer is another figure. So is an answer to another prompt: the held-out problems were
        changed in the middle of it.
        """
        numbers = {make_group_id("evaluation", make_evaluation_number(version, n)): n for n in range(len(self._asked))}
        by_problem: dict[int, list[Trajectory]] = {}
        for answer in answers:
            number = numbers.get(answer.group_id)
            if number is not None and self._is_of(answer, number):
                by_problem.setdefault(number, []).append(answer)
        by_task = {task: self._of_task(task, by_problem) for task in dict.fromkeys(asked.task for asked in self._asked)}
        own = by_task.pop(self._own)
        if own is None:
            return None
        made = [conversation for found in by_problem.values() for each in found for conversation in each.conversations]
        spans = {span.version for conversation in made for span in conversation.version_spans}
        benchmarks = {task: figures for task, figures in by_task.items() if figures is not None}
        return {"version": version, **own, "benchmarks": benchmarks, "versions_seen": sorted(spans)}

    def _of_task(self, task: str, by_problem: Mapping[int, list[Trajectory]]) -> dict[str, Any] | None:
        settings = self._config.eval
        asked = [number for number, each in enumerate(self._asked) if each.task == task]
        whole = {n: by_problem[n] for n in asked if len(by_problem.get(n, ())) == settings.samples_per_problem}
        if not whole:
            return None
        counts = [(len(found), sum(each.outcome == "correct" for each in found)) for _, found in sorted(whole.items())]
        every = [each for found in whole.values() for each in found]
        return {
            **pass_figures(counts, settings.k, settings.seed),
            "num_problems": len(whole),
            "num_lost": len(asked) - len(whole),
            "num_samples": len(every),
            "mean_reward": float(np.mean([each.reward for each in every])),
            "mean_length": float(np.mean([each.num_actions for each in every])),
            "truncated_fraction": sum(each.finish_reason == "length" for each in every) / len(every),
            "outcomes": dict(Counter(each.outcome for each in every)),
        }

    def _prompt(self, version: int, number: int, sample: int) -> Prompt:
        config, asked = self._config, self._asked[number]
        group_id = make_group_id("evaluation", make_evaluation_number(version, number))
        return Prompt(
            id=make_prompt_id(group_id, sample),
            group_id=group_id,
            sample_index=sample,
            task=asked.task,
            token_ids=asked.token_ids,
            answer=asked.answer,
            seed=sample_seed(config.eval.seed, asked.key, sample),
            issue_version=version,
            purpose="evaluation",
            max_response_tokens=config.sampling.max_response_tokens,
            is_open=self._opens(asked),
        )

    def _opens(self, asked: Asked) -> bool:
        return self._is_open and asked.task == self._own

    def _is_of(self, answer: Trajectory, number: int) -> bool:
        asked = self._asked[number]
        is_same = self._opens(asked) or np.array_equal(answer.prompt_token_ids, asked.token_ids)
        return answer.task == asked.task and is_same


def metrics_of(row: Mapping[str, Any]) -> dict[str, float | int | str]:
    """The row's numbers by the names of `vcppo.common.telemetry.metric_names`."""
    low, high = row["pass_at_1_interval"]
    found: dict[str, float | int | str] = {
        "stage": "evaluation",
        "eval/accuracy": row["pass_at_1"],
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/mean_reward": row["mean_reward"],
        "eval/mean_length": row["mean_length"],
        "eval/truncated_fraction": row["truncated_fraction"],
        "eval/num_problems": row["num_problems"],
        "eval/num_lost": row["num_lost"],
        "eval/seconds": row["seconds"],
        "eval/stall_seconds": row["stall_seconds"],
    }
    if row["k"] > 1:
        low, high = row["pass_at_k_interval"]
        found |= {"eval/pass_at_k": row["pass_at_k"], "eval/pass_at_k_low": low, "eval/pass_at_k_high": high}
    for name, figures in row["benchmarks"].items():
        low, high = figures["pass_at_1_interval"]
        of = {"accuracy": figures["pass_at_1"], "accuracy_low": low, "accuracy_high": high}
        found |= {f"eval/{name}/{figure}": value for figure, value in of.items()}
    return found
