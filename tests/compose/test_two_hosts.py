"""Learner ranks on two hosts and a generator on a third: they meet by name, train, and one host may die.

Keys are Compose secrets here, made by the user; test_application.py has those that `prepare` makes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.rig import CONFIG, ROOT, Application, Record, application

pytestmark = [pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def app(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    folder = tmp_path_factory.mktemp("hosts")
    files = os.environ.get("COMPOSE_FILE", "docker-compose.yml")
    settings = {"GENERATORS": "1", "LEARNER_THREADS": "1", "SET": "learner.num_ranks=2"}
    with application("hosts", image, folder / "lines.jsonl", COMPOSE_FILE=files, **settings) as made:
        make_secrets(made, folder / "secrets")
        overrides = f"docker-compose.secrets.yml:{ROOT}/tests/compose/two_hosts.yaml"
        made.set(COMPOSE_FILE=f"{files}:{overrides}", SECRETS=str(folder / "secrets"))
        yield made


def make_secrets(app: Application, folder: Path) -> None:
    """As docs/compose.md says."""
    folder.mkdir(mode=0o700)
    mounts = ["-v", f"{folder}:/secrets", "-v", f"{CONFIG}:/run.yaml:ro"]
    words = ["cli", "keys", "-c", "/run.yaml", "--folder", "/secrets"]
    app.compose("run", "--rm", "--no-deps", "--no-TTY", "--user", str(os.getuid()), *mounts, *words)
    for path in folder.iterdir():
        path.chmod(0o644)


def ready(app: Application, since: int) -> list[Record]:
    return app.records("learner_ready", since)


def test_ranks_on_two_hosts_train_with_a_generator_on_a_third(app: Application) -> None:
    app.up()
    app.trains(2, seconds=600)
    assert {record["service"] for record in ready(app, 0)} == {"learner", "learner-1"}
    assert all(record["num_ranks"] == 2 for record in ready(app, 0))
    address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    hosts = {app.docker("inspect", "-f", address, *app.containers(name)) for name in ("learner", "learner-1")}
    assert len(hosts) == 2
    (member,) = app.records("weights_broadcast")[-1]["members"]
    assert member.startswith("generator-")


def test_secrets_are_where_they_belong_and_nowhere_else(app: Application) -> None:
    for service in ("buffer", "generator", "learner"):
        names = app.compose("exec", "-T", service, "find", "/run/secrets", "/keys", "-name", "*secret").split()
        assert names == [f"/run/secrets/{service}.key_secret"]


def test_a_host_that_dies_comes_back_and_all_ranks_go_on_from_the_checkpoint(app: Application) -> None:
    mark = len(app.lines)
    app.docker("kill", *app.containers("learner-1"))
    app.up("--no-recreate")
    app.wait("both hosts' ranks", lambda: len(ready(app, mark)) == 2, 360)
    app.wait("a checkpoint to be loaded", lambda: app.records("checkpoint_loaded", mark))
    app.trains()


def test_every_log_line_is_json(app: Application) -> None:
    app.compose("down")
    app.finish_logs()
    for line in app.lines:
        assert json.loads(line)["level"], line
