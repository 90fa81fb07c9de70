"""A rollout of 8 turns against the same tokens in one: what our loop costs, and what the endpoint for agents costs.

All three sample on one engine in this process, as many sequences at once, on prompts that nobody has seen before:

- one turn: 8 × N tokens in one request,
- our loop: 8 turns of N tokens with an environment in its child, whose words stand between them,
- the endpoint: the same with an agent in its child, which asks by OpenAI's own client over HTTP.

Seconds are of a sampled token: with 4,096 tokens in the vocabulary few turns end before their N. Asserted: 8 turns
each, and the tokens of the policy as they were sampled.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rig.figures import Figure, at_most
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import demo_architecture, demo_settings, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.model_folder.tokenizer import load_tokenizer
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem, encode_prompt
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.judges import make_judges
from vcppo.generator.turns.play import Player
from vcppo.generator.vllm_engine.engine import Engine, Rollout

NUM_TURNS = 8
SAID = "12+34*5"
_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def asked(number: int) -> list[dict[str, Any]]:
    """The chat of problem `number`."""
    return [{"role": "user", "content": f"{number}+{number * 7}"}]


class Talking(Environment):
    """Says the same after each turn but the last."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem(asked(number), {"number": number}) for number in range(start, start + count)]

    async def reset(self, answer: Mapping[str, object]) -> None:
        self.num_turns = 0

    async def step(self, action: str) -> Observation:
        self.num_turns += 1
        return Observation(SAID, done=self.num_turns == NUM_TURNS)


class Asking(Agent):
    """Says the same as `Talking`, over HTTP."""

    problems = Talking.problems

    async def run(self, answer: Mapping[str, Any], endpoint: Endpoint) -> float:
        import openai

        client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
        chat: list[Any] = asked(answer["number"])
        for _ in range(NUM_TURNS):
            made = await client.chat.completions.create(model=endpoint.model, messages=chat)
            chat += [made.choices[0].message, {"role": "user", "content": SAID}]
        return 0.0


def run(settings: Settings) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(_measure(Path(folder), settings))
    base = seconds.pop("one turn")
    goals = {"our loop": at_most(1.10), "the endpoint": at_most(1.25)}
    return [
        Figure.of(
            f"{NUM_TURNS} turns through {name}, a sampled token", "the same tokens in one turn",
            [mine / one for mine, one in zip(found, base, strict=True)], goal=goals[name],
            absolute=f"{1e6 * float(np.median(found)):.0f} µs",
        )
        for name, found in seconds.items()
    ]  # fmt: skip


async def _measure(folder: Path, settings: Settings) -> dict[str, list[float]]:
    """Seconds for a sampled token of each contender, a sample a round. A first, short round warms up."""
    model = write_model(folder / "model", demo_architecture() | {"vocab_size": 4096}, "float32")
    (model / "chat_template.jinja").write_text(_TEMPLATE)
    per_turn, together = settings.size(48, 4), settings.size(32, 4)
    tokens = NUM_TURNS * (per_turn + 2 * len(SAID))
    configs = {
        name: demo_settings(
            folder, "run", model,
            task={"name": f"benchmarks.cases.turns:{kind.__name__}", "options": {}, "max_turns": NUM_TURNS},
            sampling={"max_response_tokens": tokens},
            generator={"max_in_flight": together, "max_model_len": tokens + 32, "initial_weights": "model"},
        )
        for name, kind in (("our loop", Talking), ("the endpoint", Asking))
    }  # fmt: skip
    engine = Engine(configs["our loop"])
    pools: dict[str, Any] = {name: make_judges(config.task) for name, config in configs.items()}
    try:
        await engine.start()
        tokenizer = load_tokenizer(str(model))
        contenders: dict[str, Callable[[Prompt], Awaitable[int]]] = {"one turn": partial(_one, engine, per_turn)}
        for name, pool in pools.items():
            await pool.start()
            player = make_player(configs[name], pool, tokenizer)
            contenders[name] = partial(_several, engine, player, per_turn)
        fresh = (_prompt(tokenizer, configs["our loop"], number) for number in itertools.count())
        found: dict[str, list[float]] = {name: [] for name in contenders}
        for round_ in range(1 + settings.rounds(7)):
            for name, contender in contenders.items():
                prompts = [next(fresh) for _ in range(together)]
                began = time.perf_counter()
                sampled = sum(await asyncio.gather(*map(contender, prompts)))
                if round_ or settings.quick:
                    found[name].append((time.perf_counter() - began) / sampled)
        return {name: each[-settings.rounds(7) :] for name, each in found.items()}
    finally:
        engine.shutdown()
        await asyncio.gather(*(pool.close() for pool in pools.values()))


def _prompt(tokenizer: Any, config: VcppoConfig, number: int) -> Prompt:
    most = config.sampling.max_response_tokens
    tokens = encode_prompt(tokenizer, asked(number))
    return Prompt(f"p-{number}", "g", 0, "t", tokens, {"number": number}, number, 0, "rl", most)


async def _one(engine: Engine, per_turn: int, prompt: Prompt) -> int:
    return len((await engine.generate(replace(prompt, max_response_tokens=NUM_TURNS * per_turn))).token_ids)


async def _several(engine: Engine, player: Player, per_turn: int, prompt: Prompt) -> int:
    sampled: list[Rollout] = []

    async def sample(turn: Prompt) -> Rollout:
        made = await engine.generate(replace(turn, max_response_tokens=per_turn))
        sampled.append(replace(made, finish_reason="stop"))  # cut for the measure only
        return sampled[-1]

    played = await player.play(prompt, sample)
    assert played is not None
    made, turns = played.transcript, [turn.token_ids for turn in sampled]
    if len(turns) != NUM_TURNS or made.token_ids[made.action_mask].tolist() != np.concatenate(turns).tolist():
        raise AssertionError(f"{len(turns)} turns, or other tokens than were sampled")
    return int(made.action_mask.sum())
