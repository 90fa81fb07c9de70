"""A trajectory from the generator's hands into the learner's: CPU seconds of all processes on the way, per trajectory.

Ours is the whole path of `rig.data_path`: encoding, spool, ZeroMQ with acks, the buffer's checks, the atomic
append to a Redis that syncs every write to its append-only file, the learner's waiting, claim, decoding and commit.

Against, in the same rounds, with Redis on a Unix socket as well:

- pickled lists over a Redis stream, as PipelineRL has it: XADD, XREAD one by one, into arrays. Without acks, deletes,
  checks or append-only file: what is lost is lost, what is read stays.
- a bare Redis stream on our server: the same message by XADD, XREADGROUP, XACK and XDEL, nothing else done with it.

Asserted: what arrives is what was sent, each once and in order; the ledger is exact.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import redis

from benchmarks.cases.wire import Record, as_record, make_trajectory, pickled, unpickled
from benchmarks.rig.data_path import DataPath, check, cpu_seconds
from benchmarks.rig.figures import Figure, at_least, at_most, seconds_text
from benchmarks.rig.harness import Settings
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.deploy.processes import redis_server

_STREAM, _GROUP = "stream", "group"
_BLOCK_MS = 100


class Load(NamedTuple):
    """Trajectories of one length; a round carries `num` of them, in steps of `batch_size`."""

    num_tokens: int
    num: int
    batch_size: int


class Costs(NamedTuple):
    """CPU seconds per trajectory, a sample a round."""

    ours: list[float]
    lists: list[float]
    bare: list[float]


def run(settings: Settings) -> list[Figure]:
    long = Load(16_384, settings.size(128, 16), settings.size(32, 8))
    short = Load(500, settings.size(2048, 64), settings.size(256, 32))
    with tempfile.TemporaryDirectory() as folder:
        with DataPath(Path(folder)) as path, peer_redis(Path(folder) / "peer") as peer:
            of_long = measure_costs(path, peer, long, settings.rounds(4))
            of_short = measure_costs(path, peer, short, settings.rounds(4))
            assert path.store.ledger().is_exact
    return [
        Figure.of(_what(long), "", [cpu * 1e3 for cpu in of_long.ours], unit="ms", goal=at_most(1.0)),
        *_comparisons(long, of_long, at_least(2)),
        Figure.of(
            f"{_what(short)}: as many a second of one core",
            "",
            [1 / cpu for cpu in of_short.ours],
            unit="/s",
            goal=at_least(5_000),
        ),
        *_comparisons(short, of_short, None),
    ]


def _what(load: Load) -> str:
    return f"{load.num_tokens:,}-token trajectory, sender to learner, CPU of all processes"


def _comparisons(load: Load, costs: Costs, goal: Any) -> list[Figure]:
    what, ours = _what(load), float(np.median(costs.ours))
    lists, bare = float(np.median(costs.lists)), float(np.median(costs.bare))
    return [
        Figure.of(
            what,
            "pickled lists over a Redis stream, no acks, no AOF",
            [b / a for a, b in zip(costs.ours, costs.lists, strict=True)],
            goal=goal,
            absolute=seconds_text(ours),
            note=f"the lists: {seconds_text(lists)}",
        ),
        Figure.of(
            what,
            "a bare Redis stream round trip, AOF",
            [a / b for a, b in zip(costs.ours, costs.bare, strict=True)],
            absolute=seconds_text(ours),
            note=f"the round trip: {seconds_text(bare)}",
        ),
    ]


def measure_costs(path: DataPath, peer: PeerRedis, load: Load, rounds: int) -> Costs:
    """Each way once to warm up, then in turn."""
    template = make_trajectory("rl-0", load.num_tokens)
    record, message = as_record(template), encode_trajectory(template)
    bare = redis.Redis.from_url(path.rig.redis_url, protocol=2)
    costs = Costs([], [], [])
    for _ in range(rounds + 1):
        costs.ours.append(_ours(path, load, template))
        costs.lists.append(_lists(peer, load, record, template))
        costs.bare.append(_bare(path, bare, load, message))
    bare.close()
    return Costs(*(samples[1:] for samples in costs))


def _cpu_each(do: Callable[[], object], pids: Sequence[int], count: int) -> float:
    before = cpu_seconds(pids)
    do()
    return (cpu_seconds(pids) - before) / count


def _ours(path: DataPath, load: Load, template: Trajectory) -> float:
    sent = path.lease(load.num, template)
    arrived = []
    cost = _cpu_each(lambda: arrived.extend(path.carry(sent, load.batch_size)), path.pids, load.num)
    check(arrived, sent)
    return cost


class PeerRedis(NamedTuple):
    """A redis-server without an append-only file."""

    pid: int
    url: str


@contextmanager
def peer_redis(folder: Path) -> Iterator[PeerRedis]:
    command = [*redis_server.redis_spec(folder).command, "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        url = redis_server.url(folder)
        _client(url).close()
        yield PeerRedis(process.pid, url)
    finally:
        process.kill()
        process.wait(10)


def _client(url: str) -> redis.Redis:
    """Connected, once the server is up."""
    retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200)
    client = redis.Redis.from_url(url, protocol=2, retry=retry, retry_on_error=[redis.ConnectionError])
    client.ping()
    return client


def _lists(peer: PeerRedis, load: Load, record: Record, template: Trajectory) -> float:
    writer, reader = _client(peer.url), _client(peer.url)

    def write() -> None:
        for index in range(load.num):
            writer.xadd(_STREAM, {"index": index, "data": pickled(record)}, maxlen=1_000_000, approximate=True)

    def read() -> None:
        last: Any = "0"
        for index in range(load.num):
            reply: Any = []
            while not reply:
                reply = reader.xread({_STREAM: last}, count=1, block=_BLOCK_MS)
            last, entry = reply[0][1][0]
            assert int(entry[b"index"]) == index
            arrays = unpickled(entry[b"data"])
        assert np.array_equal(arrays.logprobs, template.behaviour_log_probs)

    def both() -> None:
        with ThreadPoolExecutor(1) as generator:
            writing = generator.submit(write)
            read()
            writing.result()

    cost = _cpu_each(both, [peer.pid], load.num)
    writer.delete(_STREAM)
    writer.close()
    reader.close()
    return cost


def _bare(path: DataPath, client: redis.Redis, load: Load, message: bytes) -> float:
    client.xgroup_create(_STREAM, _GROUP, mkstream=True)

    def there_and_back() -> None:
        for _ in range(load.num):
            client.xadd(_STREAM, {"data": message})
            reply: Any = client.xreadgroup(_GROUP, "learner", {_STREAM: ">"}, count=1)
            entry, fields = reply[0][1][0]
            client.xack(_STREAM, _GROUP, entry)
            client.xdel(_STREAM, entry)
        assert fields[b"data"] == message

    cost = _cpu_each(there_and_back, path.pids, load.num)
    client.delete(_STREAM)
    return cost
