"""The store on a real Redis: the ledger is exact after every operation, whatever their order."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pytest

from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import encode_prompt, tokens_digest
from vcppo.common.store.ledger import BufferEntry, Ledger, Member
from vcppo.common.store.run_store import MAX_LEASE_EXPIRIES, RunStore, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from tests.integration.conftest import RedisServer

_RUNS = itertools.count()


def a_prompt(number: int, version: int = 0) -> Prompt:
    tokens = np.arange(4, dtype=np.int32)
    return Prompt(
        f"p{number:04d}", f"g{number // 4}", number % 4, "t", tokens, {"n": number}, number, version, "rl", 99
    )


def an_entry(prompt_id: str, attempt: int = 0, payload: bytes = b"payload") -> BufferEntry:
    number = int(prompt_id[1:])
    digest = tokens_digest(np.arange(4, dtype=np.int32))
    return BufferEntry(
        prompt_id,
        f"{prompt_id}@g.{attempt}",
        f"g{number // 4}",
        0,
        0,
        10,
        payload,
        number % 4,
        "t",
        digest,
        6,
        1.0,
        True,
    )


@pytest.fixture
def store(shared_redis: RedisServer) -> RunStore:
    return shared_redis.store(f"run-{next(_RUNS)}")


def test_a_prompt_goes_through_every_state(store: RunStore) -> None:
    prompts = [a_prompt(number) for number in range(8)]
    assert store.issue(prompts) == 8
    leased = store.lease("g0", 4, 60, 0)
    assert [p.id for p in leased] == ["p0000", "p0001", "p0002", "p0003"]
    assert leased[1].answer == {"n": 1}
    np.testing.assert_array_equal(leased[1].token_ids, prompts[1].token_ids)
    assert store.append([an_entry(p.id, payload=p.id.encode()) for p in leased]) == ["accepted"] * 4
    assert store.claim(["p0002", "p0000"], 7) == [b"p0002", b"p0000"]
    assert store.claimed() == {7: ["p0002", "p0000"]}
    assert store.payloads(["p0001", "p0002"]) == [b"p0001", b"p0002"]
    assert store.commit(["p0002"]) == 1
    assert store.reject("p0001", "broken")
    assert store.expire(["p0004"], "late") == ["p0004"]
    assert store.ledger() == Ledger(
        issued=8, queued=3, leased=0, buffered=1, claimed=1, trained=1, rejected=1, expired=1
    )
    states = [(o.prompt_id, o.state, o.claimed_step) for o in store.outstanding()]
    assert states == [
        ("p0000", "claimed", 7),
        ("p0003", "buffered", None),
        ("p0005", "queued", None),
        ("p0006", "queued", None),
        ("p0007", "queued", None),
    ]
    assert store.outstanding()[0].trajectory_id == "p0000@g.0"
    with pytest.raises(StoreError, match="p0002"):
        store.payloads(["p0002"])


def test_repeating_a_call_changes_nothing_more(store: RunStore) -> None:
    prompts = [a_prompt(number) for number in range(2)]
    assert (store.issue(prompts), store.issue(prompts)) == (2, 0)
    store.lease("g0", 2, 60, 0)
    entry = an_entry("p0000")
    assert store.append([entry, entry]) == ["accepted", "duplicate"]
    assert store.append([entry._replace(trajectory_id="other")]) == ["duplicate"]
    assert store.claim(["p0000"], 1) == store.claim(["p0000"], 1) == [b"payload"]
    assert (store.commit(["p0000"]), store.commit(["p0000"])) == (1, 0)
    assert store.append([entry]) == ["duplicate"]
    assert (store.reject("p0001", "r"), store.reject("p0001", "r")) == (True, False)
    assert store.issue(prompts) == 0  # settled prompts are remembered
    assert store.ledger() == Ledger(issued=2, trained=1, rejected=1)


def test_an_evaluation_comes_first_and_is_settled_as_evaluated(store: RunStore) -> None:
    store.issue([a_prompt(number) for number in range(4)])
    store.issue([a_prompt(number) for number in (7, 6)], first=True)
    assert [p.id for p in store.lease("g0", 3, 60, 0)] == ["p0007", "p0006", "p0000"]
    store.return_leases("g0")  # to their old places
    assert [p.id for p in store.lease("g0", 1, 60, 0)] == ["p0007"]
    assert [entry.prompt_id for entry in store.outstanding()][:3] == ["p0007", "p0006", "p0000"]
    assert store.append([an_entry("p0007")]) == ["accepted"]
    assert store.evaluated(["p0007", "p0006", "p0007"]) == 1  # p0006 is queued
    assert store.evaluated(["p0007"]) == 0
    assert store.append([an_entry("p0007")]) == ["duplicate"]
    assert store.ledger() == Ledger(issued=6, queued=5, evaluated=1)
    assert store.num_dead_letters() == 0


def test_a_group_without_signal_is_left_out_whole_and_is_no_dead_letter(store: RunStore) -> None:
    store.issue([a_prompt(number) for number in range(8)])
    store.append([an_entry(f"p{number:04d}") for number in range(4)])
    group = [f"p{number:04d}" for number in range(4)]
    entry = store.outstanding()[0]
    assert (entry.num_tokens, entry.num_response, entry.reward, entry.is_correct) == (10, 6, 1.0, True)
    assert not store.leave_out([*group, "p0004"], ("left_out", "too much"))  # p0004 is queued: nothing is done
    assert (store.ledger().rejected, store.get_value("left_out")) == (0, None)
    assert store.leave_out(group, ("left_out", "four"))
    assert not store.leave_out(group, ("left_out", "again"))  # a second call changes nothing
    assert store.get_value("left_out") == "four"
    assert store.ledger() == Ledger(issued=8, queued=4, rejected=4, without_signal=4)
    assert store.num_dead_letters() == 0
    assert store.append([an_entry("p0001")]) == ["duplicate"]
    assert store.wait_for_all(["p0000"], 0)  # who waits for it is woken


def settle(store: RunStore, numbers: range, at_once: int = 512) -> None:
    """Issue and expire these prompts, so many at a time."""
    for first in range(numbers.start, numbers.stop, at_once):
        prompts = [a_prompt(number) for number in numbers[first - numbers.start :][:at_once]]
        assert store.issue(prompts) == len(prompts)
        assert len(store.expire([prompt.id for prompt in prompts], "test")) == len(prompts)


def test_memory_stops_growing_however_many_prompts_are_settled(redis_process: RedisServer) -> None:
    store = redis_process.store()
    empty = store.memory().used
    settle(store, range(0, 20_000))
    after_minutes = store.memory().used
    assert after_minutes - empty < 2 * 2**20
    settle(store, range(20_000, 40_000))
    grown = store.memory().used - after_minutes
    assert grown < 2**18  # an id takes 100 bytes: 20,000 more of them would be 2 MiB
    assert store.append([an_entry("p39000"), an_entry("p0000")]) == ["duplicate", "unknown"]
    assert store.ledger() == Ledger(issued=40_000, expired=40_000)


def test_settled_prompts_are_remembered_for_longer_where_more_are_in_flight(store: RunStore) -> None:
    """A commit may settle more at once than are remembered at least: their copies can still be on the wire."""
    settle(store, range(0, 5_000), at_once=5_000)
    settle(store, range(5_000, 20_000))
    assert store.append([an_entry("p0000"), an_entry("p19999")]) == ["duplicate"] * 2
    settle(store, range(20_000, 25_000))
    assert store.append([an_entry("p4999"), an_entry("p5000")]) == ["unknown", "duplicate"]


def test_claim_is_all_or_nothing(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(3)])
    store.append([an_entry("p0000"), an_entry("p0001")])
    with pytest.raises(StoreError, match="p0002 is not buffered"):
        store.claim(["p0000", "p0002"], 1)
    assert store.ledger().claimed == 0
    store.claim(["p0000"], 1)
    with pytest.raises(StoreError, match="p0000"):
        store.claim(["p0000"], 2)  # another step may not take it


def test_unknown_prompts_are_not_accepted(store: RunStore) -> None:
    assert store.append([an_entry("p0042")]) == ["unknown"]
    assert store.ledger() == Ledger()


def test_a_trajectory_of_another_group_or_version_is_not_accepted(store: RunStore) -> None:
    """It would be compared with the wrong group, or alone."""
    store.issue([a_prompt(0, version=3)])
    entry = an_entry("p0000")._replace(issue_version=3)
    others = [
        entry._replace(group_id="g7"),
        entry._replace(issue_version=2),
        entry._replace(sample_index=1),
        entry._replace(task="u"),
        entry._replace(prompt_digest=tokens_digest(np.arange(1, 5, dtype=np.int32))),
    ]
    assert store.append(others) == ["mismatch"] * len(others)
    assert store.ledger() == Ledger(issued=1, queued=1)
    assert store.append([entry]) == ["accepted"]


def test_a_trajectory_of_an_open_prompt_may_have_other_tokens_and_nothing_else(store: RunStore) -> None:
    """An agent asks what it likes; whose sample it is remains what was issued."""
    store.issue([replace(a_prompt(0), is_open=True), a_prompt(1)])
    other = tokens_digest(np.arange(1, 5, dtype=np.int32))
    entry = an_entry("p0000")._replace(prompt_digest=other)
    others = [entry._replace(group_id="g7"), entry._replace(issue_version=2), entry._replace(task="u")]
    assert store.append([*others, an_entry("p0001")._replace(prompt_digest=other)]) == ["mismatch"] * 4
    assert store.append([entry]) == ["accepted"]


def test_only_the_trajectory_of_an_open_prompt_may_have_segments(store: RunStore) -> None:
    """Their prompts are nowhere on record: of another task's prompt nobody could say whose they are."""
    store.issue([replace(a_prompt(0), is_open=True), a_prompt(1), a_prompt(2)])
    facts = f"{store._prefix}facts"
    store._redis.call("test", lambda client: client.hset(facts, "p0002", msgpack.packb(["g0", 0])))  # an older version
    entries = [an_entry(name)._replace(num_segments=1) for name in ("p0000", "p0001", "p0002")]
    assert store.append(entries) == ["accepted", "mismatch", "mismatch"]
    assert store.append(entries[:1]) == ["duplicate"]
    assert store.ledger() == Ledger(issued=3, queued=2, buffered=1)


