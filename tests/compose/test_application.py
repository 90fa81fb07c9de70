"""The compose application on a real engine: up, scaled, hurt, down, finished. One story, in this order."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Iterator

import pytest

from tests.compose.rig import RUN, Application, Record, application

pytestmark = [pytest.mark.timeout(1800)]
DEBUG = "logging.level=debug"  # each move of a trajectory is a line
SERVICES = ("redis", "buffer", "generator", "learner")


@pytest.fixture(scope="module")
def app(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    log_file = tmp_path_factory.mktemp("compose") / "lines.jsonl"
    with application("story", image, log_file, GENERATORS="1", LEARNER_THREADS="1", SET=DEBUG) as made:
        yield made


def counts(app: Application) -> dict[str, int]:
    """The ledger by state; `vcppo ledger` exits with 1 unless it is exact."""
    text = app.cli("ledger", "--run", RUN)
    assert "exact" in text
    return {
        state: int(number.replace(",", "")) for state, number in re.findall(r"^(\w+) +([\d,]+) ", text, re.MULTILINE)
    }


def num_scraped(app: Application) -> int:
    """How many processes Prometheus reaches."""
    port = app.docker("port", *app.containers("prometheus"), "9090").strip().rpartition(":")[2]
    url = f"http://127.0.0.1:{port}/api/v1/query?query=sum(up%7Bjob%3D%22vcppo%22%7D)"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
    except (OSError, http.client.HTTPException):  # Docker's port is open a moment before Prometheus is
        return 0
    return int(found[0]["value"][1]) if found else 0


def trained_by(app: Application) -> set[str]:
    """Generators whose trajectories were trained, from the run's own record."""
    text = app.compose("exec", "-T", "buffer", "cat", f"/runs/{RUN}/trained.jsonl")
    return set(re.findall(r"@(generator-[0-9a-f]+)", text))


def test_it_comes_up_and_trains(app: Application) -> None:
    app.up()
    app.trains(3, seconds=600)
    assert len(app.wait_for_generators(1)) == 1
    user = app.compose("exec", "-T", "generator", "id", "-u").strip()
    assert user == "10001"
    app.wait("health", lambda: app.compose("ps", "--format", "{{.Health}}").split() == ["healthy"] * 4, 60)


def test_the_root_file_system_is_read_only_and_holds_no_tools(app: Application) -> None:
    tools = "for tool in gcc cc g++ clang pytest mypy; do command -v $tool; done"
    script = f"touch /opt/app/x 2>/dev/null && echo writable; {tools}; true"
    assert app.compose("exec", "-T", "learner", "sh", "-c", script) == ""


def test_a_container_has_its_own_roles_secrets_only(app: Application) -> None:
    for service in ("buffer", "generator", "learner"):
        names = app.compose("exec", "-T", service, "find", "/keys", "-name", "*secret*").split()
        assert names == [f"/keys/{service}/{service}.key_secret"]
    script = (
        "import socket; s = socket.create_connection(('redis', 6379), 3); s.sendall(b'INFO\\r\\n'); print(s.recv(60))"
    )
    assert "NOAUTH" in app.compose("exec", "-T", "learner", "python", "-c", script)


def test_only_what_must_talk_can(app: Application) -> None:
    def reaches(service: str, host: str, port: int) -> bool:
        script = f"import socket; socket.create_connection(('{host}', {port}), 3)"
        try:
            app.compose("exec", "-T", service, "python", "-c", script)
        except AssertionError:
            return False
        return True

    assert reaches("generator", "buffer", 5755) and reaches("generator", "redis", 6379)
    assert reaches("buffer", "redis", 6379) and reaches("learner", "redis", 6379)
    assert not reaches("learner", "buffer", 5755)
    assert not reaches("generator", "1.1.1.1", 443) and not reaches("learner", "1.1.1.1", 443)
    assert app.compose("ps", "--format", "{{.Ports}}").replace("6379/tcp", "").strip() == ""  # nothing published


def test_one_trajectorys_life_is_in_the_logs(app: Application) -> None:
    prompt = app.records("trajectories_trained")[0]["trajectory_ids"][0].partition("@")[0]
    app.wait("its commit", lambda: any(prompt in each["prompt_ids"] for each in app.records("prompts_committed")))
    lines = app.compose("logs", "--no-color")
    life = read(app.cli("logs", "--json", "--trajectory", prompt, stdin=lines))
    assert {(record["service"].partition("-")[0], record["event"]) for record in life} >= {
        ("learner", "prompts_issued"), ("generator", "prompts_leased"), ("generator", "trajectory_sent"),
        ("buffer", "trajectories_appended"), ("learner", "prompts_claimed"), ("learner", "trajectories_trained"),
        ("learner", "prompts_committed"),
    }  # fmt: skip
    only = read(app.cli("logs", "--json", "--service", "buffer", "--level", "info", stdin=lines))
    assert {(record["service"], record["level"]) for record in only} == {("buffer", "info")}
    version = read(app.cli("logs", "--json", "--policy-version", "2", stdin=lines))
    assert {"weights_broadcast", "step"} <= {record["event"] for record in version}
    assert {record["policy_version"] for record in version} == {2}


