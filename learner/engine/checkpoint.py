"""Checkpoints that are either whole or not there, and what one needs to resume exactly.

``checkpoints/step-000012/`` appears by rename after every file in it, and its manifest of sizes and
SHA-256 sums, is on disk. Loading verifies the manifest: every file
it names and no other, no links, sizes and sums, and that the folder is named after the step it holds. A damaged one is
refused by name and the one before it is used.

    step-000012/
        manifest.json          state (below), the files' sums, and its own
        actor/ critic/         what `TrainEngine.save` writes: weights, optimizer
        reference.safetensors  the reference policy, once it is not the starting policy any more
        rng-rank-00000.safetensors

Order of a checkpointing step: publish the folder, then commit the claimed prompts it contains
(`RunStore.commit`). A crash in between is harmless: resume commits every claim of a step the
checkpoint has, and replays the rest (`vcppo.learner.rl.loop`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import structlog
import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.whole_folder import remove_path, replace_folder
from vcppo.common.run_folder import checkpoint_step, checkpoints_in
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 2  # 2: the manifest has a sum of its own
MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_STAGING = re.compile(r"\.staging-(\d+)-step-\d+", re.ASCII)


class CheckpointError(VcppoError):
    """A checkpoint can't be used; the text names the folder and the reason."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint knows beside the engines.

    Attributes:
        step: learner steps it contains; also the policy version of its actor.
        next_index: purpose → index of the next prompt to issue.
        prompt_ids: trained since the checkpoint before, in step order (they are committed once this is durable).
        config_hash: of the config that made it; a difference on resume is logged.
        num_ranks: learner ranks that made it. It loads on any number, for whoever reads the manifest.
        zero_stage: at which it was made. It loads at any.
        extra: further numbers by name: which version the reference policy is, how the entropy's weight stands.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    step: int
    next_index: dict[str, int]
    prompt_ids: list[str]
    config_hash: str
    num_ranks: int
    zero_stage: int
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def policy_version(self) -> int:
        """One a step: the version of the actor in it is its step."""
        return self.step


_STATE = TypeAdapter(CheckpointState)


class CheckpointStore:
    """The ``checkpoints`` folder of a run. Publishing is rank 0's; the other ranks only write into `begin`'s folder.

    Args:
        incarnation: of this learner. Staging folders of earlier ones are removed: an earlier one that wakes up in the
            middle of a checkpoint has nothing left to publish.
        confirm: raises when this learner has a successor; asked right before each change.
    """

    def __init__(
        self, root: Path, keep: int, *, incarnation: int = 0, confirm: Callable[[], None] = lambda: None
    ) -> None:
        self.root = root
        self.keep = keep
        self._incarnation, self._confirm = incarnation, confirm
        self._refused: set[Path] = set()
        self.pinned: int | None = None  # the step of one that is kept however old it is

    def begin(self, step: int) -> Path:
        """Rank 0: an empty staging folder, for all ranks to write into."""
        self._confirm()
        self.root.mkdir(parents=True, exist_ok=True)
        self.remove_leftovers()
        staging = self.staging(step)
        staging.mkdir()
        return staging

    def remove_leftovers(self) -> None:
        """Rank 0: what was begun by this learner or an earlier one, and not published. A later one's stays."""
        for leftover in (*self.root.glob(".staging-*"), *self.root.glob(".step-*.staging-replaced-*")):
            found = _STAGING.fullmatch(leftover.name)
            if found is None or int(found[1]) <= self._incarnation:
                remove_path(leftover)

    def staging(self, step: int) -> Path:
        """Where all ranks write the checkpoint of ``step`` before it is published."""
        return self.root / f".staging-{self._incarnation}-{folder_name(step)}"

    def publish(self, state: CheckpointState) -> Path:
        """Rank 0, after every rank has written: sums, fsync, rename, then prune. Returns the final folder."""
        staging, final = self.staging(state.step), self.root / folder_name(state.step)
        content = {"state": asdict(state), "files": _summarise(staging)}
        manifest = {"schema": SCHEMA_VERSION, "sha256": _content_sum(content), **content}
        _write_durably(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
        for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
            _fsync_folder(folder)
        self._confirm()
        replace_folder(final, staging)  # what is there is of a replayed step: same content, made again
        _fsync_folder(self.root)
        self._refused.discard(final)
        self._prune(state.step)
        return final

    def folders(self) -> list[Path]:
        """Published checkpoints, newest first."""
        return list(reversed(checkpoints_in(self.root).values()))

    def _prune(self, step: int) -> None:
        """Keep `keep` up to ``step``. A refused one doesn't count, nor one of a later step: it may be anybody's."""
        there = checkpoints_in(self.root)
        steps = [each for each in reversed(there) if each <= step]  # newest first
        kept = [each for each in steps if there[each] not in self._refused][: self.keep]
        for each in steps:
            if each < kept[-1] and each != self.pinned:
                remove_path(there[each])

    def newest(self) -> tuple[Path, CheckpointState] | None:
        """The newest checkpoint that verifies; None when there has never been one.

        Raises:
            CheckpointError: there are checkpoints, and none is sound. Starting over would silently
                train trajectories again that the ledger counts as trained.
        """
        folders = self.folders()
        for folder in folders:
            try:
                return folder, verify(folder)
            except CheckpointError as error:
                self._refused.add(folder)
                log.error("checkpoint_refused", folder=str(folder), error=str(error))
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.root} is sound (see the log); "
                "restore one from a backup, or start a new run under another run.name"
            )
        return None


