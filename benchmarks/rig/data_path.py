"""The way of a trajectory in one run of real parts, from a generator's arrays to the learner's, and its CPU seconds.

    TrajectorySender ──ZeroMQ, acked──▶ learner.buffer ──▶ redis-server, AOF ──▶ BatchCollector, claim, decode, commit
    (a thread here)                     (a process)        (a process)           (here)

Redis and buffer are started by the launcher's own specs. CPU seconds are of all threads of all three processes, user
and system, from the processes' CPU clocks: they are exact, and waiting costs nothing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from benchmarks.rig.real_parts import DEADLINE_SECONDS, Rig, demo_settings
from vcppo.common.config import VcppoConfig
from vcppo.common.records.ids import make_trajectory_id
from vcppo.common.records.trajectory import Prompt, Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store import facts
from vcppo.common.tasks import load_task
from vcppo.common.transport import TrajectorySender
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.learner.batching.batch import Batch
from vcppo.learner.supply.collect import BatchCollector, PromptIssuer
from vcppo.learner.supply.prompts import PromptSource

GENERATOR = "generator-0"
_LEASE_SECONDS = 600.0
_VOCABULARY = 151_936
_MAX_TOKENS = 65_536


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds so far of this process and of `pids`, by Linux' clock of each process' CPU time."""
    return time.process_time() + sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


class DataPath:
    """One run's Redis and buffer, and both ends of the path. Use it as a context manager."""

    def __init__(self, folder: Path, name: str = "path", **changes: dict[str, Any]) -> None:
        sections: dict[str, dict[str, Any]] = {
            "generator": {"max_model_len": _MAX_TOKENS},
            "learner": {"micro_batch_tokens": _MAX_TOKENS},
            "sampling": {"max_response_tokens": _MAX_TOKENS - 1024},  # the buffer refuses longer ones
        }
        self.config = demo_settings(folder, name, folder, **(sections | changes))
        self.rig = Rig(self.config)
        self.version = 0

    def __enter__(self) -> Self:
        self.rig.__enter__()
        self.store = self.rig.store
        facts.VOCABULARY_SIZE.write(self.store, _VOCABULARY)
        self.rig.wait(lambda: bool(self.store.members("buffer")), "the buffer is up")
        self.sender = TrajectorySender(
            endpoints_of(self.config), GENERATOR, self.config.transport, self.rig.folder.spool / GENERATOR
        )
        source = PromptSource(self.config, load_task(self.config.task), _encode)
        self.issuer = PromptIssuer(self.store, source, "rl")
        gc.collect()
        gc.freeze()  # what imports left is no garbage of the path's
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sender.close()
        self.rig.__exit__(kind, error, trace)

    @property
    def pids(self) -> list[int]:
        """Redis and buffer."""
        return [process.pid for process in self.rig.processes.values()]

    def lease(self, count: int, template: Trajectory) -> list[Trajectory]:
        """Issue and lease `count` prompts; a trajectory like `template` for each."""
        self.issuer.issue(count, self.version)
        prompts = self.store.lease(GENERATOR, count, _LEASE_SECONDS, wait_seconds=10.0)
        return [answer(prompt, template) for prompt in prompts]

    def carry(self, trajectories: Sequence[Trajectory], batch_size: int) -> list[Batch]:
        """All of them through, from `Trajectory` to `Batch`, committed; returns the batches.

        The learner takes a batch at each policy version, in order of issue, while the sender sends.
        """
        num_steps = len(trajectories) // batch_size
        collector = BatchCollector(self._step_config(batch_size, num_steps), self.store, self.issuer)
        with ThreadPoolExecutor(1, "generator") as generator:
            sending = generator.submit(self._send, trajectories)
            batches = [self._take(collector) for _ in range(num_steps)]
            sending.result()
        if not self.sender.drain(DEADLINE_SECONDS):
            raise TimeoutError(f"{self.sender.num_unacked} trajectories are not acked")
        return batches

    def _send(self, trajectories: Sequence[Trajectory]) -> None:
        for trajectory in trajectories:
            self.sender.send(trajectory.id, encode_trajectory(trajectory))

    def _take(self, collector: BatchCollector) -> Batch:
        """A step's batch, as `vcppo.learner.rl.loop` takes it, and its commit."""
        while (ids := collector.poll(self.version)) is None:
            pass  # it has waited
        payloads = collector.claim(ids, self.version + 1)
        assert payloads is not None, "the store gave back other bytes than were sent"
        batch = Batch.decode(payloads, self.version)
        self.store.commit(batch.prompt_ids)
        self.version += 1
        facts.POLICY_VERSION.write(self.store, self.version)
        return batch

    def _step_config(self, batch_size: int, num_steps: int) -> VcppoConfig:
        """Of a learner for which all that is issued now is what the next `num_steps` steps train."""
        rl = {
            "batch_size": batch_size,
            "group_size": 1,
            "num_steps": self.version + num_steps,
            "max_staleness": num_steps - 1,
        }
        return self.config.model_copy(update={"rl": self.config.rl.model_copy(update=rl)})


def answer(prompt: Prompt, template: Trajectory) -> Trajectory:
    """`template` as a rollout of `prompt`."""
    return replace(
        template,
        id=make_trajectory_id(prompt.id, GENERATOR, "0"),
        prompt_id=prompt.id,
        group_id=prompt.group_id,
        sample_index=prompt.sample_index,
        task=prompt.task,
        prompt_token_ids=prompt.token_ids,
        issue_version=prompt.issue_version,
        version_spans=tuple(span._replace(version=prompt.issue_version) for span in template.version_spans),
    )


def check(batches: Sequence[Batch], sent: Sequence[Trajectory]) -> None:
    """Raises AssertionError unless everything sent arrived once, in order of issue, as it was."""
    arrived = [trajectory for batch in batches for trajectory in batch.trajectories]
    assert [t.id for t in arrived] == [t.id for t in sent], "not what was sent, each once and in order of issue"
    for found, expected in zip(arrived, sent, strict=True):
        assert np.array_equal(found.response_token_ids, expected.response_token_ids)
        assert np.array_equal(found.behaviour_log_probs, expected.behaviour_log_probs)


def _encode(prompt: object) -> Any:
    """Stands for a tokenizer: issuing is not on the path."""
    return np.frombuffer(str(prompt).encode(), np.uint8).astype(np.int32)
