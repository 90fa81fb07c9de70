"""``python -m vcppo.generator --config RUN/config.yaml --id generator-0 [section.field=value ...]``."""

from __future__ import annotations

from vcppo.common.process.quick_start import put_off_collections

if __name__ == "__main__":
    put_off_collections()  # before the large imports

import asyncio
import os
import signal
from collections.abc import Sequence
from functools import partial
from types import FrameType

import structlog

from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.errors import EXIT_OK
from vcppo.common.evaluation.benchmark_tasks import benchmark_tasks
from vcppo.common.process import watchdog
from vcppo.common.process.end_process import end_process
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.run_folder import RunFolder
from vcppo.common.store import facts
from vcppo.common.store.access import connect_store
from vcppo.common.telemetry.metrics import open_metrics
from vcppo.common.transport import ControlServer, TrajectorySender, use_keys
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.generator.reward_sources.source import open_source
from vcppo.generator.rollout.parts import Generator
from vcppo.generator.rollout.rollout import RolloutWorker
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.judges import make_judges
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.generator.vllm_engine.end_tokens import load_tokenizer, require_model
from vcppo.generator.vllm_engine.engine import Engine

log = structlog.get_logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one generator until SIGTERM or SIGINT. Returns the exit code."""
    parser = process_parser("python -m vcppo.generator", __doc__)
    parser.add_argument("--id", required=True, help="unique among the run's generators, e.g. generator-0")
    given = parser.parse_args(arguments)
    return run_process(given, given.id, lambda config: asyncio.run(serve(config, given.id)), waiting_for=["vLLM"])


async def serve(config: VcppoConfig, generator_id: str) -> None:
    """Bring everything up, roll out until told to stop, take everything down in reverse order."""
    signal.signal(signal.SIGTERM, _quit)
    require_model(config.model.path)
    folder, endpoints = RunFolder(config.run.path), endpoints_of(config)
    use_keys(config, "generator")
    store = await asyncio.to_thread(partial(connect_store, config, enter=generator_id))
    judges = make_judges(config.task)
    benchmarks = {name: VerifierPool(task) for name, task in _benchmarks(config).items()}
    rewards = open_source(config)
    engine = Engine(config, seed=config.run.seed, start_unset=config.generator.initial_weights == "learner")
    children = [judges.start(), *(each.start() for each in benchmarks.values())]
    judging = asyncio.ensure_future(asyncio.gather(*children))  # they come up while vLLM loads
    try:
        await engine.start()
        await judging
        tokenizer = load_tokenizer(config.model.path, config.model.trust_remote_code)
        player = make_player(config, judges, tokenizer) if isinstance(judges, EnvironmentPool) else None
        verifiers = None if isinstance(judges, EnvironmentPool) else judges
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        sender = TrajectorySender(endpoints, generator_id, config.transport, folder.spool / generator_id)
        metrics = open_metrics(config, generator_id, "seconds")
        try:
            parts = Generator(
                config, generator_id, engine, store, sender, verifiers, tokenizer, metrics, player, rewards, benchmarks
            )
            await _roll_out(parts, stopping)
        finally:
            sender.close()
            metrics.close()
    finally:
        engine.shutdown()
        await asyncio.gather(judging, return_exceptions=True)
        for each in (judges, *benchmarks.values()):
            await each.close()
        if rewards is not None:
            await rewards.close()
    log.info("generator_stopped")


async def _roll_out(generator: Generator, stopping: asyncio.Event) -> None:
    config, engine = generator.config, generator.engine
    server = ControlServer(config.generator.control_host, config.transport.receive_memory_mib)
    worker = RolloutWorker(generator, server)
    control = worker.control
    version = await asyncio.to_thread(facts.POLICY_VERSION.read, generator.store)
    if not engine.start_unset and (version is None or version == 0):
        control.loaded(0)  # the weights in model.path are version 0
    else:
        log.info("waiting_for_weights", policy_version=version, waiting_for="learner")
    serving = asyncio.create_task(server.serve(control.handlers()))
    watchdog.leave()  # the worker's loops give their own signs of life
    log.info("ready", control_endpoint=server.endpoint, policy_version=control.policy_version)
    stop = asyncio.create_task(_stop_worker(stopping, worker))
    try:
        await worker.run()
    finally:
        for task in (stop, serving):
            task.cancel()
        await asyncio.gather(stop, serving, return_exceptions=True)


def _benchmarks(config: VcppoConfig) -> dict[str, TaskConfig]:
    """Those that this run will ask."""
    return benchmark_tasks(config) if config.eval.is_during_training else {}


def _quit(number: int, frame: FrameType | None) -> None:
    """Asked to stop while starting: nothing is leased or kept yet, and vLLM's thread can't be told to break off."""
    os._exit(EXIT_OK)


async def _stop_worker(stopping: asyncio.Event, worker: RolloutWorker) -> None:
    await stopping.wait()
    log.info("stop_requested")
    worker.stop()


if __name__ == "__main__":
    end_process(main())
