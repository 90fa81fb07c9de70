"""Recording goes on without what was damaged in the store, before it is claimed and after a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.learner.supply.test_collect import Setup
from vcppo.common.store.damage import flip_bit
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.supply.collect import PromptIssuer
from vcppo.learner.value_pretraining.recording import CLAIM_STEP, Recorder


@pytest.fixture
def setup(redis_server: str, request: pytest.FixtureRequest) -> Callable[..., Setup]:
    return lambda **sections: Setup(redis_server, request.node.name[:64], **sections)


def test_damaged_responses_are_rejected_and_others_recorded(
    setup: Callable[..., Setup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcppo.learner.value_pretraining.recording.POLL_SECONDS", 0.01)
    gate = {"held_out_fraction": 0.7, "min_explained_variance": -10.0, "batch_size": 2}
    s = setup(value_pretraining={"num_trajectories": 6, **gate})
    issuer = PromptIssuer(s.store, s.source, "value_pretraining")
    path = tmp_path / "trajectories.msgpack"
    recorder = Recorder(s.config, s.store, issuer, TrajectoryFile(path))
    recorder.poll()
    first, second, third, fourth = s.lease(4)
    for prompt in (first, second, third, fourth):
        s.answer(prompt)
    s.damage(first.id, flip_bit)
    s.store.claim([third.id, fourth.id], CLAIM_STEP)
    s.damage(third.id, flip_bit)
    recorder = Recorder(s.config, s.store, issuer, TrajectoryFile(path))  # the life after a crash
    while not recorder.is_complete:
        recorder.poll()
        for prompt in s.lease():
            s.answer(prompt)
    ledger = s.store.ledger()
    assert (ledger.is_exact, ledger.trained, ledger.rejected) == (True, 6, 2)
    recorded = {trajectory.prompt_id for trajectory in TrajectoryFile(path).trajectories}
    assert len(recorded) == 6
    assert {second.id, fourth.id} <= recorded
    assert not recorded & {first.id, third.id}
