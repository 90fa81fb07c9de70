"""Responses continued anew: from their own tokens, judged whole, each with a seed of its own, and none made twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.continuations import ContinuationFiles, Wanted
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.tasks import Problem, Verdict
from vcppo.common.tasks.interface import TaskError
from vcppo.generator.evaluation.continue_responses import Continuer, problems_with_room
from vcppo.generator.vllm_engine.engine import EngineError, Rollout
from vcppo.generator.vllm_engine.stop_strings import StopStrings

PROBLEMS = [(number, Problem(f"Question {number}", {"reference": str(number)})) for number in range(3)]
WANTED = Wanted(num_responses=3, positions=(0, 2, 9), num_continuations=4)
LENGTH = 5
PROMPT = 3  # tokens: one a word and one more


class Tokenizer:
    chat_template = None
    eos_token_id = 1

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, Any]:
        return {"input_ids": [7] * (1 + len(text.split()))}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def log_probs_of(tokens: Any) -> Any:
    return (-np.asarray(tokens) / 1e5).astype(np.float32)


class FakeEngine:
    """Goes on to LENGTH response tokens, each drawn by the request's seed; dies after `lives` rollouts."""

    def __init__(self, lives: int = 10**9) -> None:
        self.lives, self.asked = lives, list[tuple[Prompt, int]]()

    async def generate(self, prompt: Prompt, *, num_begun: int = 0) -> Rollout:
        if len(self.asked) >= self.lives:
            raise EngineError("vLLM's engine died: out of memory")
        self.asked.append((prompt, num_begun))
        tokens = np.random.default_rng(prompt.seed).integers(10, 10**6, LENGTH - num_begun).astype(np.int32)
        return Rollout(tokens, log_probs_of(tokens), (VersionSpan(0, len(tokens)),), "stop", 0.01)


class FakeVerifiers:
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def verify(self, answer: Any, text: str, finish_reason: str, messages: Any) -> Verdict:
        self.seen.append(text)
        return Verdict("correct" if int(text.split()[-1]) % 2 else "wrong", text)


def config_of(folder: Path, **task: Any) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {
            "run": {"folder": folder},
            "model": {"path": "m"},
            "sampling": {"max_response_tokens": 16},
            "task": {"reward_wrong": -0.5, **task},
        }
    )


def run(
    folder: Path, engine: FakeEngine, verifiers: FakeVerifiers, wanted: Wanted = WANTED, **task: Any
) -> ContinuationFiles:
    files = ContinuationFiles(folder, "plan")
    continuer = Continuer(config_of(folder, **task), engine, verifiers, Tokenizer(), files, wanted)  # type: ignore[arg-type]
    asyncio.run(continuer.run(PROBLEMS))
    return files


def test_each_prefix_is_continued_to_an_end_of_its_own_and_judged_with_it(tmp_path: Path) -> None:
    engine, verifiers = FakeEngine(), FakeVerifiers()
    found = run(tmp_path, engine, verifiers).read()
    assert found.is_complete(WANTED)
    assert len(engine.asked) == len(PROBLEMS) * (1 + 2 * 4)  # nothing at 9: responses have 5 tokens
    assert len({prompt.seed for prompt, _ in engine.asked}) == len(engine.asked)
    for each in found.responses.values():
        assert each.log_probs == pytest.approx(log_probs_of(each.tokens).tolist())
    for prompt, num_begun in engine.asked:
        number = int(prompt.group_id.removeprefix("eval-").split("-")[0])
        whole = found.responses[number]
        assert prompt.token_ids.tolist() == [7] * PROMPT + whole.tokens[:num_begun]
        assert prompt.max_response_tokens == 16 - num_begun
    texts = {" ".join(map(str, each.tokens[:2])) for each in found.responses.values()}
    assert sum(text.rsplit(" ", 3)[0] in texts for text in verifiers.seen) == len(PROBLEMS) * (1 + 4)
    rewards = {(each.outcome, each.reward) for each in found.continuations.values()}
    assert rewards == {("correct", 1.0), ("wrong", -0.5)}
    assert {each.length for each in found.continuations.values() if each.position == 2} == {LENGTH - 2}


