"""Where a run's buffers listen: what `transport.endpoints` says, else what `vcppo up` chose and noted in its folder.

The note is for who was not started by the launcher, such as a generator started by hand. A run that is resumed keeps
its port while nobody else has taken it, so such a generator finds it again.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import ConfigError
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.whole_file import write_whole
from vcppo.common.run_folder import RunFolder
from vcppo.common.text.yaml_text import one_line
from vcppo.common.transport.ports import free_endpoint


def endpoints_of(config: VcppoConfig) -> list[str]:
    """Of the config, or noted by the launcher. Raises ConfigError where there are neither."""
    if config.transport.endpoints is not None:
        return config.transport.endpoints
    noted = _noted(config)
    if noted is None:
        raise ConfigError(
            f"transport.endpoints is not set, and no `vcppo up` has chosen a port for {config.run.path}: start the run"
            " with `vcppo up`, or give 'transport.endpoints=[tcp://127.0.0.1:PORT]'"
        )
    return noted


def choose_endpoints(config: VcppoConfig) -> list[str]:
    """For the launcher: what the config says; else the port of this run's last launch, or another if it is taken."""
    if config.transport.endpoints is not None:
        return config.transport.endpoints
    before = _noted(config)
    if before is not None and all(why_not_free(endpoint) is None for endpoint in before):
        return before
    return [free_endpoint()]


def note_endpoints(config: VcppoConfig, endpoints: Sequence[str]) -> None:
    """Write them where `endpoints_of` looks."""
    write_whole(RunFolder(config.run.path).endpoints, json.dumps(list(endpoints)) + "\n")


def why_not_free(endpoint: str) -> str | None:
    """Why nobody can listen at a TCP endpoint of this machine; None: it is free, or of another kind."""
    match = re.fullmatch(r"tcp://(\*|\[[^\]]+\]|[^:]+):(\d+)", endpoint)
    if not match:
        return None
    host = {"*": ""}.get(match[1], match[1].strip("[]"))
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(match[2])))
        except OSError as error:
            return error.strerror or one_line(error)
    return None


def _noted(config: VcppoConfig) -> list[str] | None:
    try:
        found = parse_json(RunFolder(config.run.path).endpoints.read_bytes())
    except (OSError, JsonError):
        return None
    is_list = isinstance(found, list) and found and all(isinstance(each, str) for each in found)
    return found if is_list else None
