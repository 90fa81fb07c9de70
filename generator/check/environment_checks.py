"""An environment, in a real child with its deadline: it begins, it answers, and its words become tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vcppo.common.check.check_lines import Result, failed, passed, skipped, warned
from vcppo.common.environments.environment import Observation
from vcppo.common.environments.told import Told, one_turn
from vcppo.common.environments.turn_text import TurnText
from vcppo.common.rewards.reward_rule import NO_VERDICT
from vcppo.common.tasks import Problem, TaskError, Verdict
from vcppo.generator.check.data_context import Context
from vcppo.generator.check.reward_source_checks import asked_once
from vcppo.generator.turns.agent_pool import AgentPool
from vcppo.generator.turns.environment_lines import Answer
from vcppo.generator.turns.environment_pool import EnvironmentPool, RolloutLost

_ACTIONS = ("", "an action that means nothing", "\\boxed{" * 1000, "{" * 10_000)


class _Tried(NamedTuple):
    begun: Answer
    answers: list[Answer]
    seconds: list[float]


def answers(context: Context, problems: list[Problem]) -> Iterator[Result]:
    """All of it, in one child started once, as generators do."""
    config, is_agent = context.config.task.model_copy(update={"verifier_processes": 1}), context.task.is_agent
    pool = AgentPool(config) if is_agent else EnvironmentPool(config)
    with asyncio.Runner() as runner:
        try:
            runner.run(pool.start())
            yield passed(f"a child of the {'agent' if is_agent else 'environment'} is up")
            encoder = TurnText(context.tokenizer, is_chat=is_agent or pool.is_chat, template=pool.template)
            tried = [runner.run(_try(pool, problem, () if is_agent else _ACTIONS)) for problem in problems]
            yield _begun(context, tried)
            if is_agent:
                yield skipped("run: it needs a policy to ask: `vcppo check --generate 4`")
            else:
                yield _answered(context, encoder, tried)
            yield from runner.run(_graded(context, pool, problems[0]))
        except TaskError as error:
            yield failed(str(error), "")
        finally:
            runner.run(pool.close())


async def _try(pool: EnvironmentPool, problem: Problem, actions: Sequence[str]) -> _Tried:
    """A rollout whose actions mean nothing, until the environment ends it."""
    found = _Tried(Answer(Observation(), "crash", "its child was lost"), [], [])
    try:
        async with pool.open() as session:
            found = found._replace(begun=await session.reset(dict(problem.answer)))
            for action in actions:
                if found.begun.fault is not None:
                    break
                began = time.monotonic()
                found.answers.append(await session.step(action))
                found.seconds.append(time.monotonic() - began)
                if found.answers[-1].fault is not None or found.answers[-1].observation.done:
                    break
    except RolloutLost:
        return found
    return found


def _begun(context: Context, tried: list[_Tried]) -> Result:
    wrong = [f"{_place(context, i)} ({each.begun.detail})" for i, each in enumerate(tried) if each.begun.fault]
    text = f"reset: {len(tried) - len(wrong)} of {len(tried)} problems begin"
    if wrong:
        return failed(
            f"{text}; not: {', '.join(wrong[:3])}", "prompts of such problems would be rejected: mend reset()"
        )
    return passed(text)


def _answered(context: Context, encoder: TurnText, tried: list[_Tried]) -> Result:
    steps = [(answer, seconds) for each in tried for answer, seconds in zip(each.answers, each.seconds, strict=True)]
    if not steps:
        return failed("step: no problem begins, so none was asked", "mend reset()")
    faults = [answer.detail for answer, _ in steps if answer.fault is not None]
    lengths = [
        len(encoder.encode(answer.observation.content, -1))
        for answer, _ in steps
        if answer.fault is None and not answer.observation.done
    ]
    mean = 1000 * sum(seconds for _, seconds in steps) / len(steps)
    text = f"step: {len(steps)} actions that mean nothing, {mean:.0f} ms on average"
    text += f", {max(lengths)} tokens at most" if lengths else ", none goes on"
    if faults:
        return failed(f"{text}; {len(faults)} end in a fault: {faults[0]}", "any text may come: mend step()")
    if lengths and max(lengths) >= (most := context.config.sampling.max_response_tokens):
        return warned(text, f"that leaves no room for another turn: raise sampling.max_response_tokens = {most}")
    if any(answer.observation.reward > 0 for answer, _ in steps):
        return warned(f"{text}; one of them has a reward above 0", "is it meant to be? else mend step()")
    return passed(text)


async def _graded(context: Context, pool: EnvironmentPool, problem: Problem) -> list[Result]:
    """What reward functions and a source say of a rollout that means nothing; nothing where there are none."""
    config, found = context.config, list[Result]()
    prompt = problem.prompt if isinstance(problem.prompt, str) else str(problem.prompt)
    told = Told.of(prompt, [_ACTIONS[1]], one_turn(prompt, _ACTIONS[1]))
    verdict = await pool.graded(Verdict("wrong", None, 0.0), problem.answer, "stop", told)
    if verdict.outcome in NO_VERDICT:
        found.append(failed(f"reward functions: any text may come, and one is a {verdict.outcome}",
                            "mend the function: see its error above"))  # fmt: skip
    elif verdict.components:
        parts = ", ".join(f"{name} {value:g}" for name, value in verdict.components.items())
        found.append(passed(f"reward functions, of a turn that means nothing: {parts}"))
    if config.task.reward_source is not None and verdict.outcome not in NO_VERDICT:
        found.append(await asked_once(config, problem, told.response, verdict, turns=(0.0,)))
    return found


def _place(context: Context, number: int) -> str:
    return context.task.where(context.split, 0, number)
