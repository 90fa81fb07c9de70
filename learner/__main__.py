"""``python -m vcppo.learner --config run.yaml`` (also under torchrun).

Value pretraining if it is due, then RL, then export.

Exit codes: 0 done; 1 failure, one ``fatal`` line says why; 2 bad config; 3 refused, a person must look (the gate, a
canary everywhere, no sound checkpoint); 143 after SIGTERM and 130 after Ctrl-C:
the step in progress was finished and a checkpoint written, and the same command resumes.
"""

from __future__ import annotations

from vcppo.common.process.quick_start import put_off_collections, take_up_collections

if __name__ == "__main__":
    put_off_collections()  # before the large imports

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import structlog
import torch

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_INTERRUPTED, VcppoError
from vcppo.common.process import watchdog
from vcppo.common.process.end_process import end_process
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import CRITIC_FOLDER, RunFolder
from vcppo.common.store import facts
from vcppo.common.store.access import connect_store
from vcppo.common.store.incarnations import LEARNER
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks import encode_prompt, load_task, prompt_lengths
from vcppo.common.telemetry.metrics import MetricsWriter, open_metrics
from vcppo.common.transport import use_keys
from vcppo.learner.batching.batch import Share
from vcppo.learner.critic_model.critic_engine import make_rl_critic
from vcppo.learner.critic_model.critic_vocabulary import usable_vocabulary
from vcppo.learner.engine.deepspeed_engine import (
    broadcast_object,
    init_distributed,
    num_ranks,
    rank,
)
from vcppo.learner.engine.deepspeed_engine import shutdown_distributed as leave_process_group
from vcppo.learner.engine.distributed import lost_peer, share_sequences
from vcppo.learner.engine.reference import Reference
from vcppo.learner.evaluation.evaluator import Evaluator
from vcppo.learner.evaluation.push_to_hub import push_to_hub
from vcppo.learner.export import load_tokenizer, make_actor, make_policy, with_adapters
from vcppo.learner.rl.loop import Models, RlLoop
from vcppo.learner.rl.publish import Broadcaster
from vcppo.learner.rl.rank_zero import RankZero
from vcppo.learner.rl.samples import SampleWriter
from vcppo.learner.rl.stop import StopRequest
from vcppo.learner.rl.trained_log import TrainedLog, check_trained_once
from vcppo.learner.supply.collect import BatchCollector, PromptIssuer, give_up_outdated
from vcppo.learner.supply.drawn_problems import DrawnProblems
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.value_pretraining.frozen_policy import FrozenPolicy, VersionZero
from vcppo.learner.value_pretraining.recorded_with import digest, made_with
from vcppo.learner.value_pretraining.stage import is_done, run_value_pretraining
from vcppo.learner.weights.broadcaster import WeightBroadcaster, WeightEngine

log = structlog.get_logger(__name__)


class WaitingBroadcaster(Broadcaster, Protocol):
    """What a run needs beside `Broadcaster`."""

    def wait_for_members(self, count: int, deadline_seconds: float) -> Any:
        """Return when `count` generators are registered. Raises DeadlineExceeded."""


MakeBroadcaster = Callable[[VcppoConfig, RunStore | None, Any], WaitingBroadcaster]


def make_broadcaster(config: VcppoConfig, store: RunStore | None, actor: WeightEngine) -> WaitingBroadcaster:
    """The real one, to the generators that the store lists."""
    return WeightBroadcaster(config, store, actor)


@dataclass(frozen=True)
class Session:
    """One learner process: everything both stages need.

    ``store``, ``source``, ``metrics`` and ``tokenizer`` are rank 0's.
    """

    config: VcppoConfig
    share: Share
    store: RunStore | None
    source: PromptSource | None
    metrics: MetricsWriter | None
    stop: StopRequest
    make_broadcaster: MakeBroadcaster
    tokenizer: Any = None

    @property
    def folder(self) -> RunFolder:
        """Where this run keeps its files; the same on every rank."""
        return RunFolder(self.config.run.path)

    def enter(self, stage: facts.RunStage) -> None:
        """Say in the store and in the log that this stage begins; on rank 0 only."""
        if self.store is not None:
            facts.STAGE.write(self.store, stage)
            log.info("stage_started", stage=stage)


