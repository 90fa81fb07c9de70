"""vLLM: does it take the model and its settings, without starting; and, if asked for, real responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from vcppo.common.check.check_lines import Result, failed, passed, skipped, warned
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem, encode_prompt
from vcppo.common.tasks.lengths import prompt_room
from vcppo.generator.check.data_context import Context
from vcppo.generator.check.verifier_checks import by_parts
from vcppo.generator.check.vllm_settings import resolve
from vcppo.generator.turns.judges import Judges, Respondent, make_judges
from vcppo.generator.vllm_engine.engine import Engine

_MAX_SHOWN = 400


def settings(context: Context) -> Result:
    """Everything vLLM checks before it loads weights: architecture, lengths, types, options."""
    facts = resolve(context.config)
    text = (
        f"vLLM {facts.version} knows {facts.architecture}, {facts.dtype}, sequences up to {facts.max_model_len},"
        f" weights by {facts.transfer}"
    )
    if facts.is_fallback:
        return warned(f"{text}; by its slower path for any transformers model", "expect fewer tokens a second")
    return passed(text)


def responses(context: Context) -> Iterator[Result]:
    """Bring the engine up, sample, judge."""
    config, tokenizer = context.config, context.tokenizer
    room = prompt_room(config).tokens
    problems = [p for p in context.problems(context.generate) if len(encode_prompt(tokenizer, p.prompt)) <= room]
    if not problems:
        yield skipped("no prompt leaves room for a response")
        return
    chosen = [problems[i % len(problems)] for i in range(context.generate)]
    # Compiling takes minutes and changes no response that matters here.
    eager = config.generator.model_copy(update={"enforce_eager": True})
    engine, pool = Engine(config.model_copy(update={"generator": eager})), make_judges(config.task)
    with asyncio.Runner() as runner:
        try:
            runner.run(_start(engine, pool))
            yield passed("vLLM is up")
            began = time.monotonic()
            made = runner.run(_respond_to(context, engine, pool, chosen))
            seconds = time.monotonic() - began
            yield from (result for result, _ in made)
            yield _summary(context, [result for result, _ in made], sum(count for _, count in made), seconds)
        finally:
            engine.shutdown()
            runner.run(pool.close())


async def _start(engine: Engine, pool: Judges) -> None:
    await pool.start()
    await engine.start()


async def _respond_to(
    context: Context, engine: Engine, pool: Judges, problems: list[Problem]
) -> list[tuple[Result, int]]:
    respondent = Respondent(context.config, engine, pool, context.tokenizer)
    return await asyncio.gather(*(_respond(context, respondent, i, p) for i, p in enumerate(problems)))


async def _respond(context: Context, respondent: Respondent, number: int, problem: Problem) -> tuple[Result, int]:
    """One response, judged: the line, and how many tokens it has."""
    config = context.config
    prompt = Prompt(
        id=f"check-{number}",
        group_id="check",
        sample_index=number,
        task=config.task.name,
        token_ids=encode_prompt(context.tokenizer, problem.prompt),
        answer=problem.answer,
        seed=config.run.seed + number,
        issue_version=0,
        purpose="rl",
        max_response_tokens=config.sampling.max_response_tokens,
    )
    made = await respondent.respond(prompt)
    text, verdict = made.text, made.verdict
    score = config.reward_rule.score(
        verdict.outcome, verdict.reward, verdict.components, made.length, made.turn_rewards
    )
    line = f"{score.outcome}, {made.num_tokens} tokens, {made.finish_reason}"
    if score.components and config.task.reward_source is None:
        line += f", reward {score.reward:g}{by_parts(score)}"
    line += f", read as {verdict.extracted[:60]!r}" if verdict.extracted is not None else ""
    shown = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN // 2]} […] {text[-_MAX_SHOWN // 2 :]}"
    is_broken = score.outcome in ("timeout", "crash")
    remedy = score.fault or "the verifier can't judge a real response: see its error above"
    result = failed(line, remedy, *shown.split("\n")) if is_broken else passed(line, *shown.split("\n"))
    return result, made.num_tokens


def _summary(context: Context, made: list[Result], tokens: int, seconds: float) -> Result:
    cut = sum(" tokens, length" in result.text for result in made)
    rate = tokens / max(seconds, 1e-9)
    text = f"{len(made)} responses, {tokens} tokens in {seconds:.1f} s ({rate:.0f} a second), {cut} cut off"
    if cut < len(made):
        return passed(text)
    longest = context.config.sampling.max_response_tokens
    return warned(
        text, f"none ended by itself: raise sampling.max_response_tokens = {longest}, or mend the stop tokens"
    )
