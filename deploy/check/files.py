"""Checks of what lies on disk: the model's files, the run folder, the space a run will take."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vcppo.common.check.check_lines import Result, failed, passed, skipped, warned
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.room import nearest_existing, room_of
from vcppo.common.process.living import described, living
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.check.machine import Setup
from vcppo.deploy.plan.architecture import PlanError, models_of
from vcppo.deploy.plan.arithmetic import gib
from vcppo.deploy.plan.disk import disk_plan
from vcppo.deploy.run.run_config import begun, check_config

MIN_INODES = 500  # logs, metrics, samples, checkpoints, and what libraries write
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_files(setup: Setup) -> Iterator[Result]:
    """Whether ``model.path`` can be a model at all: a folder with a config and safetensors, or a hub's id."""
    path = setup.config.model.path
    folder = Path(path).expanduser()
    if unreadable := _unreadable(folder):
        yield failed(
            f"model.path: {unreadable[0]} can't be read by user {os.getuid()}"
            + (f", nor can {len(unreadable) - 1} more" if unreadable[1:] else ""),
            f"chmod -R a+rX {path}, where it is kept: under compose that is the folder behind DATA",
        )
        return
    if not (folder / "config.json").exists():
        if not folder.exists() and _HUB_ID.fullmatch(path) and not folder.parent.is_dir():
            yield _hub_model(path)
        else:
            yield failed(
                f"model.path: {path} holds no model (no config.json)",
                "make the cold start with `vcppo sft`, or give a Hugging Face folder or id (owner/name)",
            )
        return
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        yield failed(
            f"model.path: {path} has no *.safetensors; pickled weights are not loaded, they can run code",
            "load the model in transformers where you trust it, and save_pretrained() it again",
        )
        return
    if missing := _missing_shards(folder):
        yield failed(f"model.path: {path} lacks {', '.join(missing[:3])}", "copy or download the folder again")
        return
    size = sum(file.stat().st_size for file in weights)
    yield passed(f"{path}: {len(weights)} safetensors, {gib(size)} GiB")


def run_folder(setup: Setup) -> Iterator[Result]:
    """Whether this run can be started or resumed here. Makes nothing."""
    folder = RunFolder(setup.config.run.path)
    if holder := _holder(folder.path):
        yield failed(
            f"{folder.path} is in use by another vcppo (pid {holder})", "stop it first, or choose another run.name"
        )
        return
    if not setup.starting and (left := living(folder.processes)):
        yield failed(f"{folder.path}: processes of an earlier start still live", described(left))
        return
    exists = nearest_existing(folder.path)
    if not exists.is_dir() or not os.access(exists, os.W_OK | os.X_OK):
        yield failed(f"run.folder: {exists} can't be written by user {os.getuid()}", "set run.folder to one that can")
    elif not folder.config.exists():
        yield passed(f"{folder.path} will be made")
    elif setup.starting:
        yield passed(f"{folder.path} exists")  # whoever writes the config compares it, once what starts over is moved
    else:
        check_config(setup.config, begun(folder))
        yield passed(f"{folder.path} exists: the run is resumed")


def space(setup: Setup) -> Result:
    """Room for checkpoints, the recording of value pretraining, the export and the store: what is there already counts,
    so that a run that filled its disk can be resumed once there is room for the rest."""
    place = nearest_existing(setup.config.run.path)
    free, there = shutil.disk_usage(place).free, _bytes_in(setup.config.run.path)
    if (room := room_of(place)) is not None and room.inodes is not None and room.inodes < MIN_INODES:
        return failed(
            f"{place} has room for {room.inodes} more files (inodes); a run needs {MIN_INODES}",
            "remove files there, or set run.folder to another disk",
        )
    try:
        plan = disk_plan(models_of(setup.config), setup.config)
    except PlanError as error:
        return skipped(f"{gib(free)} GiB are free; what the run takes is not known: {error}")
    parts = ", ".join(f"{name} {gib(size)}" for name, size in plan.parts if size)
    text = f"up to {gib(plan.total)} GiB of {gib(free)} free on {place} ({parts})"
    if there:
        text += f"; {gib(there)} GiB of it are there already"
    if plan.total > free + there:
        remedy = "free some, set run.folder to another disk, or lower learner.keep_checkpoints"
        return failed(text, remedy) if plan.certain > free + there else warned(text, remedy)
    return passed(text)


def _bytes_in(folder: Path) -> int:
    """Of the parts of a run that the plan counts, as far as they are written."""
    run = RunFolder(folder)
    total = 0
    for part in (run.checkpoints, run.value_pretraining, run.export, run.exports, run.redis):
        for path in part.rglob("*"):
            with contextlib.suppress(OSError):  # it went while we looked
                total += path.lstat().st_size if path.is_file() else 0
    return total


def _hub_model(path: str) -> Result:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(path, "config.json"), str):
        return passed(f"{path}: a hub's model, in the cache")
    return warned(
        f"{path}: a hub's model that is not in the cache",
        f"fetch it first: python -m vcppo.deploy.launch.fetch_model {path}",
    )


def _unreadable(folder: Path) -> list[Path]:
    """The folder, or those of its files, that this user can't open (safetensors saves for the owner alone)."""
    try:
        if not folder.is_dir():
            return []
        if not os.access(folder, os.R_OK | os.X_OK):
            return [folder]
        return sorted(file for file in folder.iterdir() if file.is_file() and not os.access(file, os.R_OK))
    except PermissionError:
        return [folder]


def _missing_shards(folder: Path) -> list[str]:
    """Files that the index of shards names and that are not there."""
    try:
        index = parse_json((folder / "model.safetensors.index.json").read_bytes())
        return sorted({str(name) for name in index["weight_map"].values() if not (folder / str(name)).is_file()})
    except FileNotFoundError:
        return []
    except (OSError, JsonError, KeyError, TypeError, AttributeError):
        return ["a readable model.safetensors.index.json"]


def _holder(folder: Path) -> str:
    """Process id of the vcppo that works on the folder (see `vcppo.deploy.run.run_config.exclusive`); empty: none."""
    try:
        with (folder / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return ""
    except BlockingIOError:
        return (folder / ".lock").read_text().strip() or "unknown"
    except OSError:  # not ours to open: the folder's own check says so
        return ""
    return ""
