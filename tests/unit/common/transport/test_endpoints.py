"""Where buffers listen when nothing is set: a free port, kept while it is free, found by who was not launched."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.rig.fake_run import config_of
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import ConfigError
from vcppo.common.transport.endpoints import choose_endpoints, endpoints_of, note_endpoints
from vcppo.common.transport.ports import dealt_by_the_kernel, free_endpoint, reserved_range
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import LogSink


@pytest.fixture
def config(tmp_path: Path) -> VcppoConfig:
    found = config_of(tmp_path, "r")
    found.run.path.mkdir(parents=True)
    return found


def port_of(endpoint: str) -> int:
    assert endpoint.startswith("tcp://127.0.0.1:")
    return int(endpoint.rpartition(":")[2])


def test_nothing_is_set_by_default_and_a_free_port_is_chosen(config: VcppoConfig) -> None:
    assert config.transport.endpoints is None
    (endpoint,) = choose_endpoints(config)
    assert port_of(endpoint) in reserved_range(dealt_by_the_kernel())  # where no other process is given it by chance
    assert len({choose_endpoints(config)[0] for _ in range(8)}) > 1
    assert not config.uses_curve  # it is this machine's alone


def test_the_next_launch_keeps_the_port_unless_somebody_took_it(config: VcppoConfig) -> None:
    first = choose_endpoints(config)
    note_endpoints(config, first)
    assert endpoints_of(config) == choose_endpoints(config) == first
    with socket.create_server(("127.0.0.1", port_of(first[0]))):
        assert choose_endpoints(config) != first


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", "[" * 5000, "\0", '["tcp://127.0.0.1:'])
def test_a_damaged_note_is_none(config: VcppoConfig, text: str) -> None:
    (config.run.path / "endpoints.json").write_text(text)
    assert len(choose_endpoints(config)) == 1
    with pytest.raises(ConfigError, match="no `vcppo up` has chosen a port for"):
        endpoints_of(config)


def test_what_is_set_is_taken_and_null_chooses_again(config: VcppoConfig, tmp_path: Path) -> None:
    endpoint = free_endpoint()
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {{path: model}}\nrun: {{name: r, folder: {tmp_path}}}\n")
    given = load_config(path, [f"transport.endpoints=[{endpoint}]"])
    note_endpoints(given, ["tcp://127.0.0.1:1"])
    assert endpoints_of(given) == choose_endpoints(given) == [endpoint]
    with socket.create_server(("127.0.0.1", port_of(endpoint))):
        assert choose_endpoints(load_config(path, [f"transport.endpoints=[{endpoint}]", "transport.endpoints=null"]))


def test_every_process_of_a_launch_is_told_the_same(config: VcppoConfig, tmp_path: Path) -> None:
    launcher = Launcher(config, LogSink(tmp_path / "logs", "r"))
    told = f"transport.endpoints=[{launcher.endpoints[0]}]"
    (buffer,) = launcher.buffer_specs()
    assert buffer.command[buffer.command.index("--endpoint") + 1] == launcher.endpoints[0]
    for spec in (buffer, launcher.learner_spec(), *launcher.generator_specs()):
        assert told in spec.command
