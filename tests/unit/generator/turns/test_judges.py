"""Evaluation and checks with an environment: a rollout is a response, judged by its steps."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.environments.environment import Observation
from vcppo.common.environments.look_up import LookUp
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.rewards.reward_rule import Score
from vcppo.common.tasks import TaskError, Verdict, encode_prompt, load_task
from vcppo.generator.evaluation.continue_responses import continue_responses
from vcppo.generator.reward_sources.items import Asked
from vcppo.generator.turns.judges import Judged, Respondent, make_judges
from vcppo.generator.vllm_engine.engine import Rollout

TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=LookUp().tokenizer(), eos_token="<eos>", pad_token="<pad>")
EOS = int(TOKENIZER.eos_token_id)


class Copying:
    """Says the prompt's last token, or the one before an EOS, once more."""

    def __init__(self, shift: int) -> None:
        self.shift, self.seeds = shift, list[int]()

    def turns(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def generate(self, prompt: Prompt, hear: Any = None, *, turns: Any = None) -> Rollout:
        self.seeds.append(prompt.seed)
        first = len(self.seeds) == 1
        tokens = np.asarray([prompt.token_ids[-1] + (0 if first else self.shift), EOS], np.int32)
        return Rollout(tokens, np.zeros(2, np.float32), (VersionSpan(0, 2),), "stop", 0.01, end_ids=(EOS,))


def respond(shift: int) -> tuple[Judged, list[int]]:
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "task": {"name": "look_up"}})
    answer: dict[str, Any] = {"letter": "B", "digits": "123456"}
    prompt = Prompt("eval-1-0", "eval-1", 0, "t", encode_prompt(TOKENIZER, "000?B"), answer, 7, 0, "rl", 12)
    engine: Any = Copying(shift)

    async def main() -> Judged:
        judges = make_judges(config.task)
        await judges.start()
        try:
            return await Respondent(config, engine, judges, TOKENIZER).respond(prompt)
        finally:
            await judges.close()

    return asyncio.run(main()), engine.seeds


def test_a_rollout_is_a_response() -> None:
    made, seeds = respond(0)
    assert made.text == "B<eos>22" and made.num_tokens == 4 and made.finish_reason == "stop"
    assert (made.verdict.outcome, made.verdict.reward) == ("correct", 1.0)
    assert seeds[0] == 7 and seeds[1] not in (7, 0) and seeds == respond(0)[1]
    wrong, _ = respond(1)
    assert (wrong.text, wrong.verdict.outcome, wrong.verdict.reward) == ("B<eos>23", "wrong", 0.0)


@pytest.mark.parametrize("gives_outcomes", [True, False])
def test_a_source_that_gives_outcomes_replaces_the_verifier_s(gives_outcomes: bool) -> None:
    asked: list[Asked] = []

    async def score(item: Asked) -> Score:
        asked.append(item)
        return Score("correct", 0.5, {})

    async def verify(answer: Any, text: str, finish_reason: str, messages: Any) -> Verdict:
        return Verdict("wrong", text)

    async def main() -> Judged:
        config = VcppoConfig.model_validate({"model": {"path": "m"}})
        engine, judges = Copying(0), SimpleNamespace(verify=verify)
        source = SimpleNamespace(gives_outcomes=gives_outcomes, score=score)
        prompt = Prompt("eval-1-0", "eval-1", 0, "t", encode_prompt(TOKENIZER, "00?B"), {"a": 1}, 7, 0, "rl", 12)
        return await Respondent(config, engine, judges, TOKENIZER, source).respond(prompt)  # type: ignore[arg-type]

    made = asyncio.run(main())
    assert made.verdict == Verdict("correct" if gives_outcomes else "wrong", "B")
    told = [("eval-1-0", "00?B", {"a": 1}, "B", "stop", 2, Verdict("wrong", "B"), None, None)]
    assert asked == (told if gives_outcomes else [])


def test_the_smallest_environment() -> None:
    task = load_task(TaskConfig(name="look_up", options={"num_letters": 3}))
    assert isinstance(task, LookUp)
    train, held_out = ({each.prompt for each in task.problems(split, 0, 0, 300)} for split in ("train", "held_out"))  # type: ignore[arg-type]
    assert not train & held_out
    assert task.problems("train", 3, 5, 2) == task.problems("train", 3, 0, 7)[5:]
    first, last = task.demonstrations(0, 2, {})
    assert first.response in "ABC" and str(first.prompt)[-1] == first.response
    assert str(last.prompt).endswith(f"<eos>{last.response}") and last.response.isdigit()
    task.reset({"letter": "B", "digits": "123"})
    assert task.step("D").done and task.step("2") == task.step("D")  # a letter that is none ends it
    task.reset({"letter": "B", "digits": "123"})
    assert task.step("C").content == "3" and task.step("3").reward == 0.0
    task.reset({"letter": "B", "digits": "123"})
    assert task.step("B").content == "2" and task.step("2") == Observation(reward=1.0, done=True)


def test_what_can_not_be_yet_is_refused_by_name() -> None:
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "task": {"name": "look_up"}})
    with pytest.raises(TaskError, match="vcppo explainable needs a task of one turn"):
        continue_responses(config, Namespace())
    with pytest.raises(TaskError, match="look_up is an environment, which a mix can't hold"):
        load_task(TaskConfig(name="mix", options={"sources": [{"name": "look_up", "weight": 1}]}))
