"""The verifier, in a real child with its deadline: a right, a wrong, an empty and hostile answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import NamedTuple

from vcppo.common.check.check_lines import Result, failed, passed, skipped, warned
from vcppo.common.environments.told import one_turn
from vcppo.common.rewards.reward_rule import Score
from vcppo.common.tasks import Problem, Verdict
from vcppo.generator.check.data_context import SEED, Context
from vcppo.generator.check.environment_checks import answers
from vcppo.generator.check.reward_source_checks import asked_once
from vcppo.generator.check.tokenizer_checks import strings_in
from vcppo.generator.verifying.verifier_pool import VerifierPool

NUM_RIGHT = 20
_WRONG = "0.123454321098"
_MAX_REFERENCE = 1000
_NEW_CHILD_SECONDS = 60.0  # of one in place of a killed one; `verify` returns with it
HOSTILE = {
    "a tower of powers": "\\boxed{9^{9^{9^{9^{9}}}}}",
    "10,000 open braces": "\\boxed" + "{" * 10_000,
    "a polynomial of degree 10^6": "\\boxed{(x+1)^{1000000}}",
    "5,000 boxes": "\\boxed{1}" * 5_000,
    "100,000 characters": "a\\frac{1}{" * 10_000,
    "control characters": "\\boxed{\x00\u202e\ud7ff}",
}


class Tried(NamedTuple):
    """A verdict and the seconds it took."""

    verdict: Verdict
    seconds: float


def verdicts(context: Context) -> Iterator[Result]:
    """All of it, in one child started once, as generators do."""
    problems, task = context.problems(NUM_RIGHT), context.config.task
    if not problems:
        yield skipped("no problem to verify an answer to")
        return
    if context.task.is_environment:
        yield from answers(context, problems)
        return
    pool = VerifierPool(task.model_copy(update={"verifier_processes": 1}))
    with asyncio.Runner() as runner:
        try:
            runner.run(pool.start())
            yield passed("a child is up")
            form, line = runner.run(_right(context, pool, problems))
            yield line
            yield runner.run(_not_right(context, pool, problems[0], form))
            yield from runner.run(_rewards(context, pool, problems[0], form))
            if task.reward_source is not None:
                yield runner.run(_from_source(context, pool, problems[0], form))
            yield runner.run(_hostile(context, pool, problems[0], form))
        finally:
            runner.run(pool.close())


async def _right(context: Context, pool: VerifierPool, problems: list[Problem]) -> tuple[str | None, Result]:
    """The problems' own references, in the form this task reads: (form, line)."""
    form = None
    for candidate in forms(context):
        answers = right_answers(problems[0], candidate)
        if any([(await _try(pool, problems[0], answer)).verdict.outcome == "correct" for answer in answers]):
            form = candidate
            break
    if form is None:
        if "reference" in problems[0].answer and not context.task.judged_by:
            return None, failed(
                f"{_place(context, 0)}: its own reference {str(problems[0].answer['reference'])[:60]!r} is not correct",
                "no response can be right: mend the row, or the task's verify()",
            )
        return None, skipped("a right answer: the problem holds no reference that can be written down")
    seconds, wrong = [], []
    for number, problem in enumerate(problems):
        tried = [await _try(pool, problem, answer) for answer in right_answers(problem, form)]
        seconds += [each.seconds for each in tried]
        if not any(each.verdict.outcome == "correct" for each in tried):
            wrong.append(f"{_place(context, number)} ({', '.join(each.verdict.outcome for each in tried)})")
    text = f"right answers: {len(problems) - len(wrong)} of {len(problems)} references are correct, {_times(seconds)}"
    if wrong:
        return form, failed(
            f"{text}; not: {', '.join(wrong[:5])}", "these rows can never be answered: mend or drop them"
        )
    return form, passed(text)


async def _not_right(context: Context, pool: VerifierPool, problem: Problem, form: str | None) -> Result:
    """A wrong answer in the same form, and none at all."""
    form = form or forms(context)[0]
    wrong, empty = (await _try(pool, problem, form.replace("ANSWER", _WRONG))), (await _try(pool, problem, ""))
    text = f"a wrong answer is {wrong.verdict.outcome}, an empty one {empty.verdict.outcome}"
    text += f", {_times([wrong.seconds, empty.seconds])}"
    if "correct" in (wrong.verdict.outcome, empty.verdict.outcome):
        return failed(text, "the verifier accepts what is not right: mend the task's verify()")
    if {"timeout", "crash"} & {wrong.verdict.outcome, empty.verdict.outcome}:
        return failed(text, "the verifier must judge plain answers: see its error in the output above")
    return passed(text)


