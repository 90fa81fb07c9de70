"""Runs one engine on a grid of prompts, in a process of its own; prints what came out as JSON in its last line.

    python -m tests.integration.rig.engine_driver CONFIG.yaml TASK

TASK: ``grid`` (prompts of 60 to 400 tokens, 8, 64 and 256 in flight, a pause for weights in the middle), or
``refusals`` (requests that can't be served, then one that can), ``stops`` (the same requests, cut by stop strings), or
``turns`` (rollouts of several turns in `Talking`, new weights' version between two turns), ``kept`` (sessions of four
turns, whose sequences wait in vLLM or do not, some of them broken off), or ``heard`` (the same
requests with and without somebody who hears them as they grow, a pause for weights in the middle).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vcppo.common.config import load_config
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.play import Player
from vcppo.generator.vllm_engine.end_tokens import load_tokenizer
from vcppo.generator.vllm_engine.engine import Engine, EngineError, Rollout

NUM_PROMPTS = 256


def prompt(number: int, length: int, max_tokens: int, vocabulary: int = 20) -> Prompt:
    """Prompt ``number``, the same in every process."""
    ids = np.random.default_rng(number).integers(2, vocabulary, length).astype(np.int32)
    return Prompt(f"p-{number}", "g", 0, "", ids, {}, number + 1, 0, "rl", max_tokens)


async def generate(engine: Engine, prompts: list[Prompt], at_once: int) -> list[Rollout]:
    places = asyncio.Semaphore(at_once)

    async def one(each: Prompt) -> Rollout:
        async with places:
            return await engine.generate(each)

    return list(await asyncio.gather(*map(one, prompts)))


def count_preemptions(engine: Engine) -> list[str]:
    """A list that gets the id of every request vLLM interrupts from now on."""
    scheduler: Any = engine.stepper._engine.engine_core.engine_core.scheduler
    preempt, found = scheduler._preempt_request, []

    def counting(request: Any, *arguments: Any, **named: Any) -> Any:
        found.append(request.request_id)
        return preempt(request, *arguments, **named)

    scheduler._preempt_request = counting
    return found


async def grid(engine: Engine) -> dict[str, Any]:
    lengths = np.linspace(60, 400, NUM_PROMPTS).astype(int).tolist()
    prompts = [prompt(number, length, 40) for number, length in enumerate(lengths)]
    preempted = count_preemptions(engine)
    found = {}
    for at_once in (8, 64, 256):
        share = prompts[:: 256 // max(at_once, 64)]
        work = asyncio.create_task(generate(engine, share, at_once))
        await asyncio.sleep(0.2)  # not a wait: the pause may fall anywhere
        await engine.pause()
        await engine.set_version(engine.policy_version + 1)
        await engine.resume()
        rollouts = await work
        assert all(sum(span.count for span in each.version_spans) == len(each.token_ids) for each in rollouts)
        assert all(len(each.log_probs) == len(each.token_ids) >= 1 for each in rollouts)
        found[str(at_once)] = {each.id: r.token_ids.tolist() for each, r in zip(share, rollouts, strict=True)}
    return {"tokens": found, "preempted": len(preempted)}


async def refusals(engine: Engine) -> dict[str, Any]:
    longest = engine.config.generator.max_model_len
    wrong = {
        "as long as max_model_len": prompt(1, longest, 8),
        "longer": prompt(2, longest + 1, 8),
        "empty": prompt(3, 0, 8),
        "no response": prompt(4, 20, 0),
        "beyond the vocabulary": prompt(5, 20, 8, vocabulary=10**9),
        "negative": Prompt("p-6", "g", 0, "", np.full(4, -3, np.int32), {}, 1, 0, "rl", 8),
    }
    said = {}
    beside = asyncio.create_task(generate(engine, [prompt(number, 100, 40) for number in range(10, 20)], 10))
    for name, each in wrong.items():
        try:
            rollout = await engine.generate(each)
            said[name] = f"generated {len(rollout.token_ids)}"
        except EngineError as error:
            said[name] = str(error)
    try:
        await engine.canary(np.asarray([5, 10**9], np.int32), 1)
    except EngineError as error:
        said["canary"] = str(error)
    almost = await engine.generate(prompt(7, longest - 1, 8))
    rest = await beside
    return {"said": said, "beside": [len(each.token_ids) for each in rest], "almost": len(almost.token_ids)}


async def stops(engine: Engine) -> dict[str, Any]:
    rollouts = await generate(engine, [prompt(number, 20 + number, 40) for number in range(64)], 64)
    return {
        "rollouts": [
            [each.token_ids.tolist(), each.log_probs.tolist(), each.finish_reason, each.stop_string]
            for each in rollouts
        ],
        "spans": [sum(span.count for span in each.version_spans) for each in rollouts],
    }


async def heard(engine: Engine) -> dict[str, Any]:
    """What is sampled plainly, what is sampled when it is heard, and what was heard of it."""
    prompts = [prompt(number, 20 + number, 100) for number in range(16)]
    plain = await generate(engine, prompts, 16)
    said: list[list[list[int]]] = [[] for _ in prompts]

    def hear(number: int) -> Callable[[Sequence[int]], None]:
        return lambda token_ids: said[number].append(list(token_ids))

    work = asyncio.gather(*(engine.generate(each, hear(number)) for number, each in enumerate(prompts)))
    await asyncio.sleep(0.1)  # not a wait: the pause may fall anywhere
    await engine.pause()
    await engine.set_version(engine.policy_version + 1)
    await engine.resume()
    found = [[_shown(each) for each in rollouts] for rollouts in (plain, await work)]
    return {"plain": found[0], "found": found[1], "heard": said}


def _shown(each: Rollout) -> list[Any]:
    covered = sum(span.count for span in each.version_spans)
    return [each.token_ids.tolist(), each.log_probs.tolist(), each.finish_reason, list(each.end_ids), covered]


class Talking(Environment):
    """Says some digits after each of three turns."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("1+1=", {}) for _ in range(count)]

    def reset(self, answer: Mapping[str, object]) -> None:
        self.turns = 0

    def step(self, action: str) -> Observation:
        self.turns += 1
        return Observation("12<eos>34", 0.25, self.turns == 3)


