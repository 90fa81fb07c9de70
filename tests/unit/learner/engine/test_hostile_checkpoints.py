"""Checkpoints that were damaged, renamed, linked or added to: refused by name, the one before is used, no code runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.learner.engine.test_checkpoint import state, write
from vcppo.learner.engine.checkpoint import (
    MANIFEST,
    CheckpointError,
    CheckpointStore,
    _content_sum,
    folder_name,
    load_rng,
    verify,
)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    made = CheckpointStore(tmp_path / "checkpoints", keep=2)
    write(made, 1)
    write(made, 2)
    return made


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """By somebody who knows how manifests are made."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["sha256"] = _content_sum({name: manifest[name] for name in ("state", "files")})
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _added(folder: Path) -> None:
    (folder / "actor" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"x")


def _linked_file(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "actor" / "weights").rename(elsewhere)
    (folder / "actor" / "weights").symlink_to(elsewhere)


def _linked_folder(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "actor").rename(elsewhere)
    (folder / "actor").symlink_to(elsewhere)


def _linked_whole(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")


def _linked_manifest(folder: Path) -> None:
    (folder / MANIFEST).rename(folder.parent / MANIFEST)
    (folder / MANIFEST).symlink_to(folder.parent / MANIFEST)


def _older_copy(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name(folder_name(1)), folder)


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _nested(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 100_000)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_added, "optim_states.pt is not in the manifest"),
    (_linked_file, "actor/weights is a link"),
    (_linked_folder, "actor is a link"),
    (_linked_whole, "it or its manifest.json is a link"),
    (_linked_manifest, "it or its manifest.json is a link"),
    (_older_copy, "holds step 1: it was renamed or copied"),
    (_pipe, "pipe is a link or no plain file"),
    (_file_instead, "can't be read"),
    (_empty, "can't be read"),
    (_nested, "manifest.json is not JSON"),
    (lambda f: edit(f, lambda m: m["files"].update({"a\0b": {"size": 1, "sha256": ""}})), r"a\\x00b is missing"),
    (lambda f: edit(f, lambda m: m["files"].update({"x" * 5000: {"size": 1, "sha256": ""}})), "xxx... is missing"),
    (
        lambda f: edit(f, lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}})),
        "outside the checkpoint",
    ),
    (lambda f: edit(f, lambda m: m["files"]["actor/weights"].update(size=[1])), r"manifest says \[1\]"),
    (lambda f: edit(f, lambda m: m["state"].update(step="2")), "step: Input should be a valid integer"),
    (lambda f: edit(f, lambda m: m["state"].update(next_index=[1])), "next_index: Input should be"),
    (lambda f: edit(f, lambda m: m["state"].update(prompt_ids=[1])), "prompt_ids.0: Input should be a valid string"),
    (lambda f: edit(f, lambda m: m["state"].pop("num_ranks")), "num_ranks: Field required"),
]


@pytest.mark.parametrize(("damage", "text"), DAMAGES, ids=[text for _, text in DAMAGES])
def test_it_is_refused_by_name_and_the_previous_one_used(
    store: CheckpointStore, damage: Callable[[Path], None], text: str
) -> None:
    newest = store.root / folder_name(2)
    damage(newest)
    with pytest.raises(CheckpointError, match=text) as caught:
        verify(newest)
    assert "step-000002" in str(caught.value) and str(caught.value).isprintable()
    found = store.newest()
    assert found is not None and found[1] == state(1)
    write(store, 2)  # it is made again, whatever stands there
    write(store, 3)
    assert [folder.name for folder in store.folders()] == ["step-000003", "step-000002"]
    assert verify(store.root / folder_name(2)) == state(2)


