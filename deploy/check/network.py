"""Checks of what the processes speak through: ports, Redis, keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vcppo.common.check.check_lines import Result, failed, passed, warned
from vcppo.common.files.room import nearest_existing
from vcppo.common.store.access import connect_store, credentials
from vcppo.common.transport.endpoints import why_not_free
from vcppo.common.transport.keys import ROLES, load_keys
from vcppo.common.transport.ports import free_port
from vcppo.deploy.check.machine import Setup
from vcppo.deploy.processes import redis_server

_REDIS_SECONDS = 5.0


def endpoints(setup: Setup) -> Iterator[Result]:
    """Whether buffers can listen at ``transport.endpoints``."""
    found = setup.config.transport.endpoints
    if found is None:
        yield passed("transport.endpoints = null: a free port of this machine is chosen at the start")
        return
    taken = [problem for endpoint in found if (problem := endpoint_problem(endpoint))]
    yield from taken or [passed(f"free: {', '.join(found)}")]


def endpoint_problem(endpoint: str) -> Result | None:
    """Why nobody can listen there; None: one can."""
    if endpoint.startswith("ipc://"):
        folder = Path(endpoint.removeprefix("ipc://")).parent
        if folder.is_dir() and os.access(folder, os.W_OK):
            return None
        text = f"transport.endpoints: {endpoint}: no folder {folder} that can be written"
        return failed(text, "make it, or name another")
    reason = why_not_free(endpoint)
    if reason is None:
        return None
    return failed(
        f"transport.endpoints: {endpoint} can't be used ({reason}). Is another run up?",
        "stop it, or set transport.endpoints=null: then a free port is chosen",
    )


def metrics_ports(setup: Setup) -> Iterator[Result]:
    """A port for each process's figures, from ``metrics.prometheus_port`` on."""
    config = setup.config
    first, host = config.metrics.prometheus_port, config.metrics.prometheus_host
    if not first:
        yield passed("metrics.prometheus_port = 0: nobody serves figures")
        return
    count = len(config.transport.endpoints or [""]) + config.generator.num_generators + 1
    shown = f"[{host}]" if ":" in host else host
    text = f"metrics.prometheus_port = {first}: {count} processes take a port each from there on"
    last = first + count - 1
    if last > 65_535:
        yield failed(f"{text}, and the highest is 65535", f"set it to {65_536 - count} or lower")
        return
    taken = {port: reason for port in range(first, last + 1) if (reason := why_not_free(f"tcp://{shown}:{port}"))}
    if taken:
        which = ", ".join(f"{port} can't be used ({reason})" for port, reason in taken.items())
        other = free_port(host, count)
        yield failed(f"{text}, and {which}. Is another run up?", f"set metrics.prometheus_port={other}, or 0 for none")
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
