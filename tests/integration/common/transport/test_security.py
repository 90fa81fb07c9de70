"""Who is not known gets nothing: real sockets with CURVE, a real redis-server with our ACL."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from tests.integration.conftest import RedisServer
from tests.integration.rig.tls import self_signed, tls_in_front_of
from vcppo.common.config import TransportConfig
from vcppo.common.store.run_store import Credentials, RunStore, StoreError
from vcppo.common.transport import ControlClient, ControlError, ControlServer, TrajectoryReceiver, TrajectorySender
from vcppo.common.transport.keys import load_keys, make_keys, rotate_keys
from vcppo.common.transport.sockets import identify
from vcppo.deploy.terminal.keys_command import USER

CONFIG = TransportConfig(ack_deadline_seconds=1.0)
SHORT = 1.5  # seconds in which nothing may arrive
PASSWORD = "correct horse battery staple"

SEND = """
import sys
from pathlib import Path
from vcppo.common.config import TransportConfig
from vcppo.common.transport import TrajectorySender
from vcppo.common.transport.keys import load_keys
from vcppo.common.transport.sockets import identify
endpoint, keys, spool, message = sys.argv[1:]
if keys:
    identify(load_keys(Path(keys), "generator"))
sender = TrajectorySender([endpoint], "generator-0", TransportConfig(ack_deadline_seconds=1.0), Path(spool))
if message:
    sender.send(message, b"payload of " + message.encode())
delivered = sender.drain(4.0)
sender.close()
sys.exit(0 if delivered else 7)
"""
CALL = """
import sys
from pathlib import Path
from vcppo.common.transport import ControlClient, ControlError
from vcppo.common.transport.keys import load_keys
from vcppo.common.transport.sockets import identify
endpoint, keys, role = sys.argv[1:]
if keys:
    peers = load_keys(Path(keys), "learner").peers
    identify(load_keys(Path(keys), role)._replace(peers=peers))
try:
    print(ControlClient(endpoint).call("secret", {}, 3.0))
except ControlError as error:
    print(error)
    sys.exit(7)
"""


@pytest.fixture(autouse=True)
def anonymous() -> Iterator[None]:
    """This process' identity is a test's own affair."""
    yield
    identify(None)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys")
    return tmp_path / "keys"


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: an identity is one process'."""
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def serve_until(receiver: TrajectoryReceiver, process: subprocess.Popen[bytes], deadline: float = 60.0) -> list[str]:
    """Ack what arrives until `process` ends; what arrived."""
    arrived: list[str] = []
    end = time.monotonic() + deadline
    while process.poll() is None:
        assert time.monotonic() < end, "the sender did not end"
        received = receiver.poll(0.05)
        arrived += [one.message_id for one in received]
        receiver.ack(received)
    return arrived


def send(receiver: TrajectoryReceiver, keys: Path | str, spool: Path, message: str) -> tuple[int, list[str]]:
    """(exit code of a generator that sends `message`, what arrived meanwhile)."""
    command = [sys.executable, "-c", SEND, receiver.endpoint, str(keys), str(spool), message]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        arrived = serve_until(receiver, process)
    return process.returncode, arrived


async def a_secret() -> str:
    return "the weights"


def test_a_known_generator_delivers_and_strangers_do_not(tmp_path: Path, keys: Path) -> None:
    identify(load_keys(keys, "buffer"))
    receiver = TrajectoryReceiver("tcp://127.0.0.1:*", CONFIG)
    make_keys(tmp_path / "others")
    (tmp_path / "others" / "buffer.key").write_bytes((keys / "buffer.key").read_bytes())  # it is public, after all
    try:
        assert send(receiver, keys, tmp_path / "a", "one") == (0, ["one"])
        assert send(receiver, "", tmp_path / "b", "without keys") == (7, [])
        assert send(receiver, tmp_path / "others", tmp_path / "c", "keys of its own") == (7, [])
    finally:
        receiver.close()


def test_a_learners_key_is_no_generators(tmp_path: Path, keys: Path) -> None:
    identify(load_keys(keys, "buffer"))
    receiver = TrajectoryReceiver("tcp://127.0.0.1:*", CONFIG)
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for name in ("buffer.key", "learner.key"):
        (stolen / name).write_bytes((keys / name).read_bytes())
    (stolen / "generator.key_secret").write_bytes((keys / "learner.key_secret").read_bytes())
    try:
        assert send(receiver, stolen, tmp_path / "spool", "message") == (7, [])
    finally:
        receiver.close()


def test_a_generator_keeps_what_it_has_while_keys_are_rotated(tmp_path: Path, keys: Path) -> None:
    """Nobody answers with the new keys yet: what it made is on disk. Restarted with them, it delivers."""
    identify(load_keys(keys, "buffer"))
    receiver = TrajectoryReceiver("tcp://127.0.0.1:*", CONFIG)
    rotate_keys(keys, ["buffer", "generator"])
    spool = tmp_path / "spool"
    assert send(receiver, keys, spool, "made during the rotation") == (7, [])
    receiver.close()
    identify(load_keys(keys, "buffer"))
    receiver = TrajectoryReceiver("tcp://127.0.0.1:*", CONFIG)
    try:
        assert send(receiver, keys, spool, "") == (0, ["made during the rotation"])
    finally:
        receiver.close()


