"""The gate of value pretraining on one run folder: it refuses, what it says is done, and the same command goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.rig.learner_run import Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from vcppo.common.config import load_config
from vcppo.common.errors import EXIT_REFUSED
from vcppo.deploy.run.run_config import write_config

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


def test_a_gate_that_asks_for_nothing_opens_where_no_response_is_right(
    tmp_path: Path, redis_server: str, model: Path, generate: Generate
) -> None:
    settings = {"min_explained_variance": -10}
    run = GatedRun(tmp_path, "hard", redis_server, model, value_pretraining=settings, rl={"num_steps": 1})
    generate(run, change=lambda trajectory: replace(trajectory, reward=-1.0, outcome="wrong"))
    run.finish(run.start())
    decision = run.decision()
    assert (decision["passed"], decision["explained_variance"]) == (True, None)
    losses = [measured["held_out_loss"] for measured in decision["history"]]
    assert decision["history"][losses.index(min(losses))]["step"] == decision["best_step"]
    assert run.store().ledger().trained == decision["recorded"]["num_responses"] + 8


def test_a_recording_is_taken_over_only_with_the_weights_it_was_made_with(
    tmp_path: Path, redis_server: str, model: Path, generate: Generate
) -> None:
    mine = tmp_path / "mine"
    make_tiny_model(mine)
    short: dict[str, Any] = {"num_steps": 1}
    first = GatedRun(tmp_path, "first", redis_server, mine, rl=short)
    generate(first)
    first.finish(first.start())
    again = GatedRun(tmp_path, "again", redis_server, mine, rl=short)
    again.folder.value_pretraining.mkdir()
    for name in ("trajectories.msgpack", "recorded_with.json"):
        (again.folder.value_pretraining / name).write_bytes((first.folder.value_pretraining / name).read_bytes())
    weights = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").write_bytes(weights[:-64] + bytes(64))
    assert "the files at model.path are others" in again.refused()
    (mine / "model.safetensors").write_bytes(weights)
    generate(again)
    again.finish(again.start())
    assert again.events("value_pretraining_decided")
    assert again.store().ledger().trained == 8  # by RL: no response of value pretraining was asked for


def test_a_damaged_recording_that_is_removed_is_recorded_again(
    tmp_path: Path, redis_server: str, model: Path, generate: Generate
) -> None:
    run = GatedRun(tmp_path, "damaged", redis_server, model, rl={"num_steps": 1},
                   value_pretraining={"min_explained_variance": 0.999, "held_out_fraction": 0.25})  # fmt: skip
    generate(run)
    run.refused()
    file = run.folder.value_pretraining / "trajectories.msgpack"
    content = bytearray(file.read_bytes())
    content[200] ^= 0xFF
    file.write_bytes(bytes(content))
    assert run.start().wait(280) != 0
    assert "remove it and the same command records again" in run.events("fatal")[-1]["error"]
    file.unlink()
    run.change("value_pretraining.min_explained_variance=-10")
    run.finish(run.start())
    assert run.store().ledger().trained == 48 + 48 + 8
