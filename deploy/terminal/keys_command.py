"""`vcppo keys`: who may speak with whom. Makes what is missing, shows public keys, rotates.

CURVE pairs of the three roles (`vcppo.common.transport.keys`), and for a Redis of one's own a password with the ACL
file that lets a user of that password do what the store does and nothing else.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcppo.common.transport.keys import ROLES, Role, make_keys, private_files, public_key, rotate_keys

USER = "vcppo"
PASSWORD_FILE = "redis.password"  # noqa: S105  (its name)
ACL_FILE = "redis.acl"
# What `vcppo.common.store.run_store` and its scripts call. Everything else is refused: KEYS, FLUSHALL, CONFIG, SCRIPT
# FLUSH, ...
# A server does not start with a file that names a command it does not know: nothing newer than Redis 6.2 here.
COMMANDS = (
    *("ping", "info", "multi", "exec", "evalsha", "script|load"),
    *("get", "set", "del", "setrange", "time"),
    *("hget", "hset", "hdel", "hmget", "hgetall", "hvals", "hexists", "hincrby", "hstrlen"),
    *("zadd", "zrem", "zcard", "zscore", "zrange", "zrangebyscore", "zremrangebyrank", "zremrangebyscore"),
    *("xadd", "xlen", "xread", "xrange", "xrevrange"),
)
_PASSWORD_BYTES = 32


def show_keys(folder: Path, rotate: Sequence[Role], console: Console) -> None:
    """Make what is missing below `folder`, rotate these roles, and print what there is; never a secret."""
    made = make_keys(folder)
    rotated = [role for role in rotate if role not in made]
    rotate_keys(folder, rotated)
    new_password = make_redis_access(folder)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("role", "public key", ""):
        table.add_column(column, no_wrap=True)
    for role in ROLES:
        news = "made" if role in made else "rotated" if role in rotated else ""
        table.add_row(role, escape(public_key(folder, role).decode()), news)  # Z85 has brackets
    table.add_row("Redis", f"user {USER}, {PASSWORD_FILE}", "made" if new_password else "")
    console.print(table)
    console.print(
        f"in {folder}: a service needs its own .key_secret and the others' .key;"
        f" redis-server takes --aclfile {ACL_FILE}",
        markup=False,
    )
    if rotated:
        console.print("restart the services that read these, buffers first; generators keep what is not delivered")


def make_redis_access(folder: Path) -> bool:
    """A random password and the ACL file that knows its hash. False when both are there."""
    password, acl = folder / PASSWORD_FILE, folder / ACL_FILE
    is_new = not password.exists()
    if is_new:
        _write_private(password, secrets.token_urlsafe(_PASSWORD_BYTES) + "\n")
    if is_new or not acl.exists():
        _write_private(acl, acl_text(password.read_text().strip()))
    return is_new


def acl_text(password: str) -> str:
    """For ``redis-server --aclfile``: ours has the store's commands on its keys; nobody can be the default user.

    The default user keeps its rights all the same: Redis 7.0 replays its append-only file with them, and without any
    it refuses each transaction in it, loses all of them and starts as if nothing were wrong. `health` needs no password
    and may ask whether the server is there, for health checks.
    """
    digest = hashlib.sha256(password.encode()).hexdigest()
    rights = " ".join(f"+{command}" for command in COMMANDS)
    return (
        "user default off resetpass allkeys allchannels allcommands\n"
        f"user {USER} on #{digest} ~vcppo:* resetchannels -@all {rights}\n"
        "user health on nopass resetkeys resetchannels -@all +ping\n"
    )


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with private_files():
        path.write_text(text)
