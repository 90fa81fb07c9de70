"""A generator's tokens per second against vLLM's own `LLM.generate` on the same requests.

Ours is `python -m vcppo.generator` as the launcher starts it, on one core with everything it does: leasing from Redis,
vLLM, verifier children, encoding, sending, heartbeats. It is timed from the prompts' issue to the last append in the
store. Redis and the buffer are not the generator's: they run on another core where there is one. `LLM.generate` runs on
the same core, in processes of its own with the same engine arguments and as many sequences at once; plain (no
log-probs, text made), and with the log-probs that PPO needs. They are stopped while ours runs. Rounds take turns; each
has fresh prompts, the same for all contenders, with a seed for each. Sampling is seeded, but batches differ in order
and so sums in the last bit: the number of tokens must agree within 5 %, or the benchmark fails.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.vllm_peer import Generated, VllmPeer
from benchmarks.rig.figures import Figure, at_least
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import SMOLLM2_135M, Rig, demo_architecture, demo_settings, make_prompts, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import decode_trajectory


class Case(NamedTuple):
    """One comparison: a model at a number of sequences in flight."""

    name: str
    architecture: dict[str, Any]
    dtype: str
    in_flight: int
    num_prompts: int
    max_tokens: int
    num_rounds: int
    log_probs: bool = True  # against LLM.generate with log-probs, too


Contenders = dict[str, Callable[[list[Prompt]], Generated]]


def run(settings: Settings) -> list[Figure]:
    core = max(os.sched_getaffinity(0))
    demo = Case(
        "demo model",
        demo_architecture(),
        "float32",
        32,
        settings.size(144, 32),
        settings.size(152, 40),
        settings.rounds(2),
    )
    if settings.quick:
        return _figures(demo, _measure(demo, core, one_process=True))
    large = Case("135M shape, bfloat16", SMOLLM2_135M, "bfloat16", 32, 32, 48, 2, log_probs=False)
    return [*_figures(demo, _measure(demo, core)), *_figures(large, _measure(large, core))]


def _measure(case: Case, core: int, *, one_process: bool = False) -> dict[str, list[float]]:
    """Tokens per second of each contender, a sample a round. `one_process`: `LLM` starts in half the time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = write_model(folder / "model", case.architecture, case.dtype)
        config = demo_settings(
            folder,
            "run",
            model,
            model={"dtype": case.dtype},
            generator={"num_generators": 1, "max_in_flight": case.in_flight, "initial_weights": "model"},
        )
        rig = stack.enter_context(Rig(config, service_core=_another_core(core)))
        os.sched_setaffinity(0, {core, _another_core(core)})
        (spec,) = rig.launcher.generator_specs()  # a core of its own, as with one for the learner beside it
        os.sched_setaffinity(0, {_another_core(core)})  # what only watches is not to be counted
        rig.start(spec, [core])
        environment = {
            **spec.environment,
            "TORCHDYNAMO_DISABLE": "1",
        }  # as `vcppo.generator.vllm_engine.engine` has it in eager mode
        if one_process:
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        peer = stack.enter_context(VllmPeer(llm_arguments(config), _another_core(core), environment))
        contenders: Contenders = {
            "ours": lambda prompts: _ours(rig, prompts),
            "plain": peer.generate,
        }
        if case.log_probs:
            contenders["log_probs"] = lambda prompts: peer.generate(prompts, log_probs=True)
        rig.wait(lambda: rig.store.members("generator") != [], "the generator registered")
        peer.wait_ready()
        peer.move_to(core)
        return _rounds(case, config, contenders)


def _another_core(core: int) -> int:
    """For Redis and the buffer, even when this benchmark is pinned to one."""
    others = [other for other in range(os.cpu_count() or 1) if other != core]
    return others[0] if others else core


def llm_arguments(config: VcppoConfig) -> dict[str, Any]:
    """Of `vcppo.generator.vllm_engine.engine`, less what only a generator needs."""
    generator = config.generator
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "max_model_len": generator.max_model_len,
        "max_num_seqs": generator.max_in_flight,
        "enforce_eager": generator.enforce_eager,
        "kv_cache_memory_bytes": int(generator.kv_cache_gib * 2**30),
        "disable_log_stats": True,
    }


def _rounds(case: Case, config: VcppoConfig, contenders: Contenders) -> dict[str, list[float]]:
    """A first, short round warms up."""
    num_warm = 8
    prompts = make_prompts(config, num_warm + case.num_prompts * case.num_rounds, case.max_tokens)
    rounds = [prompts[:num_warm]]
    rounds += [prompts[i : i + case.num_prompts] for i in range(num_warm, len(prompts), case.num_prompts)]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for index, chosen in enumerate(rounds):
        found = {name: call(chosen) for name, call in contenders.items()}
        counts = [generated.num_tokens for generated in found.values()]
        if max(counts) > 1.05 * min(counts):
            raise AssertionError(f"not the same work: {counts} tokens")
        for name, generated in found.items():
            if index:
                rates[name].append(generated.num_tokens / generated.seconds)
    return rates


def _ours(rig: Rig, prompts: list[Prompt]) -> Generated:
    """Issue, and wait until the store has every trajectory."""
    before = rig.store.ledger().as_dict()["buffered"]
    began = time.perf_counter()
    rig.store.issue(prompts)
    wanted = before + len(prompts)
    rig.wait(lambda: rig.store.ledger().as_dict()["buffered"] == wanted, "every trajectory in the store")
    seconds = time.perf_counter() - began
    payloads = rig.store.payloads([prompt.id for prompt in prompts])
    return Generated(seconds, sum(len(decode_trajectory(payload).response_token_ids) for payload in payloads))


def _figures(case: Case, rates: dict[str, list[float]]) -> list[Figure]:
    what = f"generator tokens/s, {case.name}, {case.in_flight} in flight"
    absolute = f"{statistics.median(rates['ours']):,.0f} tokens/s"

    def figure(against: str, name: str, **fields: Any) -> Figure:
        shares = [100 * ours / theirs for ours, theirs in zip(rates["ours"], rates[name], strict=True)]
        return Figure.of(what, against, shares, unit="%", absolute=absolute, **fields)

    figures = [figure("LLM.generate", "plain", goal=at_least(95))]
    if case.log_probs:
        figures.append(figure("LLM.generate with log-probs, without text", "log_probs"))
    return figures
