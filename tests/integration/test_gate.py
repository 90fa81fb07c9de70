"""The gate of value pretraining on one run folder: it refuses, what it says is done, and the same command goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import load_config
from common.errors import EXIT_REFUSED
from deploy.run_config import write_config
from tests.integration.scripted import ScriptedGenerator, make_tiny_model
from tests.integration.test_learner import Run, generate, model

__all__ = ["generate", "model"]  # fixtures

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
Generate = Callable[..., ScriptedGenerator]


class GatedRun(Run):
    """Changes its config as `vcppo up` would: refused where a run can't go on with it."""

    def change(self, *overrides: str) -> None:
        write_config(load_config(self.folder.config, overrides))

    def refused(self) -> str:
        """Start it; what it says when it ends."""
        assert self.start().wait(280) == EXIT_REFUSED, self.tail()
        return str(self.events("fatal")[-1]["error"])

    def decision(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder.value_pretraining / "decision.json").read_text())
        return found


def follow(text: str, field: str) -> str:
    """The remedy of a text for one field, as an override."""
    match = re.search(rf"{re.escape(field)} to ([-\d.e]+)", text)
    assert match is not None, text
    return f"{field}={match[1]}"


def test_every_way_out_of_a_closed_gate_leads_on(
    tmp_path: Path, redis_server: str, model: Path, generate: Generate
) -> None:
    run = GatedRun(tmp_path, "gate", redis_server, model, value_pretraining={"min_explained_variance": 0.999})
    generate(run)
    few = run.refused()
    assert "12 held-out responses are" in few
    assert "needs 20 of each kind" in few
    assert not run.events("value_pretraining_measured")  # said before the critic is trained
    assert run.decision()["held_out"]["num_responses"] == 12
    assert run.events("value_pretraining_recorded")[-1]["correct"].endswith("%)")

    run.change(follow(few, "value_pretraining.num_trajectories"))
    closed = run.refused()
    decision = run.decision()
    assert decision["recorded"]["num_responses"] > 200
    assert "value_pretraining.min_explained_variance = 0.999" in closed
    assert "right" in closed
    assert decision["low"] <= decision["explained_variance"] <= decision["high"] < 0.999
    num_measured = len(run.events("value_pretraining_measured"))
    num_issued = run.store().ledger().issued

    assert "max_steps" in closed or "learning_rate" in closed
    field = "value_pretraining.max_steps" if decision["cut_short"] else "value_pretraining.learning_rate"
    run.change(follow(closed, field))
    closed = run.refused()
    assert run.events("value_pretraining_critic_outdated")[-1]["changed"][0].startswith(field)
    assert len(run.events("value_pretraining_measured")) > num_measured  # trained again, from the same recording
    assert run.store().ledger().issued == num_issued

    num_measured = len(run.events("value_pretraining_measured"))
    run.change(follow(closed, "value_pretraining.min_explained_variance"), "rl.num_steps=1")
    run.finish(run.start())
    assert run.decision()["passed"]
    assert len(run.events("value_pretraining_measured")) == num_measured  # only judged anew
    assert run.store().ledger().is_exact


def test_a_recording_of_other_data_or_weights_is_recognised(
    tmp_path: Path, redis_server: str, model: Path, generate: Generate
) -> None:
    mine = tmp_path / "mine"
    make_tiny_model(mine)
    run = GatedRun(tmp_path, "stale", redis_server, mine, rl={"num_steps": 1})
    generate(run)
    process = run.start()
    run.wait_for_step(process, 1)
    run.finish(process)
    again = GatedRun(tmp_path, "again", redis_server, mine, value_pretraining={"min_explained_variance": 0.999},
                     algorithm={"truncation": "terminal"})  # fmt: skip
    again.folder.value_pretraining.mkdir()
    for name in ("trajectories.msgpack", "recorded_with.json"):
        (again.folder.value_pretraining / name).write_bytes((run.folder.value_pretraining / name).read_bytes())
    tree = yaml.safe_load(again.folder.config.read_text())
    tree["value_pretraining"]["min_explained_variance"] = -10.0
    for section, field, value, said in (
        ("task", "reward_wrong", 0.0, r"task\.reward_wrong is -1\.0 in the run and 0\.0 now"),
        ("sampling", "temperature", 0.5, r"sampling\.temperature"),
    ):
        again.folder.config.write_text(yaml.safe_dump({**tree, section: {**tree[section], field: value}}))
        assert re.search(said, again.refused())
    again.folder.config.write_text(yaml.safe_dump(tree))
    weights = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").write_bytes(weights[:-64] + bytes(64))
    assert "the files at model.path are others" in again.refused()
    (mine / "model.safetensors").write_bytes(weights)
    generate(again)
    again.finish(again.start())
    assert not again.events("value_pretraining_decided") == []
    # 48 responses were taken over: none of value pretraining was asked for again.
    assert again.store().ledger().trained == 8
