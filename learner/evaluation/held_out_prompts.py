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
from vcppo.common.records.ids import make_evaluation_number, make_group_id, make_prompt_id
from vcppo.common.records.trajectory import Int32Array, Prompt, Trajectory
from vcppo.common.tasks import Text

Encode = Callable[[Text], Int32Array]
"""Text or chat messages → token ids ``[P]`` int32."""


class Asked(NamedTuple):
    """A held-out problem as it is asked: the same in every evaluation of a run."""

    token_ids: Int32Array
    answer: dict[str, object]
    key: str


class HeldOutPrompts:
    """Makes the prompts of a version. The seed of a sample depends on problem and number only, so that versions are
    compared on the same draws, and with what `vcppo eval` asks.

    Args:
        is_open: an agent makes prompts of its own of them.
    """

    def __init__(self, config: VcppoConfig, held_out: HeldOut, encode: Encode, *, is_open: bool) -> None:
        keys = problem_keys(held_out.problems)
        self._config, self._is_open = config, is_open
        self._asked = [
            Asked(encode(problem.prompt), problem.answer, key)
            for problem, key in zip(held_out.problems, keys, strict=True)
        ]

    def of(self, version: int) -> list[Prompt]:
        """Of all problems the first sample, then of all the second one, and so on."""
        samples = range(self._config.eval.samples_per_problem)
        return [self._prompt(version, number, sample) for sample in samples for number in range(len(self._asked))]

    def figures(self, version: int, answers: Iterable[Trajectory]) -> dict[str, Any] | None:
        """What a version's answers come to, as a row of `vcppo.common.evaluation.on_the_way`; None without any problem
        of which all samples are there.

        A problem of which a sample was given up is left out and counted: its other samples were drawn as they would
        have been, but pass@k of fewer is another figure. So is an answer to another prompt: the held-out problems were
        changed in the middle of it.
        """
        settings = self._config.eval
        numbers = {make_group_id("evaluation", make_evaluation_number(version, n)): n for n in range(len(self._asked))}
        by_problem: dict[int, list[Trajectory]] = {}
        for answer in answers:
            number = numbers.get(answer.group_id)
            if number is not None and (self._is_open or self._is_of(answer, number)):
                by_problem.setdefault(number, []).append(answer)
        whole = {n: found for n, found in by_problem.items() if len(found) == settings.samples_per_problem}
        if not whole:
            return None
        counts = [(len(found), sum(each.outcome == "correct" for each in found)) for _, found in sorted(whole.items())]
        every = [each for found in whole.values() for each in found]
        spans = {span.version for each in every for span in each.version_spans}
        return {
            "version": version,
            **pass_figures(counts, settings.k, settings.seed),
            "num_problems": len(whole),
            "num_lost": len(self._asked) - len(whole),
            "num_samples": len(every),
            "mean_reward": float(np.mean([each.reward for each in every])),
            "mean_length": float(np.mean([np.count_nonzero(each.action_mask) for each in every])),
            "truncated_fraction": sum(each.finish_reason == "length" for each in every) / len(every),
            "outcomes": dict(Counter(each.outcome for each in every)),
            "versions_seen": sorted(spans),
        }

    def _prompt(self, version: int, number: int, sample: int) -> Prompt:
        config, asked = self._config, self._asked[number]
        group_id = make_group_id("evaluation", make_evaluation_number(version, number))
        return Prompt(
            id=make_prompt_id(group_id, sample),
            group_id=group_id,
            sample_index=sample,
            task=config.task.name,
            token_ids=asked.token_ids,
            answer=asked.answer,
            seed=sample_seed(config.eval.seed, asked.key, sample),
            issue_version=version,
            purpose="evaluation",
            max_response_tokens=config.sampling.max_response_tokens,
            is_open=self._is_open,
        )

    def _is_of(self, answer: Trajectory, number: int) -> bool:
        return np.array_equal(answer.prompt_token_ids, self._asked[number].token_ids)


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
    return found
