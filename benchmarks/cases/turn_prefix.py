"""A session of eight turns, through the generator's own loop and through its endpoint, against the same tokens in one.

    one turn    `Engine.generate`, as many tokens sampled behind a prompt that has the environment's tokens too
    own loop    `vcppo.generator.turns.play.Player` with a real environment in a child process
    endpoint    `vcppo.generator.turns.agent_play.AgentPlayer` with an agent in a child, by its httpx or openai client

All four have the same prompts, as many sequences at once, and vLLM on one core, which the child shares. They take
turns: each round has all four, every other round in the opposite order, and a ratio is of one round. No token ends a
turn here (the weights are random): each is cut at its length.

What eight turns cost more: seven more requests to vLLM, whose tokens before are found in the prefix cache but for the
last block, the calls of the environment or the agent, and the steps in which nobody samples because all wait for it.
CPU time of this process stands beside wall time: work beside it on a shared machine takes the second and not the first.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rig.figures import Figure, Goal, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import SMOLLM2_135M, demo_architecture, demo_settings, make_prompts, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.model_folder.tokenizer import load_tokenizer
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Problem, encode_prompt
from vcppo.generator.turns.agent_play import AgentPlayer
from vcppo.generator.turns.agent_pool import AgentPool
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.play import Player
from vcppo.generator.vllm_engine.engine import Engine, Rollout
from vcppo.generator.vllm_engine.stepper import Hear

NUM_TURNS = 8
SAID = "1" * 16
"""What the environment says between two turns: a token a digit."""
CLIENTS = ("httpx", "openai")
MOST = {"own loop": 1.1, **{f"endpoint ({client})": 1.25 for client in CLIENTS}}
"""The goals, by form. A client's own work is in the figure: it is done on the same core."""
_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


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


class Asking(Agent):
    """Asks as often as `Steady` is told, and says the same between. All rollouts of a child share a client's pool of
    connections."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        """Nobody asks: the prompts are the benchmark's."""
        return [Problem([{"role": "user", "content": "1"}], {})] * count

    async def prepare(self) -> None:
        """See `Environment.prepare`."""
        import httpx
        from openai import AsyncOpenAI

        self.http = httpx.AsyncClient(timeout=60)
        self.openai = AsyncOpenAI(base_url="http://127.0.0.1", api_key="unset", max_retries=0)

    async def run(self, answer: Mapping[str, Any], endpoint: Endpoint) -> float:
        """See `Agent.run`."""
        chat: list[Any] = [{"role": "user", "content": answer["text"]}]
        settings = {"model": endpoint.model, "max_tokens": answer["turn_tokens"]}
        client = self.openai.with_options(base_url=endpoint.base_url, api_key=endpoint.api_key)
        headers, url = {"Authorization": f"Bearer {endpoint.api_key}"}, f"{endpoint.base_url}/chat/completions"
        for _ in range(NUM_TURNS):
            if answer["client"] == "openai":
                said: Any = (await client.chat.completions.create(messages=chat, **settings)).choices[0].message
            else:
                got = await self.http.post(url, headers=headers, json={"messages": chat, **settings})
                said = got.json()["choices"][0]["message"]
            chat += [said, {"role": "user", "content": SAID}]
        return 1.0


class Case(NamedTuple):
    """A model, how many sessions at once, and tokens of a turn."""

    name: str
    architecture: dict[str, Any]
    dtype: str
    sessions: int
    turn_tokens: int
    num_rounds: int


class Turn(NamedTuple):
    """Tokens of a turn, before it, and of those the ones that the prefix cache held."""

    tokens: int
    before: int
    cached: int


Form = Callable[[Sequence[Prompt]], Awaitable[list[Turn]]]