def main(arguments: Sequence[str] | None = None, make_broadcaster: MakeBroadcaster = make_broadcaster) -> int:
    """The process; ``make_broadcaster`` is a seam for tests without generators."""
    parser = process_parser("python -m vcppo.learner", __doc__)
    parser.add_argument("--until", choices=["value_pretraining"], help="end after this stage, before RL")
    given = parser.parse_args(arguments)

    def work(config: VcppoConfig) -> int:
        try:
            return _run(config, StopRequest(), make_broadcaster, until=given.until)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except RuntimeError as error:
            if (text := lost_peer(error)) is None:
                raise
            raise VcppoError(text) from error

    return run_process(given, _service, work, at_end=leave_process_group)


def _service(config: VcppoConfig) -> str:
    found = int(os.environ.get("RANK", "0"))
    return make_process_name("learner", found) if config.learner.num_ranks > 1 and found > 0 else "learner"


def _run(config: VcppoConfig, stop: StopRequest, make_broadcaster: MakeBroadcaster, *, until: str | None = None) -> int:
    if config.learner.num_threads:
        torch.set_num_threads(config.learner.num_threads)
    init_distributed(config.learner.device)
    take_up_collections()
    _check_ranks(config)
    share_sequences(config.learner.sequence_parallel_size)
    torch.manual_seed(config.run.seed)
    session = _open_session(config, stop, make_broadcaster)
    log.info("learner_ready", num_ranks=num_ranks())
    try:
        if not _value_pretraining(session) or (until is None and not _reinforcement_learning(session)):
            log.info("stopped", resumable=True)
            return stop.exit_code
        return 0
    finally:
        if session.metrics is not None:
            session.metrics.close()


def _check_ranks(config: VcppoConfig) -> None:
    if num_ranks() != config.learner.num_ranks:
        raise VcppoError(
            f"learner.num_ranks = {config.learner.num_ranks}, but {num_ranks()} learner processes were started: "
            f"use torchrun --nproc-per-node {config.learner.num_ranks} -m vcppo.learner, or set learner.num_ranks"
        )


def _open_session(config: VcppoConfig, stop: StopRequest, make_broadcaster: MakeBroadcaster) -> Session:
    learner = config.learner
    share = Share(rank(), num_ranks(), learner.micro_batch_tokens, learner.sequence_parallel_size)
    if rank() != 0:
        return Session(config, share, None, None, None, stop, make_broadcaster)
    vocabulary = usable_vocabulary(config)
    RunFolder(config.run.path).create()
    use_keys(config, "learner")
    store = connect_store(config, patience_seconds=config.redis.patience_seconds, enter=LEARNER)
    facts.VOCABULARY_SIZE.write(store, vocabulary)
    metrics = open_metrics(config, "learner", "steps_of_run")
    tokenizer = load_tokenizer(config)
    return Session(config, share, store, _prompt_source(config, tokenizer), metrics, stop, make_broadcaster, tokenizer)


def _prompt_source(config: VcppoConfig, tokenizer: Any) -> PromptSource:
    return PromptSource(
        config,
        load_task(config.task),
        lambda prompt: encode_prompt(tokenizer, prompt),
        partial(prompt_lengths, tokenizer),
    )


# Stages


def _value_pretraining(session: Session) -> bool:
    """True when there is nothing (more) to do; False when asked to stop."""
    config = session.config
    wanted = config.algorithm.has_critic and config.critic.init == "value_pretrained"
    # Rank 0 looks: a shared decision even where folders are seen late on another machine.
    if not broadcast_object(
        wanted and not (_rl_has_critic(session.folder) or is_done(config)) if rank() == 0 else None
    ):
        return True
    session.enter("value_pretraining")
    issuer = None
    if session.store is not None and session.source is not None:
        issuer = PromptIssuer(session.store, session.source, "value_pretraining")
    frozen = FrozenPolicy(config)
    broadcaster = session.make_broadcaster(config, session.store, frozen)
    weights = VersionZero(config, frozen, broadcaster, session.source)
    try:
        with session.stop.listening():
            done = run_value_pretraining(
                config, session.share, session.store, issuer, session.metrics, session.stop, weights
            )
    finally:
        broadcaster.close()
    gc.collect()  # the critic's engine is not needed any more; RL makes its own from the saved critic
    return done


