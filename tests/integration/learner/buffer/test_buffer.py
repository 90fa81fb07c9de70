"""The buffer process between a real sender and a real Redis."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from tests.integration.rig.scraper import scrape
from vcppo.common.config import RlConfig, TransportConfig
from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.run_store import RunStore
from vcppo.common.transport import TrajectorySender
from vcppo.common.transport.ports import free_endpoint, free_port

if TYPE_CHECKING:
    from tests.integration.conftest import RedisServer

TRANSPORT = TransportConfig(ack_deadline_seconds=1.0, max_message_mib=0.125)


def a_prompt(number: int) -> Prompt:
    return Prompt(f"p{number}", f"g{number}", 0, "t", np.arange(3, dtype=np.int32), {}, 0, 0, "rl", 99)


def a_trajectory(prompt_id: str, attempt: int = 0) -> Trajectory:
    return Trajectory(
        id=f"{prompt_id}@generator-0.{attempt}",
        prompt_id=prompt_id,
        group_id=f"g{prompt_id[1:]}",
        sample_index=0,
        task="t",
        prompt_token_ids=np.arange(3, dtype=np.int32),
        response_token_ids=np.arange(5, dtype=np.int32),
        action_mask=np.ones(5, bool),
        behaviour_log_probs=-np.ones(5, np.float32),
        version_spans=(VersionSpan(0, 2), VersionSpan(0, 3)),
        finish_reason="stop",
        reward=1.0,
        outcome="correct",
        generator_id="generator-0",
        issue_version=0,
    )


class BufferProcess:
    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder = folder
        tree = {
            "run": {"name": "run", "folder": str(folder)},
            "model": {"path": "none"},
            "redis": {"url": redis_url, "connect_deadline_seconds": 1.0},
            "transport": TRANSPORT.model_dump(),
            "logging": {"format": "json", "tensorboard": False},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        self.endpoint = free_endpoint()
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[dict[str, Any]] = []

    def command(self, *overrides: str) -> list[str]:
        config = str(self.folder / "config.yaml")
        return [
            sys.executable,
            "-m",
            "vcppo.learner.buffer",
            "--config",
            config,
            "--endpoint",
            self.endpoint,
            *overrides,
        ]

    def start(self, *overrides: str) -> None:
        """Until the ready line; the endpoint is kept for the next start."""
        self.process = process = subprocess.Popen(self.command(*overrides), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == "ready":
                self.endpoint = self.lines[-1]["endpoint"]
                return
        pytest.fail(f"the buffer never became ready: {self.lines}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        self.lines += [json.loads(line) for line in rest.splitlines()]
        return self.process.returncode


@pytest.fixture
def buffer(tmp_path: Path, redis_server: str) -> Iterator[BufferProcess]:
    made = BufferProcess(tmp_path, redis_server)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait(10)


@pytest.fixture
def store(redis_process: RedisServer) -> RunStore:
    return redis_process.store(patience_seconds=20)


@pytest.fixture
def make_sender(tmp_path: Path) -> Iterator[Callable[[str], TrajectorySender]]:
    made: list[TrajectorySender] = []

    def make(endpoint: str) -> TrajectorySender:
        made.append(TrajectorySender([endpoint], "generator-0", TRANSPORT, tmp_path / "spool"))
        return made[-1]

    yield make
    for sender in made:
        sender.close()


def eventually(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


def test_valid_ones_are_stored_once_and_the_others_are_dead_letters(
    buffer: BufferProcess, store: RunStore, make_sender: Callable[[str], TrajectorySender]
) -> None:
    buffer.start()
    assert [m.info["endpoint"] for m in store.members("buffer")] == [buffer.endpoint]
    store.issue([a_prompt(n) for n in range(6)])
    store.lease("generator-0", 5, 600, 0)
    store.lease("generator-1", 1, 600, 0)
    sender = make_sender(buffer.endpoint)
    payloads = {n: encode_trajectory(a_trajectory(f"p{n}")) for n in range(6)}
    sender.send("p0@generator-0.0", payloads[0])
    sender.send("p0@generator-0.1", encode_trajectory(a_trajectory("p0", 1)))  # a second rollout of the same prompt
    sender.send("p1@generator-0.0", b"garbage")
    sender.send("p2@generator-0.0", bytes(1 << 20))  # too large
    sender.send("p3@generator-0.0", payloads[4])  # another's name
    sender.send("p5@generator-0.0", b"garbage")  # leased to generator-1: not this sender's to spoil
    sender.send("q@generator-0.0", encode_trajectory(a_trajectory("q")))  # never issued
    assert sender.drain(20)
    assert store.ledger() == Ledger(issued=6, leased=2, buffered=1, rejected=3)
    assert store.claim(["p0"], 1) == [payloads[0]]  # the bytes as they were sent
    reasons = [letter.detail for letter in store.dead_letters()]
    assert len(reasons) == 5
    for part in ("p1: message: begins with", "max_message_mib", "p3: id: 'p4@generator-0.0' came in", "never issued"):
        assert any(part in reason for reason in reasons), (part, reasons)
    assert all(letter.source == "generator-0" for letter in store.dead_letters())
    (outstanding,) = [o for o in store.outstanding() if o.prompt_id == "p0"]
    assert (outstanding.oldest_version, outstanding.num_tokens) == (0, 8)
    assert buffer.stop() == 0
    assert store.members("buffer") == []
    stopped = buffer.lines[-1]
    assert (stopped["event"], stopped["accepted"], stopped["duplicate"]) == ("buffer_stopped", 1, 1)


def test_it_serves_its_counts_and_redis_state(
    buffer: BufferProcess, store: RunStore, make_sender: Callable[[str], TrajectorySender]
) -> None:
    store.issue([a_prompt(n) for n in range(3)])
    store.dead_letter("test", "by hand", "nobody")
    port = free_port()
    buffer.start(f"metrics.prometheus_port={port}", "metrics.prometheus_host=127.0.0.1", "rl.max_staleness=2")
    eventually(lambda: any(name == "vcppo_store_up" for name, _, _ in scrape(port)))
    seen = {(name, labels.get("state")): value for name, labels, value in scrape(port)}
    assert seen["vcppo_store_prompts", "queued"] == 3
    assert seen["vcppo_store_credits_used", None] == 3
    assert seen["vcppo_store_credits", None] == 3 * RlConfig().batch_size
    assert (seen["vcppo_store_dead_letters", None], seen["vcppo_store_ledger_difference", None]) == (1, 0)
    assert seen["vcppo_store_memory_bytes", None] > 100_000
    sender = make_sender(buffer.endpoint)
    sender.send("p0@generator-0.0", encode_trajectory(a_trajectory("p0")))
    assert sender.drain(20)
    assert buffer.stop() == 0
    last = json.loads((buffer.folder / "run" / "metrics" / "buffer.jsonl").read_text().splitlines()[-1])
    assert (last["buffer/accepted"], last["store/queue/buffered"], last["store/queue/queued"]) == (1, 1, 2)


def test_what_does_not_fit_its_prompt_is_a_dead_letter(
    buffer: BufferProcess, store: RunStore, make_sender: Callable[[str], TrajectorySender]
) -> None:
    """Else ids would not be as unique as prompts are, and responses be compared with those to another problem."""
    buffer.start()
    store.issue([a_prompt(n) for n in range(4)])
    facts.VOCABULARY_SIZE.write(store, 5)
    sender = make_sender(buffer.endpoint)
    unknown_token = np.array([1, 2, 5, 3, 4], np.int32)
    sender.send("p3@generator-0.0", encode_trajectory(replace(a_trajectory("p3"), response_token_ids=unknown_token)))
    another = replace(a_trajectory("p0"), prompt_id="p1")
    sender.send(another.id, encode_trajectory(another))
    sender.send("p2@generator-0.0", encode_trajectory(replace(a_trajectory("p2"), group_id="g1")))
    assert sender.drain(20)
    assert store.ledger() == Ledger(issued=4, queued=4)
    details = sorted(letter.detail for letter in store.dead_letters())
    assert details[0].startswith("id: 'p0@generator-0.0' is no rollout of prompt_id 'p1'")
    assert details[1].startswith("prompt_id: 'p2' was issued in another group")
    assert details[2] == "response_token_ids: a token id is negative or above 4"


def test_nothing_is_acked_while_redis_is_away_and_nothing_lost(
    buffer: BufferProcess,
    redis_process: RedisServer,
    store: RunStore,
    make_sender: Callable[[str], TrajectorySender],
) -> None:
    buffer.start()
    store.issue([a_prompt(n) for n in range(20)])
    sender = make_sender(buffer.endpoint)
    sender.send("p0@generator-0.0", encode_trajectory(a_trajectory("p0")))
    assert sender.drain(10)
    redis_process.kill()
    for number in range(1, 20):
        sender.send(f"p{number}@generator-0.0", encode_trajectory(a_trajectory(f"p{number}")))
    assert not sender.drain(1.5)
    assert sender.num_unacked == 19
    redis_process.start()
    assert sender.drain(20)
    assert store.ledger() == Ledger(issued=20, buffered=20)
    assert buffer.stop() == 0


def test_a_killed_buffer_loses_nothing(
    buffer: BufferProcess, store: RunStore, make_sender: Callable[[str], TrajectorySender]
) -> None:
    buffer.start()
    store.issue([a_prompt(n) for n in range(200)])
    sender = make_sender(buffer.endpoint)
    for number in range(200):
        sender.send(f"p{number}@generator-0.0", encode_trajectory(a_trajectory(f"p{number}")))
        if number == 100:
            buffer.stop(signal.SIGKILL)
    buffer.start()
    assert sender.drain(20)
    eventually(lambda: store.ledger() == Ledger(issued=200, buffered=200))


def test_sigterm_without_redis_ends_in_time(buffer: BufferProcess, redis_process: RedisServer) -> None:
    buffer.start()
    redis_process.kill()
    started = time.monotonic()
    assert buffer.stop() == 0
    assert time.monotonic() - started < 25


def test_a_process_that_can_not_go_on_says_why_in_one_line(buffer: BufferProcess) -> None:
    buffer.start()
    assert "another process listens there" in fatal_error(buffer)
    assert buffer.stop() == 0
    assert "no Redis at redis://127.0.0.1:1/0" in fatal_error(buffer, "redis.url=redis://127.0.0.1:1/0")
    assert "redis.url is not set" in fatal_error(buffer, "redis.url=null")
    buffer.endpoint = "tcp://0.0.0.0:0"  # all the world may come, and transport.endpoints speak of loopback only
    assert "--endpoint tcp://0.0.0.0:0: others can reach it" in fatal_error(buffer)


def fatal_error(buffer: BufferProcess, *overrides: str) -> str:
    """The one line of a buffer that must fail to start."""
    done = subprocess.run(buffer.command(*overrides), stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    (fatal,) = [line for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "fatal"]
    return str(fatal["error"])


def test_the_password_of_redis_is_shown_nowhere(
    buffer: BufferProcess, redis_process: RedisServer, tmp_path: Path
) -> None:
    redis_process.kill()
    redis_process.start_guarded(password := "correct-horse-battery-staple")
    file = tmp_path / "password"
    file.write_text(password)
    buffer.start("redis.username=vcppo", f"redis.password_file={file}")
    assert buffer.process is not None
    process = Path(f"/proc/{buffer.process.pid}")
    assert password.encode() not in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    redis_process.kill()  # its errors name the address
    eventually(lambda: buffer.stop() == 0)
    refused = fatal_error(
        buffer, "redis.username=vcppo", "redis.connect_deadline_seconds=0.5", f"redis.password_file={file}"
    )
    assert password not in json.dumps(buffer.lines) + refused


def test_a_wrong_password_is_one_clear_line(buffer: BufferProcess, redis_process: RedisServer, tmp_path: Path) -> None:
    redis_process.kill()
    redis_process.start_guarded()
    (tmp_path / "password").write_text("wrong")
    error = fatal_error(buffer, "redis.username=vcppo", f"redis.password_file={tmp_path / 'password'}")
    assert "redis.password_file" in error
    assert "wrong" not in error.replace("WRONGPASS", "")
    assert "redis.password_file" in fatal_error(buffer)  # none at all


def test_the_buffer_does_not_import_torch() -> None:
    code = "import sys, vcppo.learner.buffer.bridge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
