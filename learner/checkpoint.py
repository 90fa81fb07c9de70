"""Checkpoints that are either whole or not there, and what one needs to resume exactly.

``checkpoints/step-000012/`` appears by rename after every file in it, and its manifest of sizes and
SHA-256 sums, is on disk. Loading verifies the manifest; a damaged one is refused by name and
the one before it is used.

    step-000012/
        manifest.json          state (below) and the files' sums
        actor/ critic/         what `TrainEngine.save` writes: weights, optimizer
        rng-rank-00000.safetensors

Order of a checkpointing step: publish the folder, then commit the claimed prompts it contains
(`RunStore.commit`). A crash in between is harmless: resume commits every claim of a step the
checkpoint has, and replays the rest (`learner.loop`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.errors import VcppoError

log = structlog.get_logger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20


class CheckpointError(VcppoError):
    """A checkpoint can't be used; the text names the folder and the reason."""


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint knows beside the engines.

    Attributes:
        step: learner steps it contains; also the policy version of its actor.
        next_index: purpose → index of the next prompt to issue.
        prompt_ids: trained since the checkpoint before, in step order (they are committed once this is durable).
        config_hash: of the config that made it; a difference on resume is logged.
        num_ranks: learner ranks that made it; ZeRO shards load only on as many.
        zero_stage: see num_ranks.
    """

    step: int
    next_index: dict[str, int]
    prompt_ids: list[str]
    config_hash: str
    num_ranks: int
    zero_stage: int
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def policy_version(self) -> int:
        return self.step


class CheckpointStore:
    """The ``checkpoints`` folder of a run. Publishing is rank 0's; the other ranks only write into `begin`'s folder."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root = root
        self.keep = keep

    def staging(self, step: int) -> Path:
        """Where all ranks write the checkpoint of ``step`` before it is published."""
        return self.root / f".staging-{folder_name(step)}"

    def begin(self, step: int) -> Path:
        """Rank 0: an empty staging folder; leftovers of a crash are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob(".staging-*"):
            shutil.rmtree(leftover)
        staging = self.staging(step)
        staging.mkdir()
        return staging

    def publish(self, state: CheckpointState) -> Path:
        """Rank 0, after every rank has written: sums, fsync, rename, then prune. Returns the final folder."""
        staging, final = self.staging(state.step), self.root / folder_name(state.step)
        manifest = {"schema": SCHEMA_VERSION, "state": asdict(state), "files": _summarise(staging)}
        _write_durably(staging / MANIFEST, json.dumps(manifest, indent=1).encode())
        for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
            _fsync_folder(folder)
        if final.exists():  # a replayed step: same content, made again
            shutil.rmtree(final)
        staging.rename(final)
        _fsync_folder(self.root)
        for old in self.folders()[self.keep :]:
            shutil.rmtree(old)
        return final

    def folders(self) -> list[Path]:
        """Published checkpoints, newest first."""
        return sorted(self.root.glob("step-*"), reverse=True)

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
                log.error("checkpoint_refused", folder=str(folder), error=str(error))
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self.root} is sound (see the log); "
                "restore one from a backup, or start a new run under another run.name"
            )
        return None


def folder_name(step: int) -> str:
    return f"step-{step:06d}"


def verify(folder: Path) -> CheckpointState:
    """Read the manifest and check every file against it. Raises CheckpointError naming what is wrong."""
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if path.stat().st_size != expected["size"]:
            raise CheckpointError(f"{folder}: {name} has {path.stat().st_size} bytes, manifest says {expected['size']}")
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{folder}: {name} does not have the SHA-256 sum of the manifest")
    return _parse_state(folder, manifest["state"])


def check_ranks(folder: Path, state: CheckpointState, num_ranks: int, zero_stage: int) -> None:
    """ZeRO 1-3 shards are per rank: refuse to load them on another number of ranks, or at another stage."""
    if state.zero_stage != zero_stage or (zero_stage > 0 and state.num_ranks != num_ranks):
        raise CheckpointError(
            f"{folder} was made with learner.num_ranks={state.num_ranks}, learner.zero_stage={state.zero_stage}; "
            f"now they are {num_ranks} and {zero_stage}: set them back to resume"
        )


def save_rng(folder: Path, rank: int) -> None:
    """This rank's torch generators. Mini-batch order needs none: it is seeded by (run.seed, step, epoch)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, folder / f"rng-rank-{rank:05d}.safetensors")


def load_rng(folder: Path, rank: int) -> None:
    """Restore what `save_rng` wrote. A rank that did not exist then keeps its fresh state."""
    path = folder / f"rng-rank-{rank:05d}.safetensors"
    if not path.exists():
        return
    try:
        states = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {error}") from error
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def hash_json(value: Mapping[str, object]) -> str:
    """Short, order-independent hash of a JSON-able tree."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read_manifest(folder: Path) -> dict[str, dict[str, dict[str, object]]]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} can't be read: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder}: {MANIFEST} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA_VERSION:
        raise CheckpointError(f"{folder}: {MANIFEST} is not of schema {SCHEMA_VERSION}")
    files, state = manifest.get("files"), manifest.get("state")
    if not isinstance(files, dict) or not isinstance(state, dict):
        raise CheckpointError(f"{folder}: {MANIFEST} has no files or no state")
    for name, entry in files.items():
        if not isinstance(entry, dict) or {"size", "sha256"} - entry.keys():
            raise CheckpointError(f"{folder}: {MANIFEST} has no size or sum for {name}")
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{folder}: {MANIFEST} names a file outside the checkpoint: {name}")
    return manifest


def _parse_state(folder: Path, state: Mapping[str, object]) -> CheckpointState:
    try:
        return CheckpointState(**state)  # type: ignore[arg-type]
    except TypeError as error:
        raise CheckpointError(f"{folder}: state in {MANIFEST}: {error}") from error


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
