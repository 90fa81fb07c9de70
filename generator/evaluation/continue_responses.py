"""Responses of a policy to training problems, each continued anew from given positions and judged: for the explainable
variance (`vcppo.common.evaluation.explainable_variance`).

    python -m vcppo.generator.evaluation.continue_responses --config FILE --model DIR --weights NAME --folder DIR
                   --positions 0,8,40 --responses 64 --continuations 8 [--worker 0 --num-workers 2]

Each response and each continuation goes to disk as it is done (`vcppo.common.evaluation.continuations`), and what is
there is not made again. Of W workers, number w takes every W-th problem. Sampling is that of RL, not of evaluations.
Problems are of the training split, in an order of their own: those of an endless task are none that were trained on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.continuations import (
    Continuation,
    ContinuationFiles,
    Continued,
    LeftOut,
    Response,
    Wanted,
)
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.evaluation.evaluation_inputs import continuation_inputs
from vcppo.common.process import watchdog
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.records.ids import make_evaluation_group_id, make_process_name, make_prompt_id
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Prompt
from vcppo.common.rewards.reward_rule import Score
from vcppo.common.tasks import Problem, decode_response, encode_prompt, load_task, task_class
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.lengths import prompt_room
from vcppo.generator.evaluation.judged_engine import judged_engine, together
from vcppo.generator.reward_sources.source import RewardSource
from vcppo.generator.verifying.scorer import Scorer
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.generator.vllm_engine.end_tokens import load_tokenizer
from vcppo.generator.vllm_engine.engine import Engine, EngineError, Rollout
from vcppo.generator.vllm_engine.stop_strings import judged_text

log = structlog.get_logger(__name__)

_SEEDS = "explainable"
_Tokens = list[int]


class _Judged(NamedTuple):
    rollout: Rollout
    score: Score


class Continuer:
    """Makes responses and continuations, and writes each down. Make it, ``await run(...)``."""

    def __init__(
        self,
        config: VcppoConfig,
        engine: Engine,
        verifiers: VerifierPool,
        tokenizer: Any,
        files: ContinuationFiles,
        wanted: Wanted,
        rewards: RewardSource | None = None,
    ) -> None:
        self._config = config
        self._engine, self._tokenizer = engine, tokenizer
        self._scorer = Scorer(config, verifiers, rewards)
        self._files, self._wanted = files, wanted
        self._there = files.read()
        self._places = asyncio.Semaphore(config.generator.max_in_flight)
        self._num_made = 0

    async def run(self, problems: Sequence[tuple[int, Problem]]) -> None:
        """All that is missing of these (number, problem). Raises VcppoError, the first of vLLM or a verifier."""
        await together(self._response_of(number, problem, len(problems)) for number, problem in problems)

    async def _response_of(self, number: int, problem: Problem, of: int) -> None:
        response = self._there.responses.get(number) or await self._respond(number, problem)
        self._there.add(response)
        missing = self._there.missing_of(number, self._wanted)
        await together(self._continue(problem, response, *each) for each in missing)
        self._num_made += 1
        if self._num_made % max(1, of // 10) == 0:
            log.info("continuations_progress", responses=self._num_made, of=of)

    async def _respond(self, number: int, problem: Problem) -> Response:
        prompt = encode_prompt(self._tokenizer, problem.prompt).tolist()
        seed = derive_seed(self._config.run.seed, _SEEDS, number)
        rollout, score = await self._judged(f"{number}", problem, prompt, [], seed)
        response = Response(
            problem=number,
            prompt=prompt,
            tokens=rollout.token_ids.tolist(),
            outcome=score.outcome,
            reward=score.reward,
            finish_reason=rollout.finish_reason,
            log_probs=rollout.log_probs.tolist(),
        )
        self._files.add(response)
        return response

    async def _continue(self, problem: Problem, response: Response, position: int, sample: int) -> None:
        name = f"{response.problem}-{position}-{sample}"
        seed = derive_seed(self._config.run.seed, _SEEDS, response.problem, position, sample)
        begun = response.tokens[:position]
        rollout, score = await self._judged(name, problem, response.prompt, begun, seed)
        self._files.add(
            Continuation(
                problem=response.problem,
                position=position,
                sample=sample,
                outcome=score.outcome,
                reward=score.reward,
                length=len(rollout.token_ids),
            )
        )

    async def _judged(self, name: str, problem: Problem, prompt: _Tokens, begun: _Tokens, seed: int) -> _Judged:
        """Go on after `prompt` and the `begun` response, and judge the whole response."""
        sampling = self._config.sampling
        group_id = make_evaluation_group_id(name)
        request = Prompt(
            id=make_prompt_id(group_id, 0),
            group_id=group_id,
            sample_index=0,
            task=self._config.task.name,
            token_ids=np.array([*prompt, *begun], np.int32),
            answer=problem.answer,
            seed=seed,
            issue_version=0,
            purpose="rl",
            max_response_tokens=sampling.max_response_tokens - len(begun),
        )
        async with self._places:
            rollout = await self._engine.generate(request, num_begun=len(begun))
            if rollout.finish_reason == "abort" or not len(rollout.token_ids):
                raise EngineError(f"vLLM broke {request.id} off: start the command again, and it goes on from here")
            text = decode_response(self._tokenizer, [*begun, *rollout.token_ids.tolist()], rollout.end_ids)
            judged = judged_text(text, rollout.stop_string, sampling.stop_in_text)
            num_tokens = len(begun) + len(rollout.token_ids)
            score = await self._scorer.score(
                problem.answer, judged, rollout.finish_reason, num_tokens,
                lambda: (request.id, str(self._tokenizer.decode(prompt))),
            )  # fmt: skip
        watchdog.stage("continue", waiting_for=["vLLM", "verifier"])
        return _Judged(rollout, score)


def problems_with_room(
    config: VcppoConfig, tokenizer: Any, there: Continued, files: ContinuationFiles, numbers: Sequence[int]
) -> list[tuple[int, Problem]]:
    """(number, problem) of these numbers; one whose prompt leaves no room is noted down as left out.

    Raises:
        TaskError: a task or data at fault.
    """
    task, room = load_task(config.task), prompt_room(config)
    found: list[tuple[int, Problem]] = []
    for number in numbers:
        (problem,) = problems_of(task, "train", derive_seed(config.run.seed, _SEEDS), number, 1)
        length = len(encode_prompt(tokenizer, problem.prompt))
        if length <= room.tokens:
            found.append((number, problem))
        elif number not in there.left_out:
            files.add(LeftOut(problem=number, tokens=length))
            log.warning("overlong_problem_left_out", problem=number, tokens=length, room=room.tokens)
    if numbers and not found:
        raise TaskError(
            f"task {config.task.name}: the prompts of all {len(numbers)} problems are longer than {room.tokens} tokens"
            f" ({room.field} = {room.limit} less sampling.max_response_tokens = {room.response})"
        )
    return found


async def _make(
    config: VcppoConfig,
    given: argparse.Namespace,
    wanted: Wanted,
    files: ContinuationFiles,
    tokenizer: Any,
    problems: Sequence[tuple[int, Problem]],
) -> None:
    async with judged_engine(config, given.model, config.run.seed) as (engine, verifiers, rewards):
        assert isinstance(verifiers, VerifierPool)
        log.info("continuations_started", responses=len(problems), positions=list(wanted.positions))
        await Continuer(config, engine, verifiers, tokenizer, files, wanted, rewards).run(problems)


def continue_responses(config: VcppoConfig, given: argparse.Namespace) -> None:
    """Make what is missing of this worker's part."""
    if task_class(config.task.name).is_environment:
        raise TaskError(
            f"task.name = {config.task.name}: a rollout of an environment can't be continued from its middle yet, since"
            " its state there is gone: vcppo explainable needs a task of one turn"
        )
    wanted = Wanted(given.responses, given.positions, given.continuations)
    inputs = continuation_inputs(config, given.weights)
    files = ContinuationFiles(given.folder, plan_key(inputs), given.worker)
    files.note_inputs(inputs)
    there = files.read()
    numbers = range(given.worker, wanted.num_responses, given.num_workers)
    tokenizer = load_tokenizer(given.model, config.model.trust_remote_code)
    problems = [
        (number, problem)
        for number, problem in problems_with_room(config, tokenizer, there, files, numbers)
        if number not in there.responses or there.missing_of(number, wanted)
    ]
    if there.responses or there.continuations:
        done = {"responses_there": len(there.responses), "continuations_there": len(there.continuations)}
        log.info("continuations_resumed", **done, unfinished_of_mine=len(problems))
    try:
        if problems:
            asyncio.run(_make(config, given, wanted, files, tokenizer, problems))
    finally:
        files.close()


def _positions(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = process_parser("python -m vcppo.generator.evaluation.continue_responses", "responses, continued anew")
    parser.add_argument("--model", required=True, help="Hugging Face folder or hub id")
    parser.add_argument("--weights", required=True, help="what names these weights in the records")
    parser.add_argument("--folder", type=Path, required=True, help="where the records are")
    parser.add_argument("--positions", type=_positions, required=True)
    parser.add_argument("--responses", type=int, required=True)
    parser.add_argument("--continuations", type=int, required=True)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--num-workers", type=int, default=1)
    given = parser.parse_args(arguments)
    stacks = make_process_name("continue", given.worker)
    return run_process(
        given, "continue", lambda config: continue_responses(config, given),
        stacks=stacks, waiting_for=["vLLM"], holds_run=False,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