def test_killed_in_the_middle_only_what_is_missing_is_made_and_it_is_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", FakeEngine(), FakeVerifiers()).read()
    first, second = FakeEngine(lives=11), FakeEngine()
    with pytest.raises(EngineError, match="out of memory"):
        run(tmp_path, first, FakeVerifiers())
    found = run(tmp_path, second, FakeVerifiers()).read()
    assert found == whole
    asked = [prompt.id for prompt, _ in (*first.asked, *second.asked)]
    assert len(asked) <= 27 + 8  # judged but not written down when it died: at most what was in flight
    assert len(second.asked) < 27
    third = FakeEngine()
    assert run(tmp_path, third, FakeVerifiers()).read() == whole and not third.asked
    more = FakeEngine()
    again = run(tmp_path, more, FakeVerifiers(), WANTED._replace(positions=(0, 2, 3), num_continuations=4)).read()
    assert {num_begun for _, num_begun in more.asked} == {3} and len(more.asked) == 12
    assert again.responses == whole.responses


def test_a_rollout_that_was_broken_off_is_said_and_not_taken_for_one(tmp_path: Path) -> None:
    class Aborting(FakeEngine):
        async def generate(self, prompt: Prompt, *, num_begun: int = 0) -> Rollout:
            return Rollout(np.zeros(0, np.int32), np.zeros(0, np.float32), (), "abort", 0.01)

    with pytest.raises(EngineError, match="broke eval-0-0 off"):
        run(tmp_path, Aborting(), FakeVerifiers())


def test_a_prompt_without_room_is_left_out_once_and_all_of_them_are_refused(tmp_path: Path) -> None:
    class Long(Tokenizer):
        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, Any]:
            return {"input_ids": [7] * (10**6 if self.is_long(text) else 3)}

        def __init__(self, every: bool) -> None:
            self.every, self.seen = every, dict[str, bool]()

        def is_long(self, text: str) -> bool:
            return self.every or self.seen.setdefault(text, not self.seen)

    files = ContinuationFiles(tmp_path, "plan")
    config, tokenizer = config_of(tmp_path), Long(every=False)
    for _ in range(2):
        found = problems_with_room(config, tokenizer, files.read(), files, range(4))
        assert [number for number, _ in found] == [1, 2, 3]
    assert set(files.read().left_out) == {0}
    assert len((tmp_path / "plan.0.jsonl").read_text().splitlines()) == 1
    with pytest.raises(TaskError, match="all 2 problems are longer than"):
        problems_with_room(config, Long(every=True), files.read(), files, range(2))


def test_a_stop_string_that_began_in_the_prefix_ends_the_continuation() -> None:
    class Letters:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    text = [ord(letter) for letter in "abSTxOP"]
    watcher = StopStrings(Letters(), ["STOP"], [ord(letter) for letter in "xxST"])
    assert watcher.update([ord("O"), ord("P"), ord("q")], False) == "STOP"
    assert watcher.output_token_ids == [ord("O"), ord("P")]  # vLLM counts its own tokens
    assert StopStrings(Letters(), ["STOP"], text[:5]).update(text[5:], False) is None


def test_the_reward_of_a_continuation_is_that_of_the_whole_response(tmp_path: Path) -> None:
    """A cost of length counts the prefix too: every response and every continuation has LENGTH tokens in all."""
    found = run(tmp_path, FakeEngine(), FakeVerifiers(), length_cost=0.125).read()
    made = [*found.responses.values(), *found.continuations.values()]
    cost = 0.125 * LENGTH
    assert {(each.outcome, each.reward) for each in made} == {("correct", 1.0 - cost), ("wrong", -0.5 - cost)}