def test_what_an_older_version_issued_is_accepted(store: RunStore) -> None:
    """It kept a group and a version of each prompt, no more."""
    store.issue([a_prompt(0, version=3)])
    facts = f"{store._prefix}facts"
    store._redis.call("test", lambda client: client.hset(facts, "p0000", msgpack.packb(["g0", 3])))
    entry = an_entry("p0000")._replace(issue_version=3)
    assert store.append([entry._replace(issue_version=2)]) == ["mismatch"]
    assert store.outstanding()[0].group_id == "g0"
    assert store.append([entry]) == ["accepted"]


def test_a_prompt_that_was_damaged_in_the_store_is_rejected_when_it_is_leased(store: RunStore) -> None:
    """It would end every generator that leases it, one after the other."""
    prompts = [a_prompt(n) for n in range(4)]
    store.issue(prompts)
    key = f"{store._prefix}prompts"
    flipped = bytearray(encode_prompt(prompts[0]))
    flipped[-10] ^= 4
    changed = {"p0000": bytes(flipped), "p0001": encode_prompt(prompts[2])}
    store._redis.call("test", lambda client: client.hset(key, mapping=changed))
    store._redis.call("test", lambda client: client.hdel(key, "p0003"))
    assert [prompt.id for prompt in store.lease("g", 2, 60, 0.1)] == ["p0002"]
    assert store.lease("g", 2, 60, 0) == []
    assert store.ledger() == Ledger(issued=4, leased=1, rejected=3)
    letters = {letter.detail.split(": ")[0]: letter for letter in store.dead_letters()}
    assert set(letters) == {"p0000", "p0001", "p0003"}
    assert {letter.reason for letter in letters.values()} == {"damaged prompt"}
    assert "checksum" in letters["p0000"].detail and letters["p0000"].payload == bytes(flipped)


