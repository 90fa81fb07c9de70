"""The config of a run under compose, and Redis' lines as JSON. The application itself: tests/compose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import structlog
import yaml

from tests.paths import ROOT
from tests.unit.deploy.placement.test_place import gpus
from vcppo.common.config import dump_config, load_config
from vcppo.common.errors import ConfigError
from vcppo.common.transport.keys import PEERS
from vcppo.deploy import container
from vcppo.deploy.container import run_config, share_keys
from vcppo.deploy.launch import launcher
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.placement.claims import claim
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.processes.process_spec import ProcessSpec

DEMO = ROOT / "deploy" / "configs" / "demo.yaml"


def test_a_config_whose_model_is_its_own_cold_start_gets_it_from_the_run_of_the_container() -> None:
    config, own_cold_start = run_config(DEMO, "first", [])
    assert own_cold_start
    assert (config.run.name, config.run.folder) == ("first", Path("/runs"))
    assert config.model.path == "/runs/first/cold_start"


def test_another_model_stays_and_the_users_settings_win(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("run: {name: x}\nmodel: {path: owner/name}\ntask: {name: chain_arithmetic}\n")
    config, own_cold_start = run_config(file, "first", ["rl.num_steps=3", "broadcast.host=elsewhere"])
    assert not own_cold_start
    assert (config.model.path, config.rl.num_steps, config.broadcast.host) == ("owner/name", 3, "elsewhere")
    assert run_config(file, "first", ["model.path=runs/x/cold_start"])[1]


def test_services_are_known_by_their_names_in_the_compose_file() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    config, _ = run_config(DEMO, "first", [])
    assert config.redis.url is not None
    named = [config.redis.url, config.transport.endpoints[0], f"//{config.broadcast.host}:"]
    for address in named:
        host = re.search(r"//([^:]+):", address)
        assert host is not None
        assert host[1] in services
    assert {word for each in services.values() for word in each.get("command", [])} >= {*container.ROLES}


def test_every_variable_of_the_compose_files_is_explained_with_its_default() -> None:
    explained = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    texts = [path.read_text() for path in sorted(ROOT.glob("docker-compose*.yml"))]
    used = [found for text in texts for found in re.findall(r"\$\{([A-Z_]+):-((?:[^{}]|\{[^}]*\})*)\}", text)]
    assert not any(re.search(r"\$\{[A-Z_]+\}", text) for text in texts)  # each has a default
    assert {name for name, _ in used} | {"COMPOSE_FILE", "COMPOSE_PROFILES"} == set(explained)
    for name, default in used:
        if name not in ("IMAGE", "SET", "TMP_SIZE", "GENERATOR_CPUS", "LEARNER_THREADS"):  # examples, or by device
            assert explained[name] == default, name


def test_given_keys_are_where_they_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCPPO_KEYS", "/run/secrets")
    config, _ = run_config(DEMO, "first", [])
    assert (config.security.keys, config.redis.password_file) == ("/run/secrets", "/run/secrets/redis.password")
    services = yaml.safe_load((ROOT / "docker-compose.secrets.yml").read_text())["services"]
    for role, peers in PEERS.items():
        wanted = {f"{role}.key_secret", "redis.password", *(f"{peer}.key" for peer in peers)}
        assert set(services[role]["secrets"]) == wanted


def test_only_a_cpu_image_runs_eagerly() -> None:
    assert run_config(DEMO, "first", ["generator.enforce_eager=false"])[0].generator.enforce_eager
    assert not run_config(DEMO, "first", ["generator.enforce_eager=false"], device="cuda")[0].generator.enforce_eager


def test_each_role_gets_its_own_secrets_and_keeps_them(tmp_path: Path) -> None:
    for folder in ("all", "redis", "buffer", "generator", "learner"):
        (tmp_path / folder).mkdir()
    share_keys(tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("*.*")}
    share_keys(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*.*")} == before
    for role in ("buffer", "generator", "learner"):
        assert {path.name for path in (tmp_path / role).iterdir()} == {
            "buffer.key", "generator.key", "learner.key", f"{role}.key_secret", "redis.password",
        }  # fmt: skip
        assert all(path.stat().st_mode & 0o77 == 0 for path in (tmp_path / role).iterdir())
    (acl,) = (tmp_path / "redis").iterdir()
    password = (tmp_path / "learner" / "redis.password").read_text().strip()
    assert password not in acl.read_text()
    assert [line.split()[1] for line in acl.read_text().splitlines()] == ["default", "vcppo", "health"]


def test_a_typo_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"rl\.num_step"):
        run_config(DEMO, "first", ["rl.num_step=3"])


def test_a_run_folder_that_can_not_be_written_is_one_json_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(container, "RUNS", tmp_path / "file")
    monkeypatch.setenv("VCPPO_RUN", "first")
    assert container.main(["buffer"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert (record["service"], record["level"]) == ("buffer", "error")
    assert "chown" in record["error"]


def test_a_model_folder_that_is_none_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data" / "model").mkdir(parents=True)
    file = tmp_path / "my.yaml"
    file.write_text(
        f"run: {{name: x}}\nmodel: {{path: {tmp_path / 'data' / 'model'}}}\ntask: {{name: chain_arithmetic}}\n"
    )
    monkeypatch.setattr(container, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("VCPPO_RUN", "first")
    monkeypatch.setenv("VCPPO_CONFIG", str(file))
    before = structlog.get_config()
    assert container.main(["prepare"]) == 2
    assert structlog.get_config() == before  # nobody's log lines go to a file that is closed
    assert "holds no model" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert not (tmp_path / "runs" / "first" / "config.yaml").exists()


@pytest.mark.parametrize("name", ["", "../x", "a b"])
def test_a_run_name_that_is_none_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VCPPO_RUN", name)
    assert container.main(["buffer"]) == 2
    assert "VCPPO_RUN" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.skipif(shutil.which("sed") is None, reason="no sed")
def test_redis_lines_become_json() -> None:
    lines = [
        '1:M 24 Nov 2026 15:06:02.123 * Ready to "accept" c\\o\tnnections\x1b[0m',
        "1:C 01 Jan 2027 00:00:00.001 # oO0 Redis is starting",
        "1:M 24 Nov 2026 15:06:02.123 - Accepted 10.0.0.1:1",
        "*** FATAL CONFIG FILE ERROR ***",
        "",
    ]
    script = ROOT / "deploy" / "redis" / "log.sed"
    done = subprocess.run(
        ["sed", "-E", "-f", script], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=10
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(record.get("time"), record["level"]) for record in records] == [
        ("2026-11-24T15:06:02.123Z", "info"),
        ("2027-01-01T00:00:00.001Z", "warning"),
        ("2026-11-24T15:06:02.123Z", "debug"),
        (None, "info"),
    ]
    assert records[0]["event"].startswith('Ready to "accept" c\\o')
    assert all(record["service"] == "redis" for record in records)


class TestGpus:
    """Containers that see GPUs which are only counted; what would be started is looked at, not started."""

    @pytest.fixture
    def started(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ProcessSpec]:
        monkeypatch.setattr(container, "RUNS", tmp_path)
        monkeypatch.setattr(container, "require", lambda config, names: None)
        monkeypatch.setattr(container, "own_address", lambda: "10.0.0.1")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        specs: list[ProcessSpec] = []
        monkeypatch.setattr(container, "_supervise", lambda config, sink, spec, **_: specs.append(spec) or 0)
        (tmp_path / "first").mkdir()
        return specs

    def see(self, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *overrides: str) -> None:
        config = load_config(DEMO, [f"run.folder={tmp_path}", "run.name=first", *overrides])
        (tmp_path / "first" / "config.yaml").write_text(dump_config(config))
        for module in (container, launcher):
            monkeypatch.setattr(module, "devices_of", lambda config: gpus(count))

    def test_a_generator_takes_gpus_that_no_other_has(
        self, started: list[ProcessSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.see(3, monkeypatch, tmp_path, "generator.tensor_parallel_size=2")
        held = claim(tmp_path / "first" / ".devices", gpus(3), 1, "another")
        assert container.generator("first", [], LogSink(tmp_path / "logs", "first")) == 0
        assert started[0].environment["CUDA_VISIBLE_DEVICES"] == "1,2"
        other = claim(tmp_path / "first" / ".devices", gpus(3)[1:], 2, "a third")  # given back with the container
        with pytest.raises(PlacementError, match="others hold all but 0"):
            container.generator("first", [], LogSink(tmp_path / "logs", "first"))
        held.close()
        other.close()

    def test_a_learner_wants_a_gpu_a_rank_of_its_node(
        self, started: list[ProcessSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.see(2, monkeypatch, tmp_path, "learner.num_ranks=4")
        with pytest.raises(PlacementError, match=r"4 GPUs .* and 2 are visible: .*LEARNER_DEVICES"):
            container.learner("first", [], LogSink(tmp_path / "logs", "first"))
        for name, value in (("NODES", "2"), ("NODE", "1"), ("RENDEZVOUS", "a:1"), ("ADDRESS", "b")):
            monkeypatch.setenv(f"VCPPO_{name}", value)
        assert container.learner("first", [], LogSink(tmp_path / "logs", "first")) == 0
        assert started[0].environment["CUDA_VISIBLE_DEVICES"] == "0,1"

    def test_a_container_without_gpus_has_nothing_to_do_with_them(
        self, started: list[ProcessSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        self.see(0, monkeypatch, tmp_path)
        assert container.generator("first", [], LogSink(tmp_path / "logs", "first")) == 0
        assert not any(name.startswith("CUDA") for name in started[0].environment)
        assert not (tmp_path / "first" / ".devices").exists()
