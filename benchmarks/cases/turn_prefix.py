"""A session of eight turns through the generator's own loop against the same tokens in one turn.

Eight turns of the policy with an environment's text between them: `vcppo.generator.turns.play.Player` with a real
environment in a child process and vLLM, all on one core. Against it `Engine.generate` samples as many tokens in one
turn, behind a prompt that has the environment's tokens too. Both have the same prompts, as many sequences at once, and
take turns, round by round. No token ends a turn here (the weights are random): each is cut at its length.

What eight turns cost more: seven more requests to vLLM, whose tokens before are found in the prefix cache but for the
last block, the calls of the environment, and the steps in which nobody samples because all wait for it.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rig.figures import Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import SMOLLM2_135M, demo_architecture, demo_settings, make_prompts, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.model_folder.tokenizer import load_tokenizer
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.play import Player
from vcppo.generator.vllm_engine.engine import Engine, Rollout

NUM_TURNS = 8
SAID = "1" * 16
"""What the environment says between two turns: a token a digit."""
MOST = 1.1


class Steady(Environment):
    """Says the same at once, until the last turn."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        """Nobody asks: the prompts are the benchmark's."""
        return [Problem("1", {})] * count

    async def reset(self, answer: Mapping[str, object]) -> None:
        """See `Environment.reset`."""
        self.turns = 0

    async def step(self, action: str) -> Observation:
        """See `Environment.step`."""
        self.turns += 1
        return Observation(SAID, done=self.turns == NUM_TURNS)


class Case(NamedTuple):
    """A model, how many sessions at once, and tokens of a turn."""

    name: str
    architecture: dict[str, Any]
    dtype: str
    sessions: int
    turn_tokens: int
    num_rounds: int


class Measured(NamedTuple):
    """Seconds by round, and of the tokens before a turn the share that was found."""

    turns: list[float]
    one_turn: list[float]
    found: float


def run(settings: Settings) -> list[Figure]:
    tokens = settings.size(32, 8)
    demo = Case("demo model", demo_architecture(), "float32", settings.size(16, 4), tokens, settings.rounds(5))
    cases = [demo]
    if not settings.quick:
        cases.append(Case("135M shape, bfloat16", SMOLLM2_135M, "bfloat16", 8, 16, 3))
    return [_figure(case, asyncio.run(_measure(case))) for case in cases]


def _figure(case: Case, measured: Measured) -> Figure:
    ratios = [ours / plain for ours, plain in zip(measured.turns, measured.one_turn, strict=True)]
    return Figure.of(
        f"{case.sessions} sessions of {NUM_TURNS} turns of {case.turn_tokens} tokens, {len(SAID)} said between them,"
        f" {case.name}",
        "the same tokens in one turn",
        ratios,
        goal=at_most(MOST),
        absolute=seconds_text(statistics.median(measured.turns)),
        note=f"one turn: {seconds_text(statistics.median(measured.one_turn))}; of the tokens before a turn"
        f" {measured.found:.0%} were found in the prefix cache",
    )


async def _measure(case: Case) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        architecture = case.architecture | {"max_position_embeddings": 1024}
        model = write_model(Path(folder) / "model", architecture, case.dtype)
        config = _config(case, Path(folder), model)
        engine, pool = Engine(config), EnvironmentPool(config.task)
        try:
            await pool.start()
            await engine.start()
            _let_nothing_end(engine)
            return await _rounds(case, config, engine, Player(config, pool, load_tokenizer(str(model))))
        finally:
            engine.shutdown()
            await pool.close()


def _let_nothing_end(engine: Engine) -> None:
    """A turn ends where the benchmark cuts it, and at no end token: then both contenders do the same work."""
    engine._stop_tokens.clear()
    make = engine._sampling_params

    def made(prompt: Prompt, seed: int) -> Any:
        params = make(prompt, seed)
        params.ignore_eos = True
        return params

    engine._sampling_params = made  # type: ignore[method-assign]


def _config(case: Case, folder: Path, model: Path) -> VcppoConfig:
    most = NUM_TURNS * (case.turn_tokens + len(SAID))
    return demo_settings(
        folder, "run", model,
        model={"dtype": case.dtype},
        task={"name": "benchmarks.cases.turn_prefix:Steady", "options": {}, "max_turns": NUM_TURNS},
        sampling={"max_response_tokens": most},
        generator={"num_generators": 1, "max_in_flight": case.sessions, "max_model_len": most + 64},
        learner={"micro_batch_tokens": most + 64},
    )  # fmt: skip


async def _rounds(case: Case, config: VcppoConfig, engine: Engine, player: Player) -> Measured:
    """A first round warms up."""
    most = config.sampling.max_response_tokens
    prompts = make_prompts(config, (case.num_rounds + 1) * case.sessions, most)
    found = Measured([], [], 0.0)
    cached = before = 0
    for first in range(0, len(prompts), case.sessions):
        chosen = prompts[first : first + case.sessions]
        began = time.perf_counter()
        sampled = await asyncio.gather(*(_session(case, engine, player, prompt) for prompt in chosen))
        between = time.perf_counter()
        plain = await asyncio.gather(*(engine.generate(_in_one_turn(case, prompt)) for prompt in chosen))
        ended = time.perf_counter()
        num_tokens = sum(turn.tokens for turns in sampled for turn in turns)
        if num_tokens != sum(len(rollout.token_ids) for rollout in plain):
            raise AssertionError(f"not the same work: {num_tokens} tokens, {sum(len(r.token_ids) for r in plain)}")
        if first:
            found.turns.append(between - began)
            found.one_turn.append(ended - between)
            cached += sum(turn.cached for turns in sampled for turn in turns[1:])
            before += sum(turn.before for turns in sampled for turn in turns[1:])
    return found._replace(found=cached / before)


class _Turn(NamedTuple):
    tokens: int
    before: int
    cached: int


async def _session(case: Case, engine: Engine, player: Player, prompt: Prompt) -> list[_Turn]:
    turns: list[_Turn] = []

    async def sample(turn: Prompt) -> Rollout:
        made = await engine.generate(replace(turn, max_response_tokens=case.turn_tokens))
        turns.append(_Turn(len(made.token_ids), len(turn.token_ids), made.num_cached))
        return replace(made, finish_reason="stop")

    played = await player.play(prompt, sample)
    if played is None or played.verdict.outcome == "crash" or len(turns) != NUM_TURNS:
        raise AssertionError(f"{len(turns)} turns, {played and played.verdict}")
    return turns


def _in_one_turn(case: Case, prompt: Prompt) -> Prompt:
    said = np.resize(prompt.token_ids, (NUM_TURNS - 1) * len(SAID)).astype(np.int32)
    tokens = np.concatenate([prompt.token_ids, said])
    return replace(prompt, token_ids=tokens, max_response_tokens=NUM_TURNS * case.turn_tokens)