@dataclass
class Measured:
    """Of one form, by round: seconds, and processor seconds of this process; and all turns."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)

    @property
    def found(self) -> float:
        """Share of the tokens before a turn that the prefix cache held; of first turns it can hold none."""
        later = [turn for turn in self.turns if turn.cached or turn.before > min(each.before for each in self.turns)]
        return sum(turn.cached for turn in later) / sum(turn.before for turn in later)


def run(settings: Settings) -> list[Figure]:
    tokens = settings.size(32, 8)
    demo = Case("demo model", demo_architecture(), "float32", settings.size(16, 4), tokens, settings.rounds(10))
    cases = [demo]
    if not settings.quick:
        cases.append(Case("135M shape, bfloat16", SMOLLM2_135M, "bfloat16", 8, 16, 3))
    return [figure for case in cases for figure in _figures(case, asyncio.run(_measure(case)))]


def _figures(case: Case, measured: Mapping[str, Measured]) -> list[Figure]:
    plain, found = measured["one turn"], list[Figure]()
    for name, most in MOST.items():
        ours = measured[name]
        what = (
            f"{case.sessions} sessions of {NUM_TURNS} turns of {case.turn_tokens} tokens, {len(SAID)} said between"
            f" them, {name}, {case.name}"
        )
        goals: tuple[tuple[str, list[float], list[float], Goal | None], ...] = (
            ("", ours.wall, plain.wall, at_most(most)),
            (", CPU time of the engine's process", ours.cpu, plain.cpu, None),
        )
        for which, top, bottom, goal in goals:
            ratios = [a / b for a, b in zip(top, bottom, strict=True)]
            quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            found.append(
                Figure.of(
                    what + which,
                    "the same tokens in one turn",
                    ratios,
                    goal=goal,
                    absolute=seconds_text(statistics.median(top)),
                    note=f"half of the {len(ratios)} rounds: {quarters[0]:.3g} to {quarters[2]:.3g}; one turn:"
                    f" {seconds_text(statistics.median(bottom))}; of the tokens before a turn {ours.found:.0%} were"
                    " found in the prefix cache",
                )
            )
    return found


async def _measure(case: Case) -> dict[str, Measured]:
    with tempfile.TemporaryDirectory() as folder:
        architecture = case.architecture | {"max_position_embeddings": 1024}
        model = write_model(Path(folder) / "model", architecture, case.dtype)
        (model / "chat_template.jinja").write_text(_TEMPLATE)
        config, agents = (_config(case, Path(folder), model, name) for name in ("Steady", "Asking"))
        engine, pools = Engine(config), (EnvironmentPool(config.task), AgentPool(agents.task))
        try:
            await asyncio.gather(*(pool.start() for pool in pools))
            await engine.start()
            _let_nothing_end(engine)
            tokenizer = load_tokenizer(str(model))
            forms = Forms(case, engine, tokenizer, Player(config, pools[0], tokenizer),
                          AgentPlayer(agents, pools[1], tokenizer))  # fmt: skip
            return await _rounds(case, config, forms.by_name)
        finally:
            engine.shutdown()
            await asyncio.gather(*(pool.close() for pool in pools))


def _let_nothing_end(engine: Engine) -> None:
    """A turn ends where the benchmark cuts it, and at no end token: then all contenders do the same work."""
    engine._stop_tokens.clear()
    make = engine._sampling_params

    def made(prompt: Prompt, seed: int) -> Any:
        params = make(prompt, seed)
        params.ignore_eos = True
        return params

    engine._sampling_params = made  # type: ignore[method-assign]


def _config(case: Case, folder: Path, model: Path, task: str) -> VcppoConfig:
    most = NUM_TURNS * (case.turn_tokens + len(SAID))
    return demo_settings(
        folder, "run", model,
        model={"dtype": case.dtype},
        task={"name": f"benchmarks.cases.turn_prefix:{task}", "options": {}, "max_turns": NUM_TURNS},
        sampling={"max_response_tokens": most},
        generator={"num_generators": 1, "max_in_flight": case.sessions, "max_model_len": most + 64},
        learner={"micro_batch_tokens": most + 64},
    )  # fmt: skip


async def _rounds(case: Case, config: VcppoConfig, forms: Mapping[str, Form]) -> dict[str, Measured]:
    """A first round warms up."""
    most = config.sampling.max_response_tokens
    prompts = make_prompts(config, (case.num_rounds + 1) * len(forms) * case.sessions, most)
    found = {name: Measured() for name in forms}
    for number in range(case.num_rounds + 1):
        order = list(forms) if number % 2 else list(forms)[::-1]
        sampled = dict[str, int]()
        for name in order:
            chosen, prompts = prompts[: case.sessions], prompts[case.sessions :]
            wall, cpu = time.perf_counter(), time.process_time()
            turns = await forms[name](chosen)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            sampled[name] = sum(turn.tokens for turn in turns)
            if number:
                found[name].wall.append(wall)
                found[name].cpu.append(cpu)
                found[name].turns += turns
        if len(set(sampled.values())) != 1:
            raise AssertionError(f"not the same work: {sampled} tokens")
    return found


@dataclass
class Forms:
    """The contenders."""

    case: Case
    engine: Engine
    tokenizer: Any
    player: Player
    agents: AgentPlayer

    @property
    def by_name(self) -> dict[str, Form]:
        """Each a function of the prompts of one round."""
        asked = {f"endpoint ({client})": partial(self._asked, client) for client in CLIENTS}
        return {"one turn": self._in_one_turn, "own loop": self._in_turns, **asked}

    async def _in_one_turn(self, prompts: Sequence[Prompt]) -> list[Turn]:
        """What is said between the turns stands in the prompt here."""
        made = []
        for prompt in prompts:
            said = np.resize(prompt.token_ids, (NUM_TURNS - 1) * len(SAID)).astype(np.int32)
            tokens = np.concatenate([prompt.token_ids, said])
            made.append(replace(prompt, token_ids=tokens, max_response_tokens=NUM_TURNS * self.case.turn_tokens))
        rollouts = await asyncio.gather(*(self.engine.generate(prompt) for prompt in made))
        return [Turn(len(each.token_ids), 0, 0) for each in rollouts]

    async def _in_turns(self, prompts: Sequence[Prompt]) -> list[Turn]:
        return await self._played(self.player, prompts)

    async def _asked(self, client: str, prompts: Sequence[Prompt]) -> list[Turn]:
        """The agent gets the prompt's tokens as text, which the chat template makes the same tokens of."""
        asked = []
        for prompt in prompts:
            text = str(self.tokenizer.decode(prompt.token_ids.tolist()))
            if encode_prompt(self.tokenizer, text).tolist() != prompt.token_ids.tolist():
                raise AssertionError(f"{text!r} is not {prompt.token_ids.tolist()}")
            answer: dict[str, object] = {"text": text, "turn_tokens": self.case.turn_tokens, "client": client}
            asked.append(replace(prompt, answer=answer))
        return await self._played(self.agents, asked)

    async def _played(self, player: Player, prompts: Sequence[Prompt]) -> list[Turn]:
        sessions = await asyncio.gather(*(self._session(player, prompt) for prompt in prompts))
        return [turn for turns in sessions for turn in turns]

    async def _session(self, player: Player, prompt: Prompt) -> list[Turn]:
        turns: list[Turn] = []

        async def sample(turn: Prompt, /, hear: Hear | None = None) -> Rollout:
            made = await self.engine.generate(replace(turn, max_response_tokens=self.case.turn_tokens), turns=kept)
            turns.append(Turn(len(made.token_ids), len(turn.token_ids), made.num_cached))
            return replace(made, finish_reason="stop")

        with self.engine.turns() as kept:
            played = await player.play(prompt, sample)
        most = NUM_TURNS * self.case.turn_tokens + (NUM_TURNS - 1) * len(SAID)
        if played is None or played.verdict.outcome == "crash" or len(turns) != NUM_TURNS:
            raise AssertionError(f"{len(turns)} turns, {played and played.verdict}")
        if len(played.transcript.token_ids) != most:
            raise AssertionError(f"{len(played.transcript.token_ids)} tokens, {most} of the same session")
        return turns
