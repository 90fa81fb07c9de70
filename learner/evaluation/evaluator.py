"""Rank 0's part of an evaluation during training: issue its prompts, look for the answers, write the figures down.

    issue, before all that wait ─▶ generators ─▶ buffer ─▶ figures on disk ─▶ evaluated (ledger)

Its prompts need no credit: they are not trained, so no staleness comes of them. Exactly once: prompts have names by
version and problem, so that issuing them again changes nothing; the figures are on disk before the answers are settled.

consumes     trajectories of purpose ``evaluation``
waits for    all of a version's, at most learner.batch_deadline_seconds
unblocked by the last append, a rejection
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.benchmark_tasks import benchmark_tasks, with_task
from vcppo.common.evaluation.held_out import held_out_problems
from vcppo.common.evaluation.on_the_way import (
    best_of,
    has_plateaued,
    is_due,
    read_evaluations,
)
from vcppo.common.files.json_lines import LineFile, Row
from vcppo.common.process.patience import patiently
from vcppo.common.records.ids import evaluated_version
from vcppo.common.records.wire import decode_trajectory
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import Outstanding
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks import Task, encode_prompt, load_task, prompt_lengths
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.learner.evaluation.held_out_prompts import HeldOutPrompts, metrics_of
from vcppo.learner.supply.collect import POLL_SECONDS, WaitWatch, describe_wait
from vcppo.learner.supply.quarantine import Quarantine

log = structlog.get_logger(__name__)

State = Literal["wait", "done"]


class Evaluator:
    """Of one run. Figures of earlier starts are read from the run folder.

    Raises:
        TaskError: see `held_out_problems`.
    """

    def __init__(
        self,
        config: VcppoConfig,
        store: RunStore,
        task: Task,
        tokenizer: Any,
        metrics: MetricsWriter,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config, self._store, self._metrics = config, store, metrics
        self._task, self._tokenizer = task, tokenizer
        self._quarantine = Quarantine(config, store)
        self._path = RunFolder(config.run.path).evaluations
        self._file, self._stopping = LineFile(self._path), stopping
        self._prompts: HeldOutPrompts | None = None
        self._waiting_for: list[str] = []
        self._began = 0.0
        self._watch = WaitWatch("evaluation", config.learner.batch_deadline_seconds)
        self.rows = read_evaluations(self._path)
        if config.eval.is_during_training:
            self._made()  # what is wrong with them is told before the first step

    def is_due(self, version: int) -> bool:
        """Whether this version is to be evaluated, and has not been."""
        settings = self._config.eval
        due = is_due(version, every=settings.every, at_start=settings.at_start, num_steps=self._config.rl.num_steps)
        return due and all(row["version"] != version for row in self.rows)

    def begin(self, version: int) -> None:
        """Issue its prompts; those that were issued before a crash are taken up."""
        self._clear(version, "of another version: the learner was started again past it")
        prompts = self._made().of(version)
        self._store.issue(prompts, first=True)
        self._waiting_for = [prompt.id for prompt in prompts]
        self._began = time.monotonic()
        self._watch.reset()
        log.info("evaluation_begun", policy_version=version, num_prompts=len(prompts))

    def poll(self) -> State:
        """``done`` when every prompt is answered or given up; else after waiting a moment for it.

        Raises:
            DeadlineExceeded: too long without it; names the prompts and generators waited for.
        """
        outstanding = self._store.outstanding()
        missing = self._missing(outstanding)
        if not missing:
            return "done"
        self._store.requeue_expired_leases()
        self._watch.check(lambda: describe_wait(self._store, outstanding, missing))
        self._store.wait_for_all(missing, POLL_SECONDS)
        return "wait"

    def conclude(self, version: int, stall_seconds: float, keep: Callable[[int], object] | None) -> bool:
        """Every answer is there: figures to disk, then the answers are settled. Returns whether it is the best so far.

        Args:
            keep: called before with the version if it is the best; so a crash in between has it evaluated again.
        """
        buffered = [
            entry.prompt_id
            for entry in self._store.outstanding()
            if entry.state == "buffered" and evaluated_version(entry.group_id) == version
        ]
        payloads = self._quarantine.sound(buffered)
        self._store.confirm()  # before the file: another learner may have taken our place
        row = self._made().figures(version, map(decode_trajectory, payloads.values()))
        if row is None:
            self.abandon(version, "every one of its answers was given up: see the dead letters, vcppo ledger")
            return False
        row |= {"seconds": time.monotonic() - self._began, "stall_seconds": stall_seconds}
        if row["versions_seen"] != [version]:
            log.error("evaluation_mixed", policy_version=version, versions_seen=row["versions_seen"])
        rows = sorted([*self.rows, row], key=lambda each: int(each["version"]))
        is_best = best_of(rows, self._config.eval.best_by) is row
        if is_best and keep is not None:
            keep(version)
        line = json.dumps(row).encode() + b"\n"
        patiently(lambda: self._file.write(line, sync=True), "evaluations.jsonl", self._path.parent, self._stopping)
        self.rows = rows
        self._metrics.write(version, metrics_of(row))
        self._store.evaluated(list(payloads))
        self._waiting_for = []
        self._say(row)
        return is_best

    def has_others_than(self, generators: Sequence[str]) -> bool:
        """Whether a generator lives that is none of these."""
        return any(member.id not in generators for member in self._store.members("generator"))

    def abandon(self, version: int, reason: str) -> None:
        """Give up what is open of it. It has no figures then."""
        self._clear(None, reason)
        self._waiting_for = []
        log.warning("evaluation_abandoned", policy_version=version, reason=reason)

    @property
    def best_version(self) -> int | None:
        """Of those evaluated; None before the first."""
        best = best_of(self.rows, self._config.eval.best_by)
        return None if best is None else int(best["version"])

    @property
    def has_plateaued(self) -> bool:
        """Whether the run is to end (``eval.patience``)."""
        return has_plateaued(self.rows, self._config.eval.best_by, self._config.eval.patience)

    def _say(self, row: Row) -> None:
        low, high = row["pass_at_1_interval"]
        log.info(
            "evaluation_of_version", policy_version=row["version"], accuracy=round(row["pass_at_1"], 4),
            interval=[round(low, 4), round(high, 4)], num_problems=row["num_problems"],
            mean_length=round(row["mean_length"], 1), seconds=round(row["seconds"], 1),
            stall_seconds=round(row["stall_seconds"], 2), best_version=self.best_version,
        )  # fmt: skip

    def _made(self) -> HeldOutPrompts:
        if self._prompts is None:
            tasks = {name: (task, load_task(task)) for name, task in benchmark_tasks(self._config).items()}
            found = {
                name: held_out_problems(
                    with_task(self._config, settings), task, self._config.eval.num_problems_during_training,
                    partial(prompt_lengths, self._tokenizer),
                )
                for name, (settings, task) in {self._config.task.name: (self._config.task, self._task), **tasks}.items()
            }  # fmt: skip
            self._prompts = HeldOutPrompts(
                self._config, found, lambda prompt: encode_prompt(self._tokenizer, prompt), is_open=self._task.is_agent
            )
        return self._prompts

    def _missing(self, outstanding: list[Outstanding]) -> list[str]:
        """What is neither buffered nor settled."""
        open_ones = {entry.prompt_id for entry in outstanding if entry.state != "buffered"}
        return [prompt_id for prompt_id in self._waiting_for if prompt_id in open_ones]

    def _clear(self, but_of: int | None, reason: str) -> None:
        """Settle what is open of evaluations, that of version `but_of` excepted."""
        left = [
            entry
            for entry in self._store.outstanding()
            if (version := evaluated_version(entry.group_id)) is not None and version != but_of
        ]
        if not left:
            return
        self._store.evaluated([entry.prompt_id for entry in left if entry.state == "buffered"])
        gone = self._store.expire([entry.prompt_id for entry in left if entry.state != "buffered"], reason)
        log.info("evaluation_prompts_given_up", count=len(left), expired=len(gone), reason=reason)