def test_requeued_prompts_keep_their_place(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(4)])
    store.lease("g0", 2, 60, 0)
    store.lease("g1", 1, 60, 0)
    assert store.return_leases("g0", ["p0001", "p0002"]) == 1  # p0002 is another's
    assert [p.id for p in store.lease("g2", 2, 60, 0)] == ["p0001", "p0003"]
    assert store.return_leases("g0") == 1
    assert store.lease("g2", 1, 60, 0)[0].id == "p0000"


def test_an_expired_lease_goes_to_another_and_the_first_trajectory_wins(store: RunStore) -> None:
    store.issue([a_prompt(0)])
    assert store.lease("dead", 1, 0.02, 0)
    started = time.monotonic()
    (again,) = store.lease("alive", 1, 60, 5)  # wakes when the lease expires, not after the whole wait
    assert time.monotonic() - started < 3
    assert store.renew_leases("dead", [again.id], 60) == [again.id]
    assert store.renew_leases("alive", [again.id], 60) == []
    assert store.append([an_entry(again.id, 0), an_entry(again.id, 1)]) == ["accepted", "duplicate"]


def test_a_late_trajectory_of_a_requeued_prompt_is_taken(store: RunStore) -> None:
    store.issue([a_prompt(0)])
    store.lease("slow", 1, 60, 0)
    store.return_leases("slow")
    assert store.append([an_entry("p0000")]) == ["accepted"]
    assert store.lease("other", 1, 60, 0) == []