def folder_name(step: int) -> str:
    """Six digits, so that names sort as steps do."""
    return f"step-{step:06d}"


def verify(folder: Path) -> CheckpointState:
    """Read the manifest and check every file against it. Raises CheckpointError naming what is wrong."""
    try:
        manifest = _read_manifest(folder)
        _check_files(folder, manifest["files"])
        state = _parse_state(folder, manifest["state"])
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be read: {error}") from error
    if checkpoint_step(folder) not in (None, state.step):
        raise CheckpointError(f"{folder}: holds step {state.step}: it was renamed or copied")
    return state


def _check_files(folder: Path, expected: Mapping[str, Any]) -> None:
    found = _plain_files(folder)
    for name in sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{folder}: {one_line(name)} is missing")
    for name in sorted(found.keys() - expected.keys() - {MANIFEST}):
        raise CheckpointError(f"{folder}: {one_line(name)} is not in the manifest")
    for name, entry in expected.items():
        size = found[name].stat().st_size
        if size != entry["size"]:
            raise CheckpointError(f"{folder}: {one_line(name)} has {size} bytes, manifest says {_shown(entry['size'])}")
        if _sha256(found[name]) != entry["sha256"]:
            raise CheckpointError(f"{folder}: {one_line(name)} does not have the SHA-256 sum of the manifest")


def _plain_files(folder: Path) -> dict[str, Path]:
    """Relative name → path of every file. CheckpointError when there is anything but files and folders."""
    if folder.is_symlink() or not folder.is_dir():
        raise CheckpointError(f"{folder}: is no folder of its own: a link, or a file")
    files: dict[str, Path] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{folder}: {one_line(name)} is a link or no plain file")
        if path.is_file():
            files[name] = path
    return files


def save_rng(folder: Path, rank: int) -> None:
    """This rank's torch generators. Mini-batch order needs none: it is seeded by (run.seed, step, epoch)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, folder / f"rng-rank-{rank:05d}.safetensors")


def load_rng(folder: Path, rank: int) -> None:
    """Restore what `save_rng` wrote. A rank that did not exist then keeps its fresh state: no rank draws from it."""
    path = folder / f"rng-rank-{rank:05d}.safetensors"
    if not path.exists():
        return
    try:
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: holds no generator states: {type(error).__name__}: {one_line(error)}"
        ) from error


def hash_json(value: Mapping[str, object]) -> str:
    """Short, order-independent hash of a JSON-able tree."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """With ``files``, each of ``size`` and ``sha256``, and ``state``."""
    if folder.is_symlink() or (folder / MANIFEST).is_symlink():
        raise CheckpointError(f"{folder}: it or its {MANIFEST} is a link")
    with (folder / MANIFEST).open("rb") as file:
        data = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(data) > _MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{folder}: {MANIFEST} is larger than {_MAX_MANIFEST_BYTES} bytes")
    try:
        manifest = parse_json(data)
    except JsonError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA_VERSION:
        raise CheckpointError(f"{folder}: {MANIFEST} is not of schema {SCHEMA_VERSION}")
    if manifest.get("sha256") != _content_sum({name: manifest.get(name) for name in ("state", "files")}):
        raise CheckpointError(f"{folder}: {MANIFEST} does not have its own SHA-256 sum")
    files, state = manifest.get("files"), manifest.get("state")
    if not isinstance(files, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{folder}: {MANIFEST} has no files or no state")
    for name, entry in files.items():
        if not isinstance(entry, dict) or {"size", "sha256"} - entry.keys():
            raise CheckpointError(f"{folder}: {MANIFEST} has no size or sum for {one_line(name)}")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"{folder}: {MANIFEST} names a file outside the checkpoint: {one_line(name)}")
    return manifest


def _parse_state(folder: Path, state: Mapping[str, object]) -> CheckpointState:
    try:
        return _STATE.validate_json(json.dumps(state))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = one_line(".".join(str(part) for part in first["loc"]))
        raise CheckpointError(f"{folder}: state in {MANIFEST}: {field}: {one_line(first['msg'])}") from error


def _content_sum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shown(value: object) -> str:
    return one_line(repr(value)[:40])


def _summarise(folder: Path) -> dict[str, dict[str, object]]:
    """Relative name → size and sum of every file, fsynced on the way."""
    files: dict[str, dict[str, object]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    return files


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