async def turns(engine: Engine) -> dict[str, Any]:
    """What the engine gave for each turn, what became of it, and the log-probs of the whole, scored at once."""
    pool = EnvironmentPool(engine.config.task)
    await pool.start()
    try:
        player = Player(engine.config, pool, load_tokenizer(engine.model))
        return {"rollouts": [await one_of_turns(engine, player, number) for number in range(6)]}
    finally:
        await pool.close()


async def kept(engine: Engine) -> dict[str, Any]:
    """Tokens, log-probs and versions of sessions that wait in vLLM between turns, and of the same that do not."""
    preempted = count_preemptions(engine)
    found: dict[str, Any] = {}
    places = asyncio.Semaphore(engine.config.generator.max_in_flight)
    for name in ("kept", "plain"):
        version = engine.policy_version
        tasks = [asyncio.create_task(session(engine, number, places, name == "kept")) for number in range(24)]
        await asyncio.sleep(0.05)  # not a wait: both may fall anywhere
        await engine.pause()
        await engine.set_version(version + 1)
        await engine.resume()
        for task in tasks[::6]:
            task.cancel()
        made = await asyncio.gather(*tasks, return_exceptions=True)
        found[name] = [None if isinstance(each, asyncio.CancelledError) else each for each in made]
        if errors := [repr(each) for each in made if isinstance(each, Exception)]:
            return {"errors": errors}
    scheduler: Any = engine.stepper._engine.engine_core.engine_core.scheduler
    left = await engine.stepper.call(lambda llm: [*scheduler.requests, *llm.output_processor.request_states])
    blocks = engine._kept._num_blocks
    return {**found, "left": left, "in flight": engine.num_in_flight, "blocks": blocks, "preempted": len(preempted)}


async def session(engine: Engine, number: int, places: asyncio.Semaphore, may_wait: bool) -> list[Any]:
    """Four turns; of each the tokens, log-probs, versions, and how many tokens before it vLLM had."""
    ids, made = prompt(number, 40, 0).token_ids, list[Any]()
    with engine.turns() as turns:
        for turn in range(4):
            asked = replace(prompt(number, 1, 12), token_ids=ids, seed=100 * number + turn)
            async with places:
                rollout = await engine.generate(asked, turns=turns if may_wait else None)
            said = np.full(5, 3 + turn, dtype=np.int32)
            ids = np.concatenate([ids, rollout.token_ids, said])
            spans = [list(span) for span in rollout.version_spans]
            made.append([rollout.token_ids.tolist(), rollout.log_probs.tolist(), spans, rollout.num_cached])
            await asyncio.sleep(0.003 * (number % 3))  # the environment's time
    return made


async def one_of_turns(engine: Engine, player: Player, number: int) -> dict[str, Any]:
    """Rollout `number`; between the turns of every other one the weights become another version."""
    asked: list[Prompt] = []
    made: list[Rollout] = []

    async def sample(turn: Prompt) -> Rollout:
        if asked and not number % 2:
            await engine.pause()
            await engine.set_version(engine.policy_version + 1)
            await engine.resume()
        asked.append(turn)
        made.append(await engine.generate(turn, turns=kept))
        return made[-1]

    first = prompt(number, 40, 60)
    with engine.turns() as kept:
        played = await player.play(first, sample)
    assert played is not None
    whole = np.concatenate([first.token_ids, played.transcript.token_ids])
    return {
        "prompts": [each.token_ids.tolist() for each in asked], "seeds": [each.seed for each in asked],
        "turns": [each.token_ids.tolist() for each in made], "cached": [each.num_cached for each in made],
        "tokens": whole.tolist(), "mask": played.transcript.action_mask.tolist(),
        "log_probs": played.transcript.log_probs.tolist(), "spans": played.transcript.version_spans,
        "scored": (await engine.canary(whole, len(first.token_ids))).tolist(),
        "reward": played.verdict.reward, "reason": played.transcript.finish_reason,
    }  # fmt: skip


TASKS = {"grid": grid, "refusals": refusals, "stops": stops, "turns": turns, "kept": kept, "heard": heard}


async def main(config: Path, task: str) -> None:
    engine = Engine(load_config(config, []))
    try:
        await engine.start()
        async with asyncio.timeout(500):
            result = await TASKS[task](engine)
    except EngineError as error:
        result = {"error": str(error)}
    sys.stdout.write("\n" + json.dumps(result) + "\n")
    sys.stdout.flush()
    engine.shutdown()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