def test_a_prompt_that_kills_its_generators_is_rejected(store: RunStore) -> None:
    store.issue([a_prompt(0)])
    for attempt in range(MAX_LEASE_EXPIRIES):
        assert store.ledger().rejected == 0
        assert store.lease(f"g{attempt}", 1, 0.001, 0)
        time.sleep(0.005)
        store.requeue_expired_leases()
    assert store.ledger() == Ledger(issued=1, rejected=1)
    (letter,) = store.dead_letters()
    assert letter.reason == "poison prompt"
    assert "p0000" in letter.detail


def test_rejecting_by_a_sender_needs_its_own_lease(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(2)])
    store.lease("g0", 1, 60, 0)
    store.append([an_entry("p0001")])
    assert not store.reject("p0000", "r", leased_by="g1")
    assert not store.reject("p0001", "r", leased_by="g0")  # buffered: out of a sender's reach
    assert store.reject("p0000", "r", leased_by="g0", payload=b"x" * 10_000)
    (letter,) = store.dead_letters()
    assert (letter.source, letter.size, len(letter.payload)) == ("g0", 10_000, 4096)


def test_dead_letters_are_newest_first(store: RunStore) -> None:
    for number in range(3):
        store.dead_letter(f"reason {number}", "detail", "source", b"\xff\x00")
    letters = store.dead_letters(2)
    assert [letter.reason for letter in letters] == ["reason 2", "reason 1"]
    assert letters[0].payload == b"\xff\x00"
    assert abs(letters[0].time - time.time()) < 60


def woken(wait: Callable[[], object], act: Callable[[], object]) -> tuple[object, float]:
    """What `wait` returns once `act` was done 0.2 s later, and how long after `act` it did."""
    result: list[object] = []
    thread = threading.Thread(target=lambda: result.append(wait()))
    thread.start()
    time.sleep(0.2)
    assert thread.is_alive()
    started = time.monotonic()
    act()
    thread.join(10)
    return result[0], time.monotonic() - started


