"""A session of eight turns through the endpoint for agents against the same tokens in one turn.

Eight turns of the policy: an agent in its child process asks by OpenAI's own client over HTTP, and says something
between them. Against it `Engine.generate` samples as many tokens in one turn, behind a prompt that has the agent's
words too. Both have prompts that nobody has seen before, as many sequences at once, and take turns, round by round. No
token ends a turn here (the weights are random): each is cut at its length. Both cores are used: the agents work beside
vLLM.

Asserted: eight turns in one conversation, whose actions are the tokens that were sampled.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rig.figures import Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import demo_architecture, demo_settings, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.model_folder.tokenizer import load_tokenizer
from vcppo.common.records.trajectory import Int32Array, Prompt
from vcppo.common.tasks import Problem
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.judges import make_judges
from vcppo.generator.turns.play import Player
from vcppo.generator.vllm_engine.engine import Engine, Rollout

NUM_TURNS = 8
SAID = "1" * 16
"""What the agent says between two turns: a token a digit."""
_TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
_MOST_BEHIND = len(SAID) + 2  # tokens between two turns: the end of the turn, what is said, the mark of the next


class Steady(Agent):
    """Says the same after each turn but the last."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        """Nobody asks: the prompts are the benchmark's."""
        return [Problem([{"role": "user", "content": "1"}], {})] * count

    async def run(self, answer: Mapping[str, object], endpoint: Endpoint) -> float:
        """See `Agent.run`."""
        import openai

        client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
        chat: list[Any] = [{"role": "user", "content": answer["asks"]}]
        for _ in range(NUM_TURNS):
            made = await client.chat.completions.create(model=endpoint.model, messages=chat)
            chat += [made.choices[0].message, {"role": "user", "content": SAID}]
        return 0.0


def run(settings: Settings) -> list[Figure]:
    sessions, tokens = settings.size(16, 4), settings.size(32, 4)
    agents, one_turn = asyncio.run(_measure(sessions, tokens, settings.rounds(5)))
    return [
        Figure.of(
            f"{sessions} sessions of {NUM_TURNS} turns of {tokens} tokens through the endpoint, demo model",
            "the same tokens in one turn",
            [ours / plain for ours, plain in zip(agents, one_turn, strict=True)],
            goal=at_most(1.25),
            absolute=seconds_text(statistics.median(agents)),
            note=f"one turn: {seconds_text(statistics.median(one_turn))}",
        )
    ]


async def _measure(sessions: int, tokens: int, num_rounds: int) -> tuple[list[float], list[float]]:
    """Seconds by round: (agents, one turn). A first round warms up."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", demo_architecture(), "float32")
        (model / "chat_template.jinja").write_text(_TEMPLATE)
        config = _config(Path(folder), model, sessions, _room(tokens))
        engine, pool, fresh = Engine(config), make_judges(config.task), itertools.count()
        try:
            await pool.start()
            await engine.start()
            _let_nothing_end(engine)
            player = make_player(config, pool, load_tokenizer(str(model)))  # type: ignore[arg-type]
            agents, one_turn = list[float](), list[float]()
            for _ in range(1 + num_rounds):
                began = time.perf_counter()
                await asyncio.gather(*(_session(engine, player, tokens, next(fresh)) for _ in range(sessions)))
                between = time.perf_counter()
                await asyncio.gather(*(_one_turn(engine, tokens, next(fresh)) for _ in range(sessions)))
                agents.append(between - began)
                one_turn.append(time.perf_counter() - between)
            return agents[1:], one_turn[1:]
        finally:
            engine.shutdown()
            await pool.close()


def _room(tokens: int) -> int:
    """Tokens of a session."""
    return NUM_TURNS * (tokens + _MOST_BEHIND)


def _config(folder: Path, model: Path, sessions: int, tokens: int) -> VcppoConfig:
    return demo_settings(
        folder, "run", model,
        task={"name": "benchmarks.cases.agent_turns:Steady", "options": {}, "max_turns": NUM_TURNS},
        sampling={"max_response_tokens": tokens},
        generator={"max_in_flight": sessions, "max_model_len": tokens + 16, "initial_weights": "model"},
    )  # fmt: skip


def _let_nothing_end(engine: Engine) -> None:
    """A turn ends where the benchmark cuts it, and at no end token: then both contenders do the same work."""
    engine._stop_tokens.clear()
    make = engine._sampling_params

    def made(prompt: Prompt, seed: int) -> Any:
        params = make(prompt, seed)
        params.ignore_eos = True
        return params

    engine._sampling_params = made  # type: ignore[method-assign]


def _prompt(number: int, token_ids: Int32Array, room: int) -> Prompt:
    return Prompt(f"p-{number}", "g", 0, "t", token_ids, {"asks": f"{number:06d}"}, number, 0, "rl", room)


async def _one_turn(engine: Engine, tokens: int, number: int) -> None:
    length = 7 + (NUM_TURNS - 1) * _MOST_BEHIND
    prompt = np.random.default_rng(number).integers(4, 32, length).astype(np.int32)
    made = await engine.generate(_prompt(number, prompt, NUM_TURNS * tokens))
    assert len(made.token_ids) == NUM_TURNS * tokens


async def _session(engine: Engine, player: Player, tokens: int, number: int) -> None:
    sampled: list[Rollout] = []

    async def sample(turn: Prompt) -> Rollout:
        made = await engine.generate(replace(turn, max_response_tokens=tokens))
        sampled.append(replace(made, finish_reason="stop"))  # cut for the measure only
        return sampled[-1]

    played = await player.play(_prompt(number, np.ones(1, np.int32), _room(tokens)), sample)
    assert played is not None
    made, turns = played.transcript, [turn.token_ids for turn in sampled]
    if len(turns) != NUM_TURNS or made.token_ids[made.action_mask].tolist() != np.concatenate(turns).tolist():
        raise AssertionError(f"{len(turns)} turns, or other tokens than were sampled")