def read(lines: str) -> list[Record]:
    return [json.loads(line) for line in lines.splitlines()]


def test_three_generators_and_one_again(app: Application) -> None:
    app.up("prometheus", PROMETHEUS_PORT="0")
    app.wait("Prometheus to find the buffer, the generator and the learner", lambda: num_scraped(app) == 3, 60)
    others = {service: app.started_at(service) for service in SERVICES if service != "generator"}
    first = set(app.containers("generator"))

    app.up("--no-recreate", "--scale", "generator=3")
    three = app.wait_for_generators(3)
    app.wait("trained trajectories of all three", lambda: three <= trained_by(app))
    assert first <= set(app.containers("generator"))
    app.wait("Prometheus to find the new ones", lambda: num_scraped(app) == 5, 60)

    mark = len(app.lines)
    app.up("--no-recreate", "--scale", "generator=1")
    assert len(app.containers("generator")) == 1
    # On a clean stop what is leased goes back at once, with what the queue shows: nothing waits for a lease to run out.
    app.wait("both to leave", lambda: len(app.records("generator_leaving", mark)) == 2)
    assert not app.records("leases_expired", mark)
    app.wait_for_generators(1)
    assert {service: app.started_at(service) for service in others} == others
    app.wait("Prometheus to forget them", lambda: num_scraped(app) == 3, 60)
    app.compose("rm", "--stop", "--force", "prometheus")
    app.trains()


@pytest.mark.parametrize("service", ["generator", "buffer", "redis", "learner"])
def test_a_killed_container(app: Application, service: str) -> None:
    """Docker takes `docker kill` for the user's will and starts nothing again; `up` does, and touches no other."""
    others = {name: app.started_at(name) for name in SERVICES if name != service}
    before, mark = counts(app), len(app.lines)
    app.docker("kill", *app.containers(service))
    app.up("--no-recreate")
    app.trains()
    if service == "generator":
        app.wait_for_generators(1)
    if service == "learner":
        assert app.records("checkpoint_loaded", mark)
    assert counts(app)["trained"] >= before["trained"]
    assert {name: app.started_at(name) for name in others} == others


def test_a_learner_process_that_dies_is_started_again_in_its_container(app: Application) -> None:
    before, mark = app.started_at("learner"), len(app.lines)
    find = (
        "import os, pathlib\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "    words = path.read_bytes().split(b'\\0')\n"
        "    if words[1:3] == [b'-m', b'vcppo.learner']: os.kill(int(path.parent.name), 9)"
    )
    app.compose("exec", "-T", "learner", "python", "-c", find)
    app.wait("a checkpoint to be loaded", lambda: app.records("checkpoint_loaded", mark))
    app.trains()
    assert app.started_at("learner") == before


def test_redis_restarts(app: Application) -> None:
    others = {service: app.started_at(service) for service in SERVICES if service != "redis"}
    before = counts(app)
    app.compose("restart", "redis")
    app.follow()
    app.trains(3)
    assert counts(app)["trained"] >= before["trained"]
    assert {service: app.started_at(service) for service in others} == others


def test_down_loses_nothing(app: Application) -> None:
    mark = len(app.lines)
    app.compose("stop")
    last_step = app.records("step", 0)[-1]["policy_version"]
    assert not app.records("process_killed", mark)
    app.compose("down")
    app.finish_logs()

    app.up("--wait", "redis")
    left = counts(app)
    assert left["leased"] == 0  # handed back, not left to run out
    assert left["trained"] >= 16 * (last_step - 1)


def test_it_is_finished_by_another_up(app: Application) -> None:
    last_step = app.records("step")[-1]["policy_version"]
    app.up(SET=f"{DEBUG} rl.num_steps={last_step + 3}")
    app.wait("the end of the run", lambda: app.records("run_complete"), 360)
    app.compose("wait", "learner")  # exits as the learner does
    assert "exact" in app.cli("ledger", "--run", RUN)
    app.compose("run", "--rm", "--no-TTY", "eval", timeout=600)
    names = app.compose("exec", "-T", "buffer", "ls", f"/runs/{RUN}/eval", f"/runs/{RUN}/report")
    assert {"cold_start.json", "export.json", "report.html", "summary.png"} <= set(names.split())


def test_every_log_line_is_json(app: Application) -> None:
    app.compose("down")
    app.finish_logs()
    assert len(app.lines) > 100
    services = set()
    for line in app.lines:
        record = json.loads(line)
        assert record["level"], line
        if "event" in record:  # Prometheus has its own names
            services.add(record["service"].split("-")[0])
    assert services >= {"redis", "buffer", "generator", "learner", "prepare", "sft"}