def test_lease_waits_for_a_prompt(store: RunStore) -> None:
    prompts, seconds = woken(lambda: store.lease("g", 1, 60, 8), lambda: store.issue([a_prompt(0)]))
    assert [p.id for p in prompts] == ["p0000"]  # type: ignore[attr-defined]
    assert seconds < 2
    returned, _ = woken(lambda: store.lease("h", 1, 60, 8), lambda: store.return_leases("g"))
    assert len(returned) == 1  # type: ignore[arg-type]
    started = time.monotonic()
    assert store.lease("g", 1, 60, 0.3) == []
    assert 0.25 < time.monotonic() - started < 3


def test_wait_for_append(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(30)])
    assert not store.wait_for_append(0.05)
    store.append([an_entry("p0000")])  # between two calls: not lost
    assert store.wait_for_append(0.05)
    assert not store.wait_for_append(0.05)
    result, seconds = woken(lambda: store.wait_for_append(8), lambda: store.append([an_entry("p0001")]))
    assert result is True
    assert seconds < 2
    for number in range(2, 30):  # more than the stream keeps
        store.append([an_entry(f"p{number:04d}")])
    assert store.wait_for_append(0.05)
    assert not store.wait_for_append(0.05)


def test_members_live_by_their_heartbeat(store: RunStore) -> None:
    member = Member("generator-1", "generator", "tcp://x:1", 3, 77, {"pid": 5})
    store.register_member(member, 60)
    store.register_member(Member("generator-0", "generator"), 0.01)
    store.register_member(Member("buffer-0", "buffer"), 60)
    time.sleep(0.02)
    assert store.members("generator") == [member]
    store.unregister_member("generator-1")
    assert store.members("generator") == []
    assert [m.id for m in store.members("buffer")] == ["buffer-0"]


def test_values_and_runs_do_not_mix(store: RunStore, shared_redis: RedisServer) -> None:
    store.set_value("policy_version", "3")
    store.issue([a_prompt(0)])
    other = shared_redis.store("other-run")
    assert (store.get_value("policy_version"), other.get_value("policy_version")) == ("3", None)
    assert other.ledger() == Ledger()


def test_large_batches_keep_their_order(store: RunStore) -> None:
    prompts = [a_prompt(n) for n in range(500)]
    store.issue(prompts)
    payloads = [bytes([n % 256]) * (n * 97 % 9000) for n in range(500)]
    entries = [an_entry(p.id, payload=payload) for p, payload in zip(prompts, payloads, strict=True)]
    assert store.append(entries) == ["accepted"] * 500
    order = random.Random(0).sample(range(500), 500)
    assert store.claim([prompts[n].id for n in order], 1) == [payloads[n] for n in order]
    assert store.commit([p.id for p in prompts]) == 500
    assert store.ledger() == Ledger(issued=500, trained=500)


def test_no_redis_names_url_and_remedy() -> None:
    with pytest.raises(StoreError, match=r"no Redis at redis://\*\*\*@127\.0\.0\.1:1/0 .*set redis\.url"):
        RunStore.connect("redis://user:secret@127.0.0.1:1/0", "r", 0.3)
    with pytest.raises(StoreError, match=r"redis\.url"):
        RunStore.connect("http://x", "r", 0.3)


def test_another_schema_version_is_refused(redis_process: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_process.store()
    monkeypatch.setattr("vcppo.common.store.run_store.STORE_SCHEMA_VERSION", "2")
    with pytest.raises(StoreError, match="schema version 1"):
        redis_process.store()


def test_a_crashed_redis_comes_back_with_everything_acked(redis_process: RedisServer) -> None:
    store = redis_process.store(patience_seconds=20)
    store.issue([a_prompt(n) for n in range(10)])
    store.lease("g", 2, 600, 0)
    store.append([an_entry("p0000"), an_entry("p0005")])
    store.claim(["p0005"], 4)
    before = store.ledger(), store.outstanding()
    redis_process.kill()
    restart = threading.Timer(0.5, redis_process.start)
    restart.start()
    assert (store.ledger(), store.outstanding()) == before  # waits for it
    restart.join()
    assert store.claimed() == {4: ["p0005"]}
    assert store.payloads(["p0000"]) == [b"payload"]


def test_a_redis_that_stays_away_is_an_error_with_a_deadline(redis_process: RedisServer) -> None:
    store = redis_process.store(patience_seconds=0.3)
    redis_process.kill()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="is away since"):
        store.ledger()
    assert time.monotonic() - started < 5