@pytest.mark.parametrize("name", ["step-999999", "step-9999999999"])
def test_a_folder_from_the_future_neither_loads_nor_pushes_others_out(store: CheckpointStore, name: str) -> None:
    """By its name it is the newest for ever, and counted as kept: the real ones were deleted."""
    for number in range(3):
        shutil.copytree(store.root / folder_name(1), store.root / f"{name}{number}")
    found = store.newest()
    assert found is not None and found[1] == state(2)
    for step in (3, 4):
        write(store, step)
    assert {"step-000003", "step-000004"} <= {folder.name for folder in store.folders()}
    found = store.newest()
    assert found is not None and found[1] == state(4)


def test_a_refused_one_does_not_push_a_sound_one_out(store: CheckpointStore) -> None:
    (store.root / folder_name(2) / "actor" / "weights").write_bytes(b"x")
    assert store.newest() is not None
    write(store, 3)
    assert [folder.name for folder in store.folders()] == ["step-000003", "step-000002", "step-000001"]
    write(store, 4)
    assert [folder.name for folder in store.folders()] == ["step-000004", "step-000003"]


def test_steps_beyond_six_digits_are_in_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        write(store, step)
    assert [folder.name for folder in store.folders()] == ["step-1000000", "step-999999"]
    found = store.newest()
    assert found is not None and found[1].step == 1_000_000


def test_other_names_are_not_looked_at(store: CheckpointStore) -> None:
    for name in ("step-latest", "step-", "step-2", "step-000002.bak", "step-٠٠٠٠٠٣", "latest"):
        (store.root / name).mkdir()
    (store.root / ".staging-link").symlink_to(store.root / folder_name(1))
    write(store, 3)
    assert [folder.name for folder in store.folders()] == ["step-000003", "step-000002"]
    assert verify(store.root / folder_name(2)) == state(2)


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_at_all_is_found(store: CheckpointStore, seed: int) -> None:
    """Bits flipped, bytes cut off or added, files removed, renamed or added: never loaded, never another error."""
    newest, rng = store.root / folder_name(2), Random(seed)
    pristine = store.root.parent / "pristine"
    shutil.copytree(newest, pristine)
    for number in range(150):
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        file = rng.choice(files)
        data = bytearray(file.read_bytes())
        kind = rng.choice(("flip", "cut", "grow", "remove", "rename", "add", "swap"))
        if kind == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            file.write_bytes(data)
        elif kind == "cut":
            file.write_bytes(data[: rng.randrange(len(data))])
        elif kind == "grow":
            file.write_bytes(data + rng.randbytes(3))
        elif kind == "remove":
            file.unlink()
        elif kind == "rename":
            file.rename(file.with_name("renamed"))
        elif kind == "add":
            file.with_name(f"added-{number}").write_bytes(b"")
        else:
            file.write_bytes(files[files.index(file) - 1].read_bytes())
        unchanged = {path.relative_to(newest): path.read_bytes() for path in newest.rglob("*") if path.is_file()} == {
            path.relative_to(pristine): path.read_bytes() for path in pristine.rglob("*") if path.is_file()
        }
        try:
            assert verify(newest) == state(2)
        except CheckpointError:
            assert not unchanged
        else:  # all that a sum doesn't see is white space in the manifest
            assert unchanged or (file.name == MANIFEST and kind in ("flip", "grow"))
        found = store.newest()
        assert found is not None
        shutil.rmtree(newest)
        shutil.copytree(pristine, newest)


@pytest.mark.parametrize(
    "states",
    [{}, {"cpu": torch.zeros(3)}, {"cpu": torch.zeros(10, dtype=torch.uint8)}, {"other": torch.zeros(1)}, None],
    ids=["nothing", "floats", "short", "another", "noise"],
)
def test_generator_states_that_are_none_are_named(tmp_path: Path, states: dict[str, torch.Tensor] | None) -> None:
    path = tmp_path / "rng-rank-00000.safetensors"
    if states is None:
        path.write_bytes(b"\x80\x04noise" * 9)
    else:
        save_file(states, path)
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=r"rng-rank-00000\.safetensors: holds no generator states"):
        load_rng(tmp_path, 0)
    assert torch.equal(torch.get_rng_state(), before)