async def _rewards(context: Context, pool: VerifierPool, problem: Problem, form: str | None) -> list[Result]:
    """What a right and a wrong answer earn by parts; nothing where rewards are by outcome alone."""
    if context.config.task.reward_source is not None:
        return []  # the number is not the verifier's
    rule, texts = context.config.reward_rule, right_answers(problem, form) if form else []
    tried = [
        await _try(pool, problem, text) for text in [*texts, (form or forms(context)[0]).replace("ANSWER", _WRONG)]
    ]
    scores = [rule.score(verdict.outcome, verdict.reward, verdict.components, num_tokens=1) for verdict, _ in tried]
    given = {name for score in scores for name in score.components}
    if not given and not rule.weights:
        return []
    shown = [f"{score.outcome}: {score.reward:g}{by_parts(score)}" for score in scores]
    text = "rewards of one token: " + "; ".join(dict.fromkeys(shown))
    if faults := [score.fault for score in scores if score.fault is not None]:
        return [failed(f"{text}; {faults[0]}", "set task.reward_range, or mend the task's rewards")]
    if missing := sorted({name for name, weight in rule.weights.items() if weight} - given):
        return [failed(f"{text}; {', '.join(missing)} has a weight in task.reward_weights and is never given",
                       "correct the name, or give the component in verify()")]  # fmt: skip
    return [passed(text)]


async def _from_source(context: Context, pool: VerifierPool, problem: Problem, form: str | None) -> Result:
    """What a reward service or a judge says of a right answer; of a wrong one where no right one is known."""
    form = form or forms(context)[0]
    response = next(iter(right_answers(problem, form)), form.replace("ANSWER", _WRONG))
    verdict = (await _try(pool, problem, response)).verdict
    return await asked_once(context.config, problem, response, verdict)


def by_parts(score: Score) -> str:
    """`` (base 0.5, brevity 0.25)``; empty where the outcome alone makes the reward."""
    named = ", ".join(f"{name} {value:g}" for name, value in score.components.items())
    return f" ({named})" if named else ""


async def _hostile(context: Context, pool: VerifierPool, problem: Problem, form: str | None) -> Result:
    """Answers that make verifiers hang or fall; each must come back, and the next right one be judged."""
    deadline = context.config.task.verifier_timeout_seconds
    tried = {name: await _try(pool, problem, text) for name, text in HOSTILE.items()}
    text = ", ".join(f"{name} {each.verdict.outcome} {each.seconds:.1f} s" for name, each in tried.items())
    if accepted := [name for name, each in tried.items() if each.verdict.outcome == "correct"]:
        return failed(
            f"hostile answers: {text}", f"{', '.join(accepted)} must not be correct: mend the task's verify()"
        )
    late = [name for name, each in tried.items() if each.seconds > deadline + _NEW_CHILD_SECONDS]
    if late:
        return warned(f"hostile answers: {text}", f"{', '.join(late)} held a slot past its deadline of {deadline:g} s")
    after = [await _try(pool, problem, answer) for answer in right_answers(problem, form)] if form else []
    if after and not any(each.verdict.outcome == "correct" for each in after):
        return failed(
            f"hostile answers: {text}; a right one after them is {after[0].verdict.outcome}",
            "the child does not recover: report this",
        )
    return passed(f"hostile answers: {text}")


async def _try(pool: VerifierPool, problem: Problem, response: str) -> Tried:
    began = time.monotonic()
    prompt = problem.prompt if isinstance(problem.prompt, str) else str(problem.prompt)
    verdict = await pool.verify(problem.answer, response, "stop", one_turn(prompt, response))
    return Tried(verdict, time.monotonic() - began)


def forms(context: Context) -> list[str]:
    """Responses with ANSWER in them, in the forms that built-in tasks read."""
    marker = str(context.config.task.options.get("end_of_thinking", "</think>"))
    return [
        f"<think>\nSo it is.\n{marker}\n\nThe answer is \\boxed{{ANSWER}}.",
        f"<think>\n{marker}ANSWER",
        "The answer is \\boxed{ANSWER}.",
        f"<think>\nSo it is.\n{marker}\n\n<answer>ANSWER</answer>",
        "ANSWER",
    ]


def right_answers(problem: Problem, form: str) -> list[str]:
    """`form` with each short text of the problem's answer."""
    texts = [text for text in strings_in(dict(problem.answer)) if text and len(text) <= _MAX_REFERENCE]
    return [form.replace("ANSWER", text) for text in texts[:4]]


def _place(context: Context, number: int) -> str:
    return context.task.where(context.split, SEED, number)


def _times(seconds: list[float]) -> str:
    return f"{1000 * sum(seconds) / len(seconds):.0f} ms on average, {1000 * max(seconds):.0f} at most"