def test_maxmemory_is_a_refusal_and_loses_nothing(redis_process: RedisServer) -> None:
    redis_process.kill()
    redis_process.start("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    store = redis_process.store()
    store.issue([a_prompt(n) for n in range(100)])
    entries = [an_entry(f"p{number:04d}", payload=bytes(100_000)) for number in range(100)]
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        store.append(entries)
    ledger = store.ledger()
    assert ledger.is_exact
    assert 0 < ledger.buffered < 50
    buffered = [o.prompt_id for o in store.outstanding() if o.state == "buffered"]
    store.claim(buffered, 1)  # what is there can still be trained, and makes room
    assert store.commit(buffered) == len(buffered)
    assert store.append(entries[50:55]) == ["accepted"] * 5


@dataclass
class Model:
    """What the store should hold, the obvious way."""

    states: dict[str, str] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def ids(self, *states: str) -> list[str]:
        return [name for name, state in self.states.items() if state in states]

    left_out: int = 0
    first: set[str] = field(default_factory=set)  # issued before all others

    def in_queue(self) -> list[str]:
        """Queued, in the order in which they are leased."""
        issued = list(self.states)
        return sorted(self.ids("queued"), key=lambda name: (name not in self.first, issued.index(name)))

    def ledger(self) -> Ledger:
        return Ledger(issued=len(self.states), **Counter(self.states.values()), without_signal=self.left_out)

    def move(self, names: list[str], state: str, *sources: str) -> list[str]:
        moved = [name for name in dict.fromkeys(names) if self.states.get(name) in sources]
        self.states |= dict.fromkeys(moved, state)
        return moved


@pytest.mark.parametrize("seed", range(6))
def test_ledger_is_exact_after_every_random_operation(store: RunStore, seed: int) -> None:
    rng = random.Random(seed)
    model = Model()
    for step in range(250):
        operate(rng, model, store, step)
        assert store.ledger() == model.ledger()
        assert store.ledger().is_exact
    for entry in store.outstanding():
        assert model.states[entry.prompt_id] == entry.state
        assert model.steps.get(entry.prompt_id) == entry.claimed_step
    assert len(store.outstanding()) == store.ledger().outstanding


def operate(rng: random.Random, model: Model, store: RunStore, step: int) -> None:
    """One random call on both sides; its result must agree."""
    some = [f"p{rng.randrange(60):04d}" for _ in range(rng.randrange(1, 6))]
    owner = f"g{rng.randrange(3)}"
    calls = (
        "issue",
        "lease",
        "lease",
        "append",
        "append",
        "return",
        "claim",
        "commit",
        "reject",
        "leave out",
        "evaluate",
        "expire",
    )
    match rng.choice(calls):
        case "issue":
            new = [name for name in dict.fromkeys(some) if name not in model.states]
            model.states |= dict.fromkeys(new, "queued")
            first = rng.random() < 0.2
            model.first |= set(new if first else ())
            assert store.issue([a_prompt(int(name[1:])) for name in some], first=first) == len(new)
        case "lease":
            expected = model.in_queue()[: len(some)]
            assert [p.id for p in store.lease(owner, len(some), 600, 0)] == expected
            model.move(expected, "leased", "queued")
            model.owners |= dict.fromkeys(expected, owner)
        case "return":
            mine = [name for name in model.ids("leased") if model.owners[name] == owner]
            assert store.return_leases(owner) == len(model.move(mine, "queued", "leased"))
        case "append":
            results = store.append([an_entry(name) for name in some])
            for name, result in zip(some, results, strict=True):
                known = "duplicate" if name in model.states else "unknown"
                assert result == ("accepted" if model.move([name], "buffered", "queued", "leased") else known)
        case "claim":
            names = rng.sample(model.ids("buffered"), min(3, len(model.ids("buffered"))))
            store.claim(names, step)
            model.steps |= dict.fromkeys(model.move(names, "claimed", "buffered"), step)
        case "commit":
            assert store.commit(some) == len(model.move(some, "trained", "claimed"))
        case "reject":
            moved = model.move(some[:1], "rejected", "queued", "leased", "buffered", "claimed")
            assert store.reject(some[0], "r") == bool(moved)
        case "leave out":
            names = list(dict.fromkeys(some))
            can = all(model.states.get(name) == "buffered" for name in names)
            model.left_out += len(model.move(names, "rejected", "buffered")) if can else 0
            assert store.leave_out(names, ("left_out", str(step))) == can
            assert (store.get_value("left_out") == str(step)) == can
        case "evaluate":
            assert store.evaluated(some) == len(model.move(some, "evaluated", "buffered"))
        case "expire":
            assert store.expire(some, "r") == model.move(some, "expired", "queued", "leased")


def test_many_writers_at_once_stay_exact(shared_redis: RedisServer) -> None:
    run_id, num = f"run-{next(_RUNS)}", 300
    shared_redis.store(run_id).issue([a_prompt(n) for n in range(num)])
    accepted: list[str] = []

    def work(name: str) -> None:
        store = shared_redis.store(run_id)
        while prompts := store.lease(name, 7, 600, 0.1):
            entries = [an_entry(p.id, payload=name.encode()) for p in prompts] * 2
            accepted.extend(r for r in store.append(entries) if r == "accepted")

    threads = [threading.Thread(target=work, args=(f"g{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(accepted) == num
    assert shared_redis.store(run_id).ledger() == Ledger(issued=num, buffered=num)


def test_waiting_for_all_of_some_is_not_woken_by_others(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(8)])
    store.append([an_entry("p0000")])
    assert store.wait_for_all(["p0000"], 0)
    assert not store.wait_for_all(["p0000", "p0001", "p0002"], 0)
    stream = f"{store._prefix}appended"
    newest = store._redis._client.xrevrange(stream, count=1)
    store.append([an_entry("p0003")])  # one of two that could end the wait at the earliest
    assert store._redis._client.xrevrange(stream, count=1) == newest
    store.append([an_entry("p0004")])  # now it might be over: it looks, and waits for two more
    assert store._redis._client.xrevrange(stream, count=1) != newest
    assert not store.wait_for_all(["p0001", "p0002"], 0.05)
    store.append([an_entry("p0001")])
    done, seconds = woken(lambda: store.wait_for_all(["p0001", "p0002"], 8), lambda: store.append([an_entry("p0002")]))
    assert done is True
    assert seconds < 2


def test_waiting_for_all_ends_when_one_will_never_come(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(4)])
    store.lease("g", 2, 60, 0)
    done, seconds = woken(lambda: store.wait_for_all(["p0000", "p0001"], 8), lambda: store.reject("p0001", "r"))
    assert done is True
    assert seconds < 2
    assert store.wait_for_all(["p0000", "p0001"], 8)


def test_a_wait_that_was_given_up_silences_nobody(store: RunStore) -> None:
    store.issue([a_prompt(n) for n in range(8)])
    assert not store.wait_for_all([f"p{n:04d}" for n in range(8)], 0)  # and its learner dies
    assert not store.wait_for_append(0.01)
    result, seconds = woken(lambda: store.wait_for_append(8), lambda: store.append([an_entry("p0001")]))
    assert result is True
    assert seconds < 2
