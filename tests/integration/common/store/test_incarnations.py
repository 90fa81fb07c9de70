"""Whoever has a successor is refused by every script; a store that was changed under us is told from that."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.common.store.test_store import a_prompt, an_entry
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.store import facts
from vcppo.common.store.access import connect_store
from vcppo.common.store.codec import SCRIPTS
from vcppo.common.store.incarnations import LAUNCH_VARIABLE
from vcppo.common.store.ledger import Ledger, Member
from vcppo.common.store.run_store import RunStore, StoreChanged, StoreError, Superseded

if TYPE_CHECKING:
    from tests.integration.conftest import RedisServer

_RUNS = itertools.count()


@dataclass
class Two:
    """Stores of one run: of a process, and of the one that takes its place."""

    server: RedisServer
    run_id: str

    def store(self) -> RunStore:
        return self.server.store(self.run_id)

    def keys(self) -> dict[str, bytes]:
        """Everything there is of the run, but the clock: what did not change is equal."""
        client = self.store()._redis._client
        names = [key for key in client.keys(f"vcppo:{{{self.run_id}}}:*") if not key.endswith((b":clock", b":none"))]
        return {name.decode(): client.dump(name) for name in sorted(names)}


@pytest.fixture
def two(redis_process: RedisServer) -> Two:
    return Two(redis_process, f"run-{next(_RUNS)}")


# Every script there is, as a process would call it.
CALLS: dict[str, Callable[[RunStore], Any]] = {
    "issue": lambda store: store.issue([a_prompt(9)]),
    "lease": lambda store: store.lease("g0", 1, 60, 0),
    "renew": lambda store: store.renew_leases("g0", ["p0001"], 60),
    "return": lambda store: store.return_leases("g0"),
    "expire_leases": lambda store: store.requeue_expired_leases(),
    "append": lambda store: store.append([an_entry("p0001")]),
    "await": lambda store: store.wait_for_all(["p0001"], 0),
    "reject": lambda store: store.reject("p0001", "broken"),
    "leave_out": lambda store: store.leave_out(["p0009"], facts.LEFT_OUT.stored("{}")),
    "expire": lambda store: store.expire(["p0000"], "late"),
    "claim": lambda store: store.claim(["p0002"], 2),
    "evaluate": lambda store: store.evaluated(["p0002"]),
    "commit": lambda store: store.commit(["p0003"]),
    "ledger": lambda store: store.ledger(),
    "dead_letter": lambda store: store.dead_letter("r", "d", "s"),
    "register_member": lambda store: store.register_member(Member("g0", "generator"), 10),
    "members": lambda store: store.members("generator"),
    "set_value": lambda store: facts.POLICY_VERSION.write(store, 3),
}


def in_every_state(store: RunStore) -> None:
    """p0000 queued, p0001 leased, p0002 buffered, p0003 claimed."""
    store.issue([a_prompt(n) for n in (1, 2, 3)])
    store.lease("g0", 3, 60, 0)
    store.append([an_entry("p0002"), an_entry("p0003")])
    store.claim(["p0003"], 1)
    store.issue([a_prompt(0)])
    store.register_member(Member("g0", "generator"), 60)


@pytest.mark.parametrize("name", ["learner", "buffer@h:tcp://*:1", "generator-0"])
def test_every_script_refuses_who_has_a_successor_and_changes_nothing(two: Two, name: str) -> None:
    assert {*CALLS, "enter"} == set(SCRIPTS), "a new script: call it here"
    old, new = two.store(), two.store()
    old.enter(name)
    in_every_state(old)
    new.enter(name)
    before = two.keys()
    for call in CALLS.values():
        with pytest.raises(
            Superseded, match=f"{re.escape(name)} number 1 .* by {re.escape(name)} number 2 .pid {os.getpid()}"
        ):
            call(old)
    assert two.keys() == before
    for call in CALLS.values():
        call(new)


def test_the_error_names_the_other_and_is_final(two: Two) -> None:
    old = two.store()
    assert (old.incarnation, old.enter("learner").number, old.incarnation) == (0, 1, 1)
    assert two.store().enter("learner").number == 2
    with pytest.raises(Superseded) as refused:
        old.ledger()
    assert refused.value.exit_code == EXIT_REFUSED
    assert repr(socket.gethostname()) in str(refused.value)


def test_names_do_not_touch_each_other(two: Two) -> None:
    stores = {name: two.store() for name in ("learner", "generator-0", "generator-1", "buffer@a")}
    for name, store in stores.items():
        store.enter(name)
    for store in stores.values():
        assert store.ledger() == Ledger()
    assert two.server.store("another").enter("learner").number == 1


def test_who_never_entered_is_refused_nothing(two: Two) -> None:
    tool = two.store()
    two.store().enter("learner")
    for call in CALLS.values():
        call(tool) if call is not CALLS["claim"] else None


def test_children_of_an_old_launch_are_refused_and_can_not_enter_again(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VcppoConfig.model_validate(
        {"run": {"name": two.run_id}, "model": {"path": "m"}, "redis": {"url": two.server.url}}
    )
    launcher, next_launcher = two.store(), two.store()
    monkeypatch.setenv(LAUNCH_VARIABLE, launcher.enter("launcher").as_text())
    buffer = connect_store(config, enter="buffer@a")
    buffer.ledger()
    launch = next_launcher.enter("launcher")
    for refused in (buffer.ledger, lambda: connect_store(config, enter="buffer@a"), launcher.ledger):
        with pytest.raises(Superseded, match=r"launcher number 1 .* superseded by launcher number 2"):
            refused()
    monkeypatch.setenv(LAUNCH_VARIABLE, launch.as_text())
    assert connect_store(config, enter="buffer@a").ledger() == Ledger()
    monkeypatch.setenv(LAUNCH_VARIABLE, "nonsense")
    with pytest.raises(StoreError, match="VCPPO_LAUNCH = 'nonsense'"):
        connect_store(config, enter="buffer@a")


def test_asked_again_after_a_lost_reply_it_is_the_same_incarnation(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen Redis answers both tries, in whatever order: neither must supersede the other."""
    store = two.store()
    once = store._redis.run

    def twice(script: str, keys: Any, args: Any) -> Any:
        first = once(script, keys, args)
        assert once(script, keys, args) == first
        return first

    monkeypatch.setattr(store._redis, "run", twice)
    store.enter("learner")
    store.ledger()


