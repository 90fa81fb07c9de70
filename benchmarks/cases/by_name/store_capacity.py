"""Redis' own share of the work, for docs/scaling.md. Half a minute.

    python -m benchmarks.cases.by_name.store_capacity

Processor time of the redis-server alone (it has one thread), by operation, with the append-only file on. Not one of the
figures of docs/performance.md: those have a limit or a peer to be compared with.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store.ledger import BufferEntry, Member
from vcppo.common.store.run_store import RunStore
from vcppo.deploy.processes.redis_server import find_binary

NUM_GENERATORS, LEASES_EACH = 1000, 32


class Server:
    """A redis-server of our own on a Unix socket."""

    def __init__(self, folder: Path, fsync: str) -> None:
        path = folder / "redis.sock"
        self._process = subprocess.Popen(
            [find_binary(), "--port", "0", "--unixsocket", path, "--dir", folder, "--appendonly", "yes",
             "--appendfsync", fsync, "--save", ""],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._watched = psutil.Process(self._process.pid)
        self.store = RunStore.connect(f"unix://{path}?db=0", "capacity", 10.0)

    def seconds(self, work: Callable[[], object]) -> float:
        """Processor seconds Redis spends on it."""
        before = sum(self._watched.cpu_times()[:2])
        work()
        return float(sum(self._watched.cpu_times()[:2]) - before)

    def close(self) -> None:
        self.store.close()
        self._process.kill()
        self._process.wait(10)


@contextmanager
def server(fsync: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        made = Server(Path(folder), fsync)
        try:
            yield made
        finally:
            made.close()


def prompts(count: int, tokens: int) -> list[Prompt]:
    ids = np.arange(200, dtype=np.int32)
    return [
        Prompt(f"rl-{i:08d}-0", f"rl-{i:08d}", 0, "t", ids, {"answer": "1"}, 0, 0, "rl", tokens) for i in range(count)
    ]


def entry(prompt: Prompt, tokens: int) -> BufferEntry:
    trajectory = Trajectory(
        id=f"{prompt.id}@g.0", prompt_id=prompt.id, group_id=prompt.group_id, sample_index=0, task="t",
        prompt_token_ids=prompt.token_ids, response_token_ids=np.arange(tokens, dtype=np.int32),
        action_mask=np.ones(tokens, bool), behaviour_log_probs=-np.ones(tokens, np.float32),
        version_spans=(VersionSpan(0, tokens),), finish_reason="stop", reward=1.0, outcome="correct", generator_id="g",
        issue_version=0,
    )  # fmt: skip
    return BufferEntry.of(trajectory, encode_trajectory(trajectory))


def trajectories(tokens: int, count: int, fsync: str) -> None:
    """One trajectory's whole way through the store."""
    todo = prompts(count, tokens)
    entries = [entry(prompt, tokens) for prompt in todo]
    ids = [prompt.id for prompt in todo]
    began = time.monotonic()
    with server(fsync) as redis:
        store = redis.store

        def lease() -> None:
            store.issue(todo)
            for _ in range(0, count, 64):
                store.lease("g", 64, 600, 0)

        def append() -> None:
            for first in range(0, count, 4):
                store.append(entries[first : first + 4])

        def use() -> None:
            for first in range(0, count, 64):
                store.claim(ids[first : first + 64], 1)
                store.commit(ids[first : first + 64])

        micros = [1e6 * redis.seconds(work) / count for work in (lease, append, use)]
    total, size = sum(micros), len(entries[0].payload)
    print(
        f"{tokens:6,} tokens ({size / 1024:.0f} KiB), fsync {fsync:8}: issue + lease {micros[0]:4.0f}, append"
        f" {micros[1]:4.0f}, claim + commit {micros[2]:4.0f} µs; {1e6 / total:,.0f} trajectories/s,"
        f" {size / total:,.0f} MB/s a core"
        f" ({time.monotonic() - began:.1f} s)"
    )


def members() -> None:
    """What a thousand generators ask of Redis by being there."""
    with server("everysec") as redis:
        store, names = redis.store, [f"generator-{i}" for i in range(NUM_GENERATORS)]
        store.issue(prompts(NUM_GENERATORS * LEASES_EACH, 500))
        held = {name: [prompt.id for prompt in store.lease(name, LEASES_EACH, 600, 0)] for name in names}
        info: dict[str, object] = {"num_workers": 4, "pid": 1}

        def register() -> None:
            for name in names:
                store.register_member(Member(name, "generator", "tcp://10.0.0.1:5000", 1, 1, info), 60)

        def renew() -> None:
            for name in names:
                store.renew_leases(name, held[name], 600)

        for what, work in (("register", register), (f"renew {LEASES_EACH} leases", renew)):
            print(f"{what}: {1e6 * redis.seconds(work) / NUM_GENERATORS:.0f} µs a heartbeat")
        for what, read in (("members", lambda: store.members("generator")), ("outstanding", store.outstanding)):
            cost = redis.seconds(lambda read=read: [read() for _ in range(10)]) / 10  # type: ignore[misc]
            print(
                f"{what} of {NUM_GENERATORS} generators, {NUM_GENERATORS * LEASES_EACH:,} prompts: {1e3 * cost:.1f} ms"
            )


if __name__ == "__main__":
    for tokens, count in ((500, 4096), (16_384, 1024)):
        for fsync in ("everysec", "always"):
            trajectories(tokens, count, fsync)
    members()