def test_generators_with_the_keys_before_go_on_after_a_rotation_of_theirs(tmp_path: Path, keys: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for path in keys.iterdir():
        (before / path.name).write_bytes(path.read_bytes())
    rotate_keys(keys, ["generator"])
    identify(load_keys(keys, "buffer"))
    receiver = TrajectoryReceiver("tcp://127.0.0.1:*", CONFIG)
    try:
        assert send(receiver, before, tmp_path / "a", "old") == (0, ["old"])
        assert send(receiver, keys, tmp_path / "b", "new") == (0, ["new"])
    finally:
        receiver.close()


def test_only_the_learner_is_answered_on_the_control_port(tmp_path: Path, keys: Path) -> None:
    make_keys(tmp_path / "others")
    (tmp_path / "others" / "generator.key").write_bytes((keys / "generator.key").read_bytes())

    async def asked() -> list[subprocess.CompletedProcess[str]]:
        identify(load_keys(keys, "generator"))
        server = ControlServer("127.0.0.1")
        serving = asyncio.create_task(server.serve({"secret": a_secret}))
        try:
            return [
                await asyncio.to_thread(run, CALL, server.endpoint, folder, role)
                for folder, role in (
                    (keys, "learner"),
                    (keys, "generator"),
                    (keys, "buffer"),
                    ("", ""),
                    (tmp_path / "others", "learner"),
                )
            ]
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    known, *strangers = asyncio.run(asked())
    assert (known.returncode, known.stdout) == (0, "the weights\n")
    for stranger in strangers:
        assert stranger.returncode == 7, stranger
        assert "the weights" not in stranger.stdout


def test_the_learner_reaches_a_generator_with_the_key_before(tmp_path: Path, keys: Path) -> None:
    """Generators are restarted one by one after a rotation: until then they show the key they have."""

    async def asked() -> subprocess.CompletedProcess[str]:
        identify(load_keys(keys, "generator"))
        server = ControlServer("127.0.0.1")
        serving = asyncio.create_task(server.serve({"secret": a_secret}))
        rotate_keys(keys, ["generator"])
        try:
            return await asyncio.to_thread(run, CALL, server.endpoint, keys, "learner")
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    done = asyncio.run(asked())
    assert (done.returncode, done.stdout) == (0, "the weights\n"), done


def test_a_learner_says_that_keys_differ(tmp_path: Path, keys: Path) -> None:
    """A server without keys, a client with them."""

    async def asked() -> str:
        server = ControlServer("127.0.0.1")
        serving = asyncio.create_task(server.serve({}))
        identify(load_keys(keys, "learner"))
        try:
            await asyncio.to_thread(ControlClient(server.endpoint).call, "status", {}, 3.0)
        except ControlError as error:
            return str(error)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        return "it was answered"

    assert "security.keys" in asyncio.run(asked())


def test_a_server_that_is_not_ours_is_told_nothing(tmp_path: Path, keys: Path) -> None:
    """Whoever listens where the buffer did, without its secret key, sees no trajectory."""
    identify(load_keys(keys, "generator"))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor:
        impostor.linger = 0
        port = impostor.bind_to_random_port("tcp://127.0.0.1")
        sender = TrajectorySender([f"tcp://127.0.0.1:{port}"], "generator-0", CONFIG, tmp_path / "spool")
        sender.send("id", b"a trajectory")
        assert not impostor.poll(SHORT * 1000)
        assert sender.num_unacked == 1
        sender.close()


# ---- Redis


@pytest.fixture
def guarded(redis_process: RedisServer) -> RedisServer:
    """With the ACL file of `vcppo keys`."""
    redis_process.kill()
    redis_process.start_guarded(PASSWORD)
    return redis_process


def connect(server: RedisServer, username: str | None, password: str | None) -> RunStore:
    return RunStore.connect(server.url, "run", 3.0, credentials=Credentials(username, password))


@pytest.mark.parametrize(
    ("username", "password"), [(None, None), (USER, "wrong"), (None, PASSWORD), ("other", PASSWORD)]
)
def test_redis_lets_nobody_else_in(guarded: RedisServer, username: str | None, password: str | None) -> None:
    with pytest.raises(StoreError) as caught:
        connect(guarded, username, password)
    assert PASSWORD not in str(caught.value)


def test_the_user_may_do_what_the_store_does_and_nothing_else(guarded: RedisServer) -> None:
    store = connect(guarded, USER, PASSWORD)
    client = store._redis._client
    for command in (
        "KEYS *",
        "FLUSHALL",
        "CONFIG GET dir",
        "ACL LIST",
        "SCRIPT FLUSH",
        "SHUTDOWN",
        "GET other:key",
        "SET other:key 1",
    ):
        with pytest.raises(Exception, match=r"(?i)no permissions|NOPERM"):
            client.execute_command(*command.split())
    assert client.execute_command("SET", "vcppo:probe", "1")


def test_redis_over_tls_only_with_the_authority_that_vouches_for_it(guarded: RedisServer, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "store")
    stranger, _ = self_signed(tmp_path, "stranger")
    with tls_in_front_of(guarded.port, certificate, key) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        store = RunStore.connect(url, "run", 3.0, credentials=Credentials(USER, PASSWORD, str(certificate)))
        store.set_value("stage", "rl")
        assert store.get_value("stage") == "rl"
        store.close()
        for authority in (str(stranger), None):
            with pytest.raises(StoreError, match="certificate verify failed"):
                RunStore.connect(url, "run", 1.0, credentials=Credentials(USER, PASSWORD, authority))
        with pytest.raises(StoreError):
            RunStore.connect(f"redis://127.0.0.1:{port}/0", "run", 1.0, credentials=Credentials(USER, PASSWORD))
