"""The store as a config names it: address, user, and a password that comes from a file or the environment only."""

from __future__ import annotations

import os
from pathlib import Path

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import ConfigError
from vcppo.common.run_folder import RunFolder
from vcppo.common.store import embedded_redis
from vcppo.common.store.incarnations import Incarnation
from vcppo.common.store.run_store import Credentials, RunStore

PASSWORD_VARIABLE = "VCPPO_REDIS_PASSWORD"  # noqa: S105  (its name)


def connect_store(
    config: VcppoConfig,
    *,
    url: str | None = None,
    deadline_seconds: float | None = None,
    patience_seconds: float = 30.0,
    enter: str | None = None,
) -> RunStore:
    """The run's store.

    Args:
        url: default: redis.url, or the embedded server of the run's folder.
        deadline_seconds: for the first answer; default: redis.connect_deadline_seconds.
        patience_seconds: how long later calls bear with a Redis that is away.
        enter: the name to act under (`RunStore.enter`), as every process that changes anything does; None: only look.

    Raises:
        Fenced: there is a newer launcher than the one that started this process.
        ConfigError: no URL, or no password where one is named.
        StoreError: no Redis there, or not one for us.
    """
    url = config.redis.url if url is None else url
    if url is None:
        embedded = RunFolder(config.run.path).redis
        if not embedded_redis.socket_path(embedded).exists():
            raise ConfigError(
                f"redis.url is not set, and no embedded server is up for {config.run.path}: start the run with"
                " `vcppo up`, or give redis.url=redis://host:port/0"
            )
        url = embedded_redis.url(embedded)
    deadline = config.redis.connect_deadline_seconds if deadline_seconds is None else deadline_seconds
    store = RunStore.connect(
        url, config.run.name, deadline, patience_seconds=patience_seconds, credentials=credentials(config)
    )
    if enter is not None:
        store.enter(enter, Incarnation.of_launch())
    return store


def credentials(config: VcppoConfig) -> Credentials:
    """Of `config.redis`. Raises ConfigError when the password can't be read."""
    redis = config.redis
    return Credentials(redis.username, _password(redis.password_file, redis.url or ""), redis.ca_file)


def _password(file: str | None, url: str) -> str | None:
    if file is None:
        # A Unix socket is the embedded server's, which has no password and refuses those who bring one.
        return None if url.startswith("unix:") else os.environ.get(PASSWORD_VARIABLE) or None
    try:
        password = Path(file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"redis.password_file = {file!r} can't be read ({error}): `vcppo keys` makes one; null: no password,"
            f" or that of the environment's {PASSWORD_VARIABLE}"
        ) from None
    if not password:
        raise ConfigError(f"redis.password_file = {file!r} is empty: `vcppo keys` makes one")
    return password
