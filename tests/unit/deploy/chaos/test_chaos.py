"""Chaos without a run: the schedule is the seed's, links cut and block real sockets, the storm judges by new steps."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.run_folder import RunFolder
from vcppo.common.store import redis_connection
from vcppo.common.store.ledger import DeadLetter, Ledger, Outstanding
from vcppo.common.transport import sockets
from vcppo.deploy.chaos.chaos_page import Outcome
from vcppo.deploy.chaos.chaos_run import RECIPE, chaos_config, make_links, possible_kinds
from vcppo.deploy.chaos.evidence import Evidence, checks
from vcppo.deploy.chaos.faults.scene import Blow, freeze_seconds
from vcppo.deploy.chaos.proxy import Address, Link, Links
from vcppo.deploy.chaos.schedule import MAX_GAP_SECONDS, MAX_STRETCH, Fault, Kind, kinds_text, schedule
from vcppo.deploy.chaos.storm import Storm
from vcppo.deploy.chaos.watch import Watch


class TestSchedule:
    def test_the_same_seed_deals_the_same_faults(self) -> None:
        first, again, other = (list(islice(schedule(seed), 100)) for seed in (7, 7, 8))
        assert first == again
        assert first != other

    @pytest.mark.parametrize("seed", range(5))
    def test_every_kind_comes_equally_often(self, seed: int) -> None:
        faults = list(islice(schedule(seed), 4 * len(Kind)))
        assert set(Counter(fault.kind for fault in faults).values()) == {4}
        assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
        assert all(0 <= fault.draw < 1 and 0 <= fault.gap_seconds <= MAX_GAP_SECONDS for fault in faults)
        assert all(1 < fault.stretch <= MAX_STRETCH for fault in faults)

    def test_only_the_kinds_asked_for(self) -> None:
        assert {fault.kind for fault in islice(schedule(0, [Kind.KILL_REDIS, Kind.FILL_SPOOL]), 9)} == {
            Kind.KILL_REDIS, Kind.FILL_SPOOL,
        }  # fmt: skip
        with pytest.raises(ValueError, match="at least one"):
            next(schedule(0, []))

    def test_the_draw_covers_all_candidates(self) -> None:
        fault = next(schedule(0))
        assert [fault._replace(draw=draw).pick("abc") for draw in (0.0, 0.34, 0.999)] == ["a", "b", "c"]
        with pytest.raises(ValueError, match="nothing to hit"):
            fault.pick([])

    def test_the_help_names_every_kind(self) -> None:
        text = kinds_text()
        assert all(word in text for kind in Kind for word in kind.value.split())


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def is_lost(client: socket.socket) -> bool:
    try:
        return client.recv(10) == b""
    except ConnectionError:
        return True


class TestLinks:
    def connect(self, link: Link) -> socket.socket:
        client = socket.create_connection(("127.0.0.1", link.port), timeout=5)
        client.settimeout(5)
        return client

    def test_bytes_go_through_both_ways(self, echo: int) -> None:
        link = Link("a", Address(host="127.0.0.1", port=echo))
        with Links(link), self.connect(link) as client:
            data = np.arange(200_000, dtype=np.int32).tobytes()
            threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
            found = bytearray()
            while len(found) < len(data):
                found += client.recv(1 << 16)
            assert bytes(found) == data

    def test_cut_resets_and_refuses_until_restored(self, echo: int) -> None:
        link = Link("a", Address(host="127.0.0.1", port=echo))
        with Links(link) as links:
            client = self.connect(link)
            client.sendall(b"one")
            assert client.recv(10) == b"one"
            links.cut("a")
            assert is_lost(client)
            with pytest.raises(OSError, match="refused"):
                self.connect(link)
            links.restore("a")
            with self.connect(link) as again:
                again.sendall(b"two")
                assert again.recv(10) == b"two"

    def test_block_holds_bytes_back_and_lets_them_through_later(self, echo: int) -> None:
        link = Link("a", Address(host="127.0.0.1", port=echo))
        with Links(link) as links, self.connect(link) as client:
            client.sendall(b"one")
            assert client.recv(10) == b"one"
            links.block("a")
            client.sendall(b"two")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                client.recv(10)
            client.settimeout(5)
            with self.connect(link) as newcomer:  # accepted, and as silent
                newcomer.settimeout(0.3)
                newcomer.sendall(b"x")
                with pytest.raises(TimeoutError):
                    newcomer.recv(10)
                links.restore("a")
                assert client.recv(10) == b"two"
                newcomer.settimeout(5)
                assert newcomer.recv(10) == b"x"


class TestConfig:
    """The recipe as chaos changes it: a run of its own, in nobody's way, whose spool can be filled."""

    def config(self, tmp_path: Path, *overrides: str, seed: int = 3) -> VcppoConfig:
        return chaos_config(RECIPE, [f"run.folder={tmp_path}", *overrides], seed)

    def test_it_never_touches_a_run_that_exists(self, tmp_path: Path) -> None:
        names = []
        for _ in range(3):
            config = self.config(tmp_path)
            names.append(config.run.name)
            config.run.path.mkdir()
        assert names == ["small-chaos-3", "small-chaos-3-2", "small-chaos-3-3"]

    def test_its_model_is_its_own_cold_start_unless_one_is_given(self, tmp_path: Path) -> None:
        assert self.config(tmp_path).model.path == str(tmp_path / "small-chaos-3" / "cold_start")
        assert self.config(tmp_path, f"model.path={tmp_path}").model.path == str(tmp_path)

    def test_a_few_trajectories_fill_the_spool(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        quota = (config.transport.spool_memory_mib + config.transport.spool_disk_mib) * 2**20
        trajectory = 10 * config.generator.max_model_len  # bytes, roughly
        assert trajectory < quota < config.generator.max_in_flight * trajectory
        assert all(
            getattr(config.launcher, f"{role}_restarts") >= 10 for role in ("generator", "learner", "buffer", "redis")
        )

    def test_it_listens_where_nobody_else_does(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, "transport.endpoints=[tcp://127.0.0.1:1, tcp://127.0.0.1:2]")
        assert len(set(config.transport.endpoints)) == 2
        assert not {"tcp://127.0.0.1:1", "tcp://127.0.0.1:2"} & set(config.transport.endpoints)
        links = make_links(config)
        assert len(links) == 5
        assert len({link.name for link in links}) == 5

    def test_a_redis_of_ones_own_is_not_killed_but_cut_off(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, "redis.url=redis://127.0.0.1:6390/2")
        kinds = possible_kinds(config, 90.0)
        assert Kind.KILL_REDIS not in kinds
        assert {Kind.CUT_REDIS, Kind.BLOCK_REDIS, Kind.KILL_LEARNER} <= set(kinds)
        assert make_links(config)[-1].target == Address(host="127.0.0.1", port=6390)
        with pytest.raises(VcppoError, match="plain redis://"):
            make_links(self.config(tmp_path, "redis.url=rediss://host:6390/0"))

    def test_freezes_outlast_every_deadline_that_watches(self, tmp_path: Path) -> None:
        config = self.config(tmp_path)
        assert freeze_seconds("generator", config) >= config.generator.lease_seconds
        assert freeze_seconds("generator", config) >= config.broadcast.deadline_seconds
        assert freeze_seconds("buffer", config) >= config.transport.ack_deadline_seconds
        assert freeze_seconds("redis", config) >= redis_connection.SOCKET_TIMEOUT_SECONDS
        assert freeze_seconds("buffer", config) >= sockets.HEARTBEAT_DEADLINE_SECONDS

    def test_an_agents_rollouts_have_room_and_their_child_is_frozen_beyond_its_deadline(self, tmp_path: Path) -> None:
        plain = self.config(tmp_path)
        options = "task.options={command: ['true'], problems: chain_arithmetic}"
        agents = ("task.name=command_agent", options, "task.max_segments=4", "task.max_rollout_seconds=20")
        config = self.config(tmp_path, *agents)
        assert config.transport.max_message_mib == 4 * plain.transport.max_message_mib
        assert freeze_seconds("verifier", plain) == plain.task.verifier_timeout_seconds
        assert freeze_seconds("verifier", config) == 20 and freeze_seconds("launcher", config) < 20
        assert Kind.FREEZE_VERIFIER in possible_kinds(config, 90.0)
        assert Kind.FREEZE_VERIFIER not in possible_kinds(config, 20.0)


class FakeInjector:
    """Strikes whatever it is told to; blows end by themselves."""

    def __init__(self) -> None:
        self.struck: list[Fault] = []
        self.undone = 0
        self.next: dict[str, Any] = {}
        self.available = True

    def strike(self, fault: Fault) -> Blow | None:
        if not self.available:
            return None
        self.struck.append(fault)
        return Blow(fault, "it", **self.next)

    def undo_all(self) -> None:
        self.undone += 1


class Scene:
    """A storm on a clock of the test's own."""

    def __init__(self, tmp_path: Path, minutes: float = 1.0) -> None:
        self.now, self.whole, self.told = 0.0, True, list[str]()
        self.injector, self.watch = FakeInjector(), Watch(RunFolder(tmp_path))
        self.storm = Storm(
            (fault._replace(gap_seconds=1.0, overlaps=False) for fault in schedule(0)),
            self.injector,
            self.watch,
            minutes=minutes,
            limit_seconds=30.0,
            steps_needed=3,
            start_seconds=100.0,
            is_whole=lambda: self.whole,
            tell=self.told.append,
            clock=lambda: self.now,
        )

    def tick(self, seconds: float = 1.0, steps: int = 0) -> None:
        self.now += seconds
        self.watch.step += steps
        self.storm.tick()


class TestStorm:
    def test_nothing_strikes_before_the_first_step(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        for _ in range(20):
            scene.tick()
        assert not scene.injector.struck
        scene.tick(steps=1)
        scene.tick(2.0)
        assert len(scene.injector.struck) == 1

    def test_a_run_that_never_steps_is_a_problem(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.tick(101.0)
        assert scene.storm.over
        assert "no RL step" in scene.storm.problems[0]

    def test_recovery_is_new_steps_after_the_end_of_the_fault(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.injector.next = {"seconds": 10.0}
        scene.tick(steps=1)
        scene.tick(2.0)
        (entry,) = scene.storm.entries
        scene.tick(5.0, steps=9)  # steps during the fault show nothing
        scene.tick(6.0)
        assert (entry.step, entry.recovered_after) == (10, None)
        scene.tick(4.0, steps=2)
        assert entry.recovered_after is None
        scene.tick(1.0, steps=1)
        assert entry.recovered_after == 5.0
        assert len(scene.injector.struck) == 1
        scene.tick(2.0)
        assert len(scene.injector.struck) == 2

    def test_no_recovery_in_time_ends_the_storm_and_undoes_everything(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.tick(steps=1)
        scene.tick(2.0)
        scene.tick(1.0)
        scene.tick(31.0, steps=2)
        assert scene.storm.over
        assert scene.injector.undone
        assert "step 3 after 31 s, 4 wanted" in scene.storm.problems[0]
        assert scene.storm.entries[0].problem

    def test_a_fault_without_effect_is_a_problem(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.injector.next = {"seconds": 5.0, "achieved": lambda: False}
        scene.tick(steps=1)
        scene.tick(2.0)
        scene.tick(6.0, steps=5)
        assert "no effect" in scene.storm.problems[0]

    def test_nothing_to_hit_for_too_long_is_a_problem(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, minutes=10)
        scene.injector.available = False
        scene.tick(steps=1)
        scene.tick(10.0, steps=5)
        assert not scene.storm.problems
        scene.tick(25.0, steps=5)
        assert "nothing of the kind was up" in scene.storm.problems[0]

    def test_it_ends_when_all_is_up_and_stepping(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, minutes=0.1)
        scene.whole = False
        scene.tick(steps=1)
        scene.tick(2.0)
        scene.tick(1.0)
        scene.tick(5.0, steps=5)
        scene.tick(1.0)
        scene.tick(1.0, steps=5)
        assert not scene.storm.over
        scene.whole = True
        scene.tick(1.0)
        assert scene.storm.over
        assert not scene.storm.problems


CONFIG = VcppoConfig.model_validate(
    {
        "model": {"path": "x"},
        "rl": {"batch_size": 4, "group_size": 2, "num_steps": 5},
        "algorithm": {"num_mini_batches": 1},
    }
)


def step(number: int, *indices: int) -> dict[str, Any]:
    ids = [f"rl-{index // 2:08d}-{index % 2}" for index in indices]
    return {"step": number, "prompt_ids": ids, "trajectory_ids": [f"{name}@g" for name in ids], "staleness": [0, 1]}


GOOD = Evidence(
    ledger=Ledger(issued=8, queued=1, buffered=1, trained=4, rejected=1, expired=1),
    outstanding=[Outstanding("rl-00000002-0", "g", 0, "queued"), Outstanding("rl-00000002-1", "g", 0, "buffered")],
    dead_letters=[DeadLetter("1-0", 0.0, "poison prompt", "rl-00000003-0: its lease expired", "g", 1, b"")],
    next_index={"value_pretraining": 0, "rl": 8},
    steps={1: step(1, 0, 1), 2: step(2, 2, 3)},
)


EVALUATED = replace(GOOD.ledger, issued=12, evaluated=4)


def evaluation(version: int, *seen: int) -> dict[str, Any]:
    """Of two answers, one of them a benchmark's."""
    figures = {"num_samples": 1, "num_lost": 0}
    return {"version": version, "versions_seen": list(seen), **figures, "benchmarks": {"other": figures}}


def failing(evidence: Evidence) -> set[str]:
    return {check.what.split(",")[0] for check in checks(evidence, CONFIG) if not check.passed}


class TestEvidence:
    @pytest.mark.parametrize(
        ("change", "fails"),
        [
            ({}, set()),
            ({"ledger": replace(GOOD.ledger, issued=9)}, {"ledger exact"}),
            ({"ledger": replace(GOOD.ledger, leased=1, queued=0)}, {"nothing in flight at rest"}),
            ({"outstanding": GOOD.outstanding[:1], "ledger": replace(GOOD.ledger, buffered=0, issued=7)},
             {"every issued prompt accounted for"}),
            ({"steps": {1: step(1, 0, 1)}}, {"every issued prompt accounted for", "store and learner agree"}),
            ({"steps": GOOD.steps | {3: step(3, 4)}}, {"every issued prompt accounted for", "store and learner agree"}),
            ({"dead_letters": [GOOD.dead_letters[0]._replace(reason="invalid")]}, {"dead letters explained"}),
            ({"dead_letters": []}, {"dead letters explained"}),
            ({"ledger": EVALUATED, "evaluations": [evaluation(2, 2), evaluation(4, 4)]}, set()),
            ({"ledger": EVALUATED, "evaluations": [evaluation(2, 2), evaluation(4, 3, 4)]},
             {"each evaluation is of one policy version"}),
            ({"ledger": replace(EVALUATED, evaluated=3, issued=11),
              "evaluations": [evaluation(2, 2), evaluation(4, 4)]},
             {"each evaluation is of one policy version"}),
        ],
    )  # fmt: skip
    def test_each_loss_fails_a_check(self, change: dict[str, Any], fails: set[str]) -> None:
        assert failing(replace(GOOD, **change)) == fails

    def test_an_outcome_is_as_good_as_its_worst_check(self, tmp_path: Path) -> None:
        good = list(checks(GOOD, CONFIG))
        outcome = Outcome(0, 1, 30, 60, tuple(Kind), (), tuple(good), GOOD.ledger, 2, {})
        assert outcome.passed
        assert not replace(outcome, checks=(*good, good[0]._replace(passed=False))).passed
        assert outcome.as_dict()["counts"] == {kind.value: 0 for kind in Kind}


class TestWatch:
    def test_ends_must_be_explained(self, tmp_path: Path) -> None:
        watch = Watch(RunFolder(tmp_path))

        def end(process: str, code: int) -> None:
            watch.see("launcher", {"event": "process_ended", "process": process, "exit_code": code})

        end("generator-0", -9)
        end("learner", 143)
        watch.see("buffer", {"event": "fatal", "level": "error", "error": "no Redis"})
        end("buffer", 1)
        assert watch.unexplained_ends({"generator-0"}) == []
        watch.see("launcher", {"event": "process_started", "process": "buffer"})
        end("buffer", 1)
        end("learner", -11)
        end("generator-1", -9)
        assert "learner with exit code -11" not in watch.unexplained_ends({"learner"}, groups=["learner"])
        assert watch.unexplained_ends({"generator-0"}) == [
            "buffer with exit code 1", "learner with exit code -11", "generator-1 with exit code -9",
        ]  # fmt: skip
