"""Redis killed, full, and shared: nothing acknowledged is lost, nothing evicted, no run touches another's keys."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.disks import small_disk
from tests.integration.common.store import test_store
from tests.integration.common.store.test_store import an_entry
from tests.integration.conftest import RedisServer
from tests.integration.learner.buffer.test_buffer import TRANSPORT, BufferProcess, a_prompt, a_trajectory, eventually
from tests.integration.learner.test_learner import Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store.ledger import Ledger, Member
from vcppo.common.store.run_store import RunStore, StoreCannotWrite, StoreError, StoreFull
from vcppo.common.transport import TrajectorySender
from vcppo.deploy.chaos.shortages import FilledDisk


@pytest.fixture
def sender(buffer: BufferProcess, tmp_path: Path) -> Iterator[TrajectorySender]:
    buffer.start()
    made = TrajectorySender([buffer.endpoint], "generator-0", TRANSPORT, tmp_path / "spool")
    yield made
    made.close()


def send(sender: TrajectorySender, number: int) -> None:
    sender.send(f"p{number}@generator-0.0", encode_trajectory(a_trajectory(f"p{number}")))


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_killed_in_the_middle_of_appends_it_keeps_all_it_acknowledged(
    buffer: BufferProcess,
    sender: TrajectorySender,
    redis_process: RedisServer,
    fsync: str,
) -> None:
    redis_process.kill()
    redis_process.start("--appendfsync", fsync)
    store, rng, num = redis_process.store(patience_seconds=20), random.Random(0), 600
    store.issue([a_prompt(number) for number in range(num)])
    kills = set(rng.sample(range(50, num - 50), 4))
    for number in range(num):
        send(sender, number)
        if number % 20 == 0:
            eventually(lambda: sender.num_unacked < 100)
        if number in kills:
            redis_process.kill()  # wherever the buffer is with it
            acked = number + 1 - sender.num_unacked
            redis_process.start("--appendfsync", fsync)
            assert store.ledger().buffered >= acked
    assert sender.drain(30)
    assert store.ledger() == Ledger(issued=num, buffered=num)
    assert sorted(entry.prompt_id for entry in store.outstanding()) == sorted(f"p{number}" for number in range(num))


@pytest.mark.timeout(120)
def test_a_full_redis_refuses_and_everything_waits_until_a_commit_makes_room(
    buffer: BufferProcess,
    sender: TrajectorySender,
    redis_process: RedisServer,
) -> None:
    """The buffer acknowledges nothing, the sender keeps all; heartbeats, leases and commits go on."""
    store, num = redis_process.store(), 300
    store.issue([a_prompt(number) for number in range(num)])
    store.lease("dead", 1, 0.01, 0)
    fill_up(redis_process)
    assert store.memory().is_short
    with pytest.raises(StoreFull, match=r"redis\.maxmemory_mib"):
        store.append([an_entry("p1", payload=bytes(100_000))])
    with pytest.raises(StoreFull):
        store.issue([a_prompt(1000)])
    for number in range(num):
        send(sender, number)
    assert not sender.drain(1.5)
    assert sender.num_unacked == num
    # What keeps a run alive and makes room still works.
    store.register_member(Member("generator-0", "generator"), 60)
    store.set_value("policy_version", "7")
    assert store.get_value("policy_version") == "7"
    assert [prompt.id for prompt in store.lease("generator-1", 2, 60, 0)] == ["p0", "p1"]
    assert store.renew_leases("generator-1", ["p0", "p1"], 60) == []
    assert store.return_leases("generator-1") == 2
    assert RunStore.connect(redis_process.url, "run", 2.0).ledger().is_exact  # a restarted process gets in

    redis.Redis.from_url(redis_process.url).delete("ballast")  # as a commit would
    assert sender.drain(30)
    assert store.ledger() == Ledger(issued=num, buffered=num)
    assert buffer.stop() == 0
    full = [line for line in buffer.lines if line["event"] == "store_full"]
    assert full
    assert full[0]["waiting_for"] == "the learner's commit"
    assert len(full) < 10  # it pauses between tries


def fill_up(server: RedisServer) -> None:
    """Bring Redis to its limit: another's big key, and a limit just above it."""
    with redis.Redis.from_url(server.url) as client:
        client.set("ballast", bytes(8 << 20))
    with redis.Redis.from_url(server.url) as client:  # the first one's buffers are gone with it
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_learner_issues_no_more_and_commits_early_when_memory_is_short(
    redis_process: RedisServer,
    tmp_path: Path,
) -> None:
    """Checkpoints are due only at the end, and memory is too short for what would be claimed until then."""
    make_tiny_model(tmp_path / "model")
    run = Run(
        tmp_path, "short", redis_process.url, tmp_path / "model",
        critic={"init": "policy"},
        value_pretraining={"num_trajectories": 0},
        rl={"num_steps": 16, "batch_size": 64, "group_size": 2, "max_staleness": 1},
        learner={"checkpoint_every": 1000, "batch_deadline_seconds": 60.0},
    )  # fmt: skip
    generator = ScriptedGenerator(run.url, run.name)
    generator.start()
    process = run.start()
    run.wait_for_step(process, 2)
    client = redis.Redis.from_url(redis_process.url)
    client.config_set("maxmemory", int((client.info("memory")["used_memory"] + 150_000) / 0.9))
    run.finish(process)
    generator.stop()
    ledger = run.store().ledger()
    assert ledger == Ledger(issued=16 * 64, trained=16 * 64)
    assert run.events("issue_held_back")
    assert len(run.events("checkpoint_written")) > 1


