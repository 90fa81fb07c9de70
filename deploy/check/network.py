"""Checks of what the processes speak through: ports, Redis, keys."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from common.check_lines import Result, failed, passed, warned
from common.store_access import connect_store, credentials
from common.transport.keys import ROLES, load_keys
from deploy import redis_server
from deploy.check.files import nearest_existing
from deploy.check.machine import Setup

_REDIS_SECONDS = 5.0


def endpoints(setup: Setup) -> Iterator[Result]:
    """Whether buffers can listen at ``transport.endpoints``."""
    found = setup.config.transport.endpoints
    taken = [problem for endpoint in found if (problem := endpoint_problem(endpoint))]
    yield from taken or [passed(f"free: {', '.join(found)}")]


def endpoint_problem(endpoint: str) -> Result | None:
    """Why nobody can listen there; None: one can."""
    if endpoint.startswith("ipc://"):
        folder = Path(endpoint.removeprefix("ipc://")).parent
        if folder.is_dir() and os.access(folder, os.W_OK):
            return None
        return failed(
            f"transport.endpoints: {endpoint}: no folder {folder} that can be written", "make it, or name another"
        )
    match = re.fullmatch(r"tcp://(\*|\[[^\]]+\]|[^:]+):(\d+)", endpoint)
    if not match:
        return None
    host, port = {"*": ""}.get(match[1], match[1].strip("[]")), int(match[2])
    reason = bind_problem(host, port)
    if reason is None:
        return None
    other = port + 1 if port < 65_535 else port - 1
    return failed(
        f"transport.endpoints: {endpoint} can't be used ({reason}). Is another run up?",
        f"stop it, or choose another port: 'transport.endpoints=[tcp://{match[1]}:{other}]'",
    )


def bind_problem(host: str, port: int) -> str | None:
    """Why a TCP port can't be listened at, in the system's words; None: it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def metrics_ports(setup: Setup) -> Iterator[Result]:
    """A port for each process's figures, from ``metrics.prometheus_port`` on."""
    config = setup.config
    first = config.metrics.prometheus_port
    if not first:
        yield passed("metrics.prometheus_port = 0: nobody serves figures")
        return
    count = len(config.transport.endpoints) + config.generator.num_generators + 1
    last = first + count - 1
    if last > 65_535:
        yield failed(
            f"metrics.prometheus_port = {first}: {count} processes would go past port 65535", "choose a lower one"
        )
        return
    host = "" if config.metrics.prometheus_host == "0.0.0.0" else config.metrics.prometheus_host
    taken = [(port, reason) for port in range(first, last + 1) if (reason := bind_problem(host, port))]
    if taken:
        text = ", ".join(f"{port} ({reason})" for port, reason in taken)
        yield failed(
            f"metrics.prometheus_port = {first}: {count} processes take a port each up to {last}, and these can't be"
            f" used: {text}",
            "choose another one, or 0 for none",
        )
    else:
        yield passed(f"free: {first} to {last}")


def redis(setup: Setup) -> Iterator[Result]:
    """The embedded server's program, or the server at ``redis.url``. VcppoError of several kinds without one."""
    config = setup.config
    if config.redis.url is None:
        yield passed(f"embedded: {redis_server.find_binary()}")
        return
    redis_server.check_reachable(config.redis.url)
    credentials(config)
    if setup.starting:
        yield passed(f"answers: {config.redis.url}")
        return
    store = connect_store(config, deadline_seconds=_REDIS_SECONDS)
    try:
        ledger = store.ledger()
    finally:
        store.close()
    yield passed(f"{config.redis.url} lets us in; prompts of run {config.run.name!r} there: {ledger.issued}")


def keys(setup: Setup) -> Iterator[Result]:
    """Key files, where ``security.curve`` asks for them. `make_keys` makes missing ones when the run starts."""
    config = setup.config
    if not config.uses_curve:
        yield passed(f"not needed: security.curve = {config.security.curve}, and every port is this machine's own")
        return
    folder = config.keys_folder
    missing = [role for role in ROLES if not (folder / f"{role}.key_secret").exists()]
    if missing:
        place = nearest_existing(folder)
        if os.access(place, os.W_OK):
            yield passed(f"made at the start, in {folder}: {', '.join(missing)}")
        else:
            yield failed(
                f"security.keys: {folder} lacks the keys of {', '.join(missing)} and can't be written",
                "make them with `vcppo keys --folder DIR` and set security.keys=DIR",
            )
        return
    for role in ROLES:
        load_keys(folder, role)
    if any(path.stat().st_mode & 0o077 for path in folder.glob("*.key_secret")):
        yield warned(f"other users can read secret keys in {folder}", f"chmod 600 {folder}/*.key_secret")
    else:
        yield passed(f"in {folder}")
