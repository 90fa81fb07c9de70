"""`vcppo reject` on a run that is up, and on one whose embedded Redis is down."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.integration.common.store.test_store import a_prompt, an_entry
from tests.integration.conftest import RedisServer
from vcppo.common.config import load_config
from vcppo.common.store import facts
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.run_store import RunStore
from vcppo.deploy.cli import main
from vcppo.deploy.processes import redis_server
from vcppo.deploy.terminal.open_store import open_store


def in_every_state(store: RunStore) -> None:
    """p0000 claimed alone for step 3, p0001 and p0002 for step 4, p0003 buffered, p0004 leased, p0005 queued."""
    store.issue([a_prompt(number) for number in range(6)])
    store.append([an_entry(f"p{number:04d}") for number in range(4)])
    store.claim(["p0000"], 3)
    store.claim(["p0001", "p0002"], 4)
    store.lease("g", 1, 600, 0)


def test_prompts_in_any_state_are_rejected_by_name(
    tmp_path: Path, redis_process: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"model": {"path": "none"}, "run": {"name": "run"}}))
    store = redis_process.store()
    in_every_state(store)
    names = ["p0000", "p0001@g.0", "p0003", "p0004", "p0005", "p0005"]
    code = main(["reject", *names, "-c", str(config), f"redis.url={redis_process.url}", "--why", "a test"])
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert [line.split(", ")[0] for line in lines] == [
        "p0000: was claimed", "p0001: was claimed", "p0003: was buffered", "p0004: was leased", "p0005: was queued",
    ]  # fmt: skip
    assert "step 3 is trained without it" in lines[0]
    assert store.ledger() == Ledger(issued=6, claimed=1, rejected=5)
    assert facts.emptied_steps(store) == [3]  # no gap for a learner that resumes
    assert {letter.detail for letter in store.dead_letters()} >= {"p0003: a test", "p0005: a test"}
    assert main(["reject", "p0003", "p0002", "-c", str(config), f"redis.url={redis_process.url}"]) == 1
    assert "p0003: not open" in capsys.readouterr().out
    assert store.ledger() == Ledger(issued=6, rejected=6)


def test_a_run_that_is_down_is_brought_up_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": {"path": "none"}, "run": {"name": "run", "folder": str(tmp_path)}}))
    config = load_config(path, [])
    data = Path(config.run.path) / "redis"
    assert main(["reject", "p0000", "-c", str(path)]) == 2
    assert "it was never brought up" in capsys.readouterr().err
    data.mkdir(parents=True)
    (data / "appendonly.aof").touch()
    with open_store(config, to_write=True) as store:
        in_every_state(store)
    assert not redis_server.is_running(data)
    assert main(["reject", "p0003", "-c", str(path)]) == 0
    assert "p0003: was buffered, is rejected: replaced by a new prompt" in capsys.readouterr().out
    assert not redis_server.is_running(data)
    with open_store(config, to_write=True) as store:
        assert store.ledger() == Ledger(issued=6, queued=1, leased=1, claimed=3, rejected=1)