def test_a_redis_that_would_evict_is_refused(redis_process: RedisServer) -> None:
    redis_process.kill()
    redis_process.start("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreError, match=r"allkeys-lru.*noeviction"):
        redis_process.store()
    redis_process.kill()
    redis_process.start("--maxmemory", "0", "--maxmemory-policy", "allkeys-lru")  # without a limit nothing is evicted
    redis_process.store()


def everything(store: RunStore) -> None:
    """Each call of a store at least once."""
    store.issue([test_store.a_prompt(number) for number in range(12)])
    store.lease("g", 6, 60, 0)
    store.lease("h", 1, 0.001, 0)
    time.sleep(0.005)
    store.requeue_expired_leases()
    store.renew_leases("g", ["p0000"], 60)
    store.return_leases("g", ["p0005"])
    store.append([an_entry(f"p{number:04d}") for number in range(5)])
    store.claim(["p0000", "p0001"], 1)
    store.commit(["p0000"])
    store.reject("p0001", "broken")
    store.expire(["p0005"], "late")
    store.dead_letter("a", "b", "c")
    store.register_member(Member("g", "generator"), 60)
    store.register_member(Member("h", "generator"), 60)
    store.unregister_member("h")
    store.set_value("policy_version", "3")
    store.wait_for_append(0.01)


@pytest.mark.parametrize("other", ["run-2", "run.1", "run", "RUN-1"])
def test_two_runs_on_one_redis_never_touch_each_others_keys(redis_process: RedisServer, other: str) -> None:
    client = redis.Redis.from_url(redis_process.url)
    first = redis_process.store("run-1")
    everything(first)
    before = dump(client)
    assert before
    assert all(key.startswith(b"vcppo:{run-1}:") for key in before)
    second = redis_process.store(other)
    everything(second)
    after = dump(client)
    assert {key: value for key, value in after.items() if key in before} == before
    assert all(key.startswith(f"vcppo:{{{other}}}:".encode()) for key in after.keys() - before.keys())
    assert first.ledger() == second.ledger()


def dump(client: redis.Redis) -> dict[bytes, Any]:
    """Every key with its content, whatever its type."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda key: client.xrange(key),
    }
    return {key: readers[client.type(key)](key) for key in client.keys("*")}


def test_a_restart_wakes_everybody_who_waits(redis_process: RedisServer) -> None:
    """Blocking reads are in the middle of their wait when Redis dies."""
    redis_process.store().issue([])
    found: list[str] = []

    def wait_for_a_prompt() -> None:
        found.extend(prompt.id for prompt in redis_process.store(patience_seconds=30).lease("g", 1, 60, 20))

    waiting = threading.Thread(target=wait_for_a_prompt, daemon=True)
    waiting.start()
    time.sleep(0.5)  # it blocks by now; if not, the test only shows less
    redis_process.kill()
    redis_process.start()
    redis_process.store().issue([a_prompt(0)])
    waiting.join(15)
    assert found == ["p0"]


def test_a_full_disk_is_waited_for(redis_process: RedisServer, tmp_path: Path) -> None:
    """With ``everysec`` Redis goes on and refuses to write (MISCONF); clients wait, and name it when it stays so."""
    with small_disk(tmp_path / "disk") as disk:
        redis_process.kill()
        redis_process.folder = disk
        redis_process.start("--appendfsync", "everysec")
        store, full = redis_process.store(patience_seconds=30), FilledDisk(disk)
        impatient = redis_process.store(patience_seconds=0.5)
        store.issue([a_prompt(0)])
        full.strike()
        with redis.Redis.from_url(redis_process.url) as client:

            def refuses() -> bool:
                full.strike()
                try:
                    client.set("ballast", bytes(64 << 10))
                except redis.ResponseError as error:
                    return "MISCONF" in str(error)
                return False

            eventually(refuses)
        with pytest.raises(StoreCannotWrite, match="can't write to its disk"):
            impatient.issue([a_prompt(1)])
        with pytest.raises(StoreCannotWrite):  # also who comes anew
            RunStore.connect(redis_process.url, "run", 0.5)
        timer = threading.Timer(1.0, full.undo)
        timer.start()
        assert store.issue([a_prompt(1)]) == 1  # it waited, and went on by itself
        timer.join()
        assert store.ledger() == Ledger(issued=2, queued=2)
        redis_process.kill()
