"""A checkpoint is whole or refused by name; the one before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vcppo.common.errors import VcppoError
from vcppo.common.files.whole_folder import replace_folder
from vcppo.learner.engine import checkpoint
from vcppo.learner.engine.checkpoint import (
    MANIFEST,
    CheckpointError,
    CheckpointState,
    CheckpointStore,
    _content_sum,
    folder_name,
    hash_json,
    load_rng,
    save_rng,
    verify,
)


def state(step: int) -> CheckpointState:
    return CheckpointState(step, {"rl": step * 8}, [f"rl-{step}"], "abc", num_ranks=1, zero_stage=0)


def write(store: CheckpointStore, step: int) -> Path:
    staging = store.begin(step)
    (staging / "actor").mkdir()
    (staging / "actor" / "weights").write_bytes(bytes([step % 256]) * 1000)
    save_rng(staging, 0)
    return store.publish(state(step))


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_round_trip_and_last_k_kept(store: CheckpointStore) -> None:
    assert store.newest() is None
    for step in (5, 10, 15):
        write(store, step)
    assert [folder.name for folder in store.folders()] == ["step-000015", "step-000010"]
    assert store.newest() == (store.root / folder_name(15), state(15))


def test_a_pinned_one_stays_until_another_is_pinned(store: CheckpointStore) -> None:
    write(store, 5)
    store.pinned = 5
    for step in (10, 15, 20):
        write(store, step)
    assert [folder.name for folder in store.folders()] == ["step-000020", "step-000015", "step-000005"]
    assert store.newest() == (store.root / folder_name(20), state(20))
    store.pinned = 15
    write(store, 25)
    write(store, 30)
    assert [folder.name for folder in store.folders()] == ["step-000030", "step-000025", "step-000015"]


def _truncate(folder: Path) -> None:
    (folder / "actor" / "weights").write_bytes(b"x" * 10)


def _flip(folder: Path) -> None:
    content = bytearray((folder / "actor" / "weights").read_bytes())
    content[17] ^= 1
    (folder / "actor" / "weights").write_bytes(content)


def _remove(folder: Path) -> None:
    (folder / "actor" / "weights").unlink()


def _break_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema": 1, "state"')


def _escape(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": ""}
    _write(folder, manifest)


def _unknown_state(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["state"]["surprise"] = 1
    _write(folder, manifest)


def _bit_in_the_state(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"rl": 16', '"rl": 17'))


def _write(folder: Path, manifest: dict[str, Any]) -> None:
    manifest["sha256"] = _content_sum({name: manifest[name] for name in ("state", "files")})
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_truncate, "10 bytes, manifest says 1000"),
        (_flip, "SHA-256"),
        (_remove, "weights is missing"),
        (_break_manifest, "not JSON"),
        (_escape, "outside the checkpoint"),
        (_unknown_state, "surprise"),
        (_bit_in_the_state, "does not have its own SHA-256 sum"),
    ],
)
def test_damage_is_refused_by_name_and_the_previous_one_used(
    store: CheckpointStore, damage: Callable[[Path], None], text: str
) -> None:
    write(store, 1)
    newest = write(store, 2)
    damage(newest)
    with pytest.raises(CheckpointError, match=text) as caught:
        verify(newest)
    assert "step-000002" in str(caught.value)
    found = store.newest()
    assert found is not None
    assert found[1].step == 1


def test_nothing_sound_is_an_error_not_a_fresh_start(store: CheckpointStore) -> None:
    _flip(write(store, 1))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        store.newest()


def test_a_crash_before_publish_leaves_nothing(store: CheckpointStore) -> None:
    write(store, 1)
    (store.begin(2) / "half").write_bytes(b"x")
    found = store.newest()
    assert found is not None
    assert found[1].step == 1
    write(store, 2)
    assert not list(store.root.glob(".staging-*"))


def test_a_replayed_step_replaces_its_checkpoint(store: CheckpointStore) -> None:
    write(store, 3)
    write(store, 3)
    assert verify(store.root / folder_name(3)).step == 3


def test_rng_continues(tmp_path: Path) -> None:
    save_rng(tmp_path, 0)
    expected = torch.rand(4)
    load_rng(tmp_path, 0)
    assert torch.equal(torch.rand(4), expected)


def test_hash_ignores_order() -> None:
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})


# Two learners on one folder: the earlier one was frozen in the middle of a checkpoint


def learner(folder: Path, incarnation: int, confirm: Callable[[], None] = lambda: None) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", keep=2, incarnation=incarnation, confirm=confirm)


def superseded() -> None:
    raise VcppoError("superseded")


def test_an_earlier_learner_publishes_nothing_once_the_later_one_has_begun(tmp_path: Path) -> None:
    old, new = learner(tmp_path, 1), learner(tmp_path, 2)
    (old.begin(4) / "weights").write_bytes(b"old")
    new.remove_leftovers()  # as it resumes
    (new.begin(4) / "weights").write_bytes(b"new")
    new.publish(state(4))
    with pytest.raises(FileNotFoundError):
        old.publish(state(4))
    assert new.newest() == (new.root / folder_name(4), state(4))
    assert (new.root / folder_name(4) / "weights").read_bytes() == b"new"


def test_nor_when_it_was_frozen_right_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = learner(tmp_path, 1), learner(tmp_path, 2)
    (old.begin(4) / "weights").write_bytes(b"old")

    def meanwhile(final: Path, staging: Path) -> None:
        monkeypatch.setattr(checkpoint, "replace_folder", replace_folder)
        (new.begin(4) / "weights").write_bytes(b"new")
        new.publish(state(4))
        replace_folder(final, staging)

    monkeypatch.setattr(checkpoint, "replace_folder", meanwhile)
    with pytest.raises(FileNotFoundError):
        old.publish(state(4))
    assert [path.name for path in new.root.iterdir()] == [folder_name(4)]
    assert (new.root / folder_name(4) / "weights").read_bytes() == b"new"


def test_an_earlier_learner_removes_nothing_of_the_later_one(tmp_path: Path) -> None:
    staging = learner(tmp_path, 12).begin(4)
    learner(tmp_path, 9).begin(4)
    assert staging.is_dir()


def test_before_each_change_it_is_asked_whether_this_is_still_the_learner(tmp_path: Path) -> None:
    with pytest.raises(VcppoError, match="superseded"):
        learner(tmp_path, 1, superseded).begin(4)
    assert not (tmp_path / "checkpoints").exists()
    (learner(tmp_path, 1).begin(4) / "weights").touch()
    with pytest.raises(VcppoError, match="superseded"):
        learner(tmp_path, 1, superseded).publish(state(4))
    assert learner(tmp_path, 1).folders() == []