def _rl_has_critic(folder: RunFolder) -> bool:
    """RL goes on with the critic in its checkpoints, whatever is said of value pretraining now."""
    return (
        any(folder.checkpoints.glob("step-*")) and (folder.value_pretraining / CRITIC_FOLDER / "config.json").exists()
    )


def _reinforcement_learning(session: Session) -> bool:
    config = session.config
    session.enter("rl")
    models = _make_models(config)
    broadcaster = session.make_broadcaster(config, session.store, models.actor)
    rank_zero = _rank_zero(session)
    try:
        if rank_zero is not None:
            broadcaster.wait_for_members(1, config.launcher.startup_deadline_seconds)
        loop = RlLoop(config, models, session.share, broadcaster, rank_zero, session.stop)
        with session.stop.listening():
            if not loop.run():
                return False
    finally:
        broadcaster.close()
    watchdog.stage("export")
    if session.store is not None:
        session.store.confirm()
    loop.evaluations.export_result(session.folder.export, loop.version)
    if rank_zero is not None and config.learner.push_to_hub is not None:
        watchdog.stage("push_to_hub", waiting_for=["the hub"])
        push_to_hub(session.folder.export, config.learner.push_to_hub, f"vcppo run {config.run.name}")
    if rank_zero is not None:
        _finish(session, rank_zero)
    return True


def _rank_zero(session: Session) -> RankZero | None:
    if session.store is None or session.source is None or session.metrics is None:
        return None
    if not session.folder.has_trained:
        give_up_outdated(session.store, digest(made_with(session.config, session.source.task)))
    drawn = _drawn_problems(session, session.store, session.source)
    issuer = PromptIssuer(session.store, session.source, "rl")
    collector = BatchCollector(session.config, session.store, issuer)
    trained, samples = (
        TrainedLog(session.folder.trained_log, session.stop),
        SampleWriter(session.folder.samples, session.config.metrics, session.tokenizer),
    )
    evaluator = Evaluator(
        session.config, session.store, session.source.task, session.tokenizer, session.metrics, session.stop
    )
    return RankZero(session.store, issuer, collector, session.metrics, trained, samples, evaluator, drawn)


def _drawn_problems(session: Session, store: RunStore, source: PromptSource) -> DrawnProblems | None:
    """Where RL draws its problems by difficulty."""
    config, size = session.config, source.task.size("train")
    if not config.rl.difficulty.enabled or size is None:
        return None
    drawn = DrawnProblems(config, size, session.folder.difficulty, store.confirm, session.stop)
    source.draw_by(drawn)
    return drawn


def _make_models(config: VcppoConfig) -> Models:
    # With adapters one base is loaded, and actor, critic and reference share it; else each has a model of its own.
    base = None if config.lora.rank is None else make_policy(config)
    actor = make_actor(config, base)
    reference = None
    if config.algorithm.kl_coefficient > 0:
        policy = make_policy(config) if base is None else with_adapters(base, config)
        reference = Reference(policy.to(actor.device), config.algorithm.reference_refresh_steps)
    critic = make_rl_critic(config, base) if config.algorithm.has_critic else None
    return Models(actor, critic, reference)


def _finish(session: Session, rank_zero: RankZero) -> None:
    """The proof at the end: every trajectory trained once, none too old, the ledger exact."""
    num_trained = check_trained_once(session.folder.trained_log, session.config.rl.max_staleness)
    ledger = rank_zero.store.ledger()
    session.enter("done")
    if not ledger.is_exact:
        raise VcppoError(f"the run is complete but its ledger is not exact: {ledger}")
    log.info("run_complete", num_trained=num_trained, ledger=str(ledger))


if __name__ == "__main__":
    end_process(main())