def test_killed_and_back_from_its_file_redis_knows_everybody(two: Two) -> None:
    stores = {name: two.store() for name in ("learner", "generator-0", "buffer@a")}
    for name, store in stores.items():
        store.enter(name)
    two.server.kill()
    two.server.start()
    for store in stores.values():
        store.ledger()


def test_a_store_that_was_emptied_says_so_also_once_another_has_entered_it(two: Two) -> None:
    store = two.store()
    store.enter("learner")
    store.issue([a_prompt(0)])
    store._redis._client.flushall()
    with pytest.raises(StoreChanged, match=r"was emptied.*learner number 1 .*restore the store's data") as emptied:
        store.issue([a_prompt(1)])
    assert emptied.value.exit_code == EXIT_REFUSED
    assert two.keys().keys() <= {f"vcppo:{{{two.run_id}}}:schema"}
    assert two.store().enter("learner").number == 1  # the number is the same, the process is not
    with pytest.raises(Superseded):
        store.issue([a_prompt(1)])


def test_a_store_of_an_earlier_day_says_so(two: Two) -> None:
    """A copy from before we entered, and one from after: then what was counted since is missing."""
    first = two.store()
    first.enter("learner")
    first.issue([a_prompt(0)])
    copies = two.keys()

    def restore() -> None:
        client = first._redis._client
        client.flushall()
        for name, value in copies.items():
            client.restore(name, 0, value)

    first.issue([a_prompt(1)])
    assert first.ledger().issued == 2
    restore()
    with pytest.raises(StoreChanged, match="earlier day: issued was 2, is 1"):
        first.ledger()
    second = two.store()
    second.enter("learner")
    restore()
    with pytest.raises(StoreChanged, match="earlier day: it knows learner number 1, and this is 2"):
        second.issue([a_prompt(2)])


def test_what_another_program_writes_there_is_not_believed(two: Two) -> None:
    store = two.store()
    store.enter("learner")
    client, prefix = store._redis._client, f"vcppo:{{{two.run_id}}}:"
    client.delete(*client.keys(prefix + "incarnation:*"))
    with pytest.raises(StoreChanged, match="lost keys of learner"):
        store.ledger()
    for entry in (b"\xff", b"9:ab:[1]", b"9:ab:" + json.dumps({"host": "h" * 9999, "pid": 1, "since": 1e30}).encode()):
        client.hset(prefix + "incarnations", "learner", entry)
        with pytest.raises(StoreError) as refused:
            store.ledger()
        assert len(str(refused.value)) < 700


def jump(store: RunStore, two: Two, seconds: float) -> None:
    """What a script sees when Redis' clock is set by so much: it looked at another time than it remembers."""
    key = f"vcppo:{{{two.run_id}}}:clock"
    client = store._redis._client
    wall = int(client.hget(key, "wall"))
    client.hset(key, "wall", wall - int(seconds * 1000))


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 86_400.0 * 365])
def test_a_clock_that_is_set_ends_no_lease_and_no_membership(two: Two, seconds: float) -> None:
    store = two.store()
    store.issue([a_prompt(0)])
    assert len(store.lease("g0", 1, 60, 0)) == 1
    store.register_member(Member("g0", "generator"), 15)
    for _ in range(6):  # as often as makes a poison prompt of one whose leases expire
        jump(store, two, seconds)
        assert store.requeue_expired_leases() == []
        store.register_member(Member("g0", "generator"), 15)
        assert store.renew_leases("g0", ["p0000"], 60) == []
    assert [member.id for member in store.members("generator")] == ["g0"]
    assert store.ledger() == Ledger(issued=1, leased=1)


def test_after_a_clock_was_set_back_a_dead_generators_lease_runs_out_in_its_own_time(two: Two) -> None:
    store = two.store()
    store.issue([a_prompt(0)])
    store.lease("g0", 1, 0.4, 0)
    jump(store, two, -3600)
    assert store.requeue_expired_leases() == []
    end = time.monotonic() + 10
    while not (back := store.requeue_expired_leases()):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert back == ["p0000"]
