"""The config a run was started with: written once, and guarded when the run is resumed."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from vcppo.common.config import VcppoConfig, dump_config, load_config
from vcppo.common.config.dependents import Begun, Change, consequence, differences, flat, start_over
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.files.whole_file import write_whole
from vcppo.common.process.living import described, living
from vcppo.common.run_folder import RECORD_FILE, RECORDED_WITH_FILE, RunFolder
from vcppo.deploy.run.run_data import read_json

LAST_SECONDS = 5.0  # that processes of an earlier start may still take to end


class RunError(VcppoError):
    """A run folder can't be used as asked."""

    exit_code = EXIT_USAGE


class RunInUse(RunError):
    """Another vcppo works on it."""


def changes(before: VcppoConfig, now: VcppoConfig) -> list[Change]:
    """Fields that differ, by dotted name."""
    return differences(*(flat(config.model_dump(mode="json")) for config in (before, now)))


def harmful_changes(folder: RunFolder, now: VcppoConfig, shaping: Sequence[str] = ("",)) -> str:
    """What differs from the run's config and would change what is learnt, as text; empty: nothing.

    Args:
        shaping: how the names of settings begin that what is there was made with.
    """
    found = changes(load_config(folder.config), now)
    return "; ".join(str(each) for each in found if not each.harmless and each.field.startswith(tuple(shaping)))


def begun(folder: RunFolder) -> Begun:
    """How far the run in `folder` has come, by its files."""
    record = folder.value_pretraining / RECORD_FILE
    longest = (read_json(folder.value_pretraining / RECORDED_WITH_FILE) or {}).get("longest_tokens")
    return Begun(
        recorded=record.exists() and record.stat().st_size > 0,
        rl=folder.has_trained,
        longest_tokens=longest if isinstance(longest, int) else None,
    )


def write_config(config: VcppoConfig, *, rename: str = "run.name") -> Path:
    """Write ``<run>/config.yaml`` when the run can go on with it. Returns its path.

    What the run has not come to yet may change, and of what it has, all that can be taken over or made again from its
    recording (`vcppo.common.config.dependents`). The learner logs each such change where it takes effect.

    Args:
        rename: how another name is given to a run, for the error.

    Raises:
        RunError: the run would have to start over for it; says for which fields, and how.
    """
    folder = RunFolder(config.run.path)
    check_config(config, begun(folder), rename)
    folder.create()
    write_whole(folder.config, dump_config(config))
    return folder.config


def check_config(config: VcppoConfig, found: Begun, rename: str = "run.name") -> None:
    """Raises RunError when a run that has come as far as `found` can't go on with `config`."""
    folder = RunFolder(config.run.path)
    if not found.anything or not folder.config.exists():
        return
    changed = changes(load_config(folder.config), config)
    refused = [change for change in changed if consequence(change, found) == "refused"]
    if refused:
        others = [change for change in changed if change not in refused]
        raise RunError(_refusal(config, found, refused, others, rename))


def _refusal(
    config: VcppoConfig, found: Begun, refused: Sequence[Change], others: Sequence[Change], rename: str
) -> str:
    folder, over = RunFolder(config.run.path), start_over(refused, found)
    lost = {
        "rl": "the steps of RL",
        "value_pretraining": "the recording of value pretraining" + (", its critic and RL" if found.rl else ""),
        "run": "the whole run, from its cold start on",
    }[over]
    text = (
        f"run {config.run.name!r} exists in {folder.path} with another config: {'; '.join(map(str, refused))}. "
        f"With that, {lost} would have to start over. Set {_names(refused)} back, or choose another {rename}"
    )
    if over != "run" and config.redis.url is None:
        text += (
            f", or start over under this name: `vcppo up` with the same arguments and --start-over {over}"
            f" (what is there moves to {next_place(folder)})"
        )
    if found.longest_tokens and not found.rl and "generator.max_model_len" in _names(refused):
        text += f". What is recorded fits from generator.max_model_len = {found.longest_tokens} on"
    if others:
        text += f". {_names(others)} may change on this run"
    return text + "."


def _names(changed: Sequence[Change]) -> str:
    return ", ".join(dict.fromkeys(change.field for change in changed))


def next_place(folder: RunFolder) -> Path:
    """Where `vcppo.deploy.launch.start_over` moves what is there: the first of before-1, before-2, ... that is free."""
    return next(place for number in count(1) if not (place := folder.path / f"before-{number}").exists())


# What is written before a process is started.
_BEFORE_ANY_START = {".lock", "config.yaml", "endpoints.json", "stages.jsonl", "launcher.jsonl"}


@contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """A start that is refused before any process was started leaves the folder as it was: not there, or without a run.

    A run that is there already is not touched.
    """
    if (folder / "config.yaml").exists():
        yield
        return
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    before = set(folder.rglob("*"))
    try:
        yield
    except BaseException:
        new = set(folder.rglob("*")) - before
        files = {path for path in new if not path.is_dir()}
        if {path.name for path in files} <= _BEFORE_ANY_START and not _has_started(folder):
            for path in files:
                path.unlink(missing_ok=True)
            for path in [*sorted(new - files, reverse=True), *made]:  # inner ones first; what holds more stays
                with suppress(OSError):
                    path.rmdir()
        raise


def _has_started(folder: Path) -> bool:
    try:
        return b"process_started" in RunFolder(folder).log_file("launcher").read_bytes()
    except OSError:
        return False


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run for this launcher. One that is refused leaves nothing behind (`leaving_nothing`).

    Raises:
        RunInUse: another one has it, or a process of an earlier one lives.
        RunError: the folder can't be written.
    """
    with leaving_nothing(folder), _locked(folder):
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise RunError(
            f"{folder} can't be written ({error.strerror or error}): set run.folder to a folder that can"
        ) from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunInUse(
                f"{folder} is in use by another vcppo (pid {holder}): stop it first (kill {holder}; one that does not"
                f" react: kill -9 {holder})"
            ) from None
        _wait_for_the_last(folder)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _wait_for_the_last(folder: Path) -> None:
    """What an earlier launcher has started ends with it, in a moment. Raises RunInUse when it does not."""
    end = time.monotonic() + LAST_SECONDS
    while left := living(RunFolder(folder).processes):
        if time.monotonic() >= end:
            raise RunInUse(
                f"{folder}: processes of an earlier start still live, or are frozen: {described(left)}."
                " Another name or port is no way out: two starts of one run would work against each other"
            )
        time.sleep(0.1)  # a lock can be waited for, but with no deadline


def open_run(argument: str | Path) -> RunFolder:
    """The run named by a folder, or by a name under ``runs/``. Raises RunError when there is none."""
    for path in (Path(argument), Path("runs") / argument):
        if (path / "config.yaml").exists():
            return RunFolder(path)
    runs = sorted(each.parent.name for each in Path("runs").glob("*/config.yaml"))
    raise RunError(f"{argument} is not a run folder (no config.yaml in it); runs here: {', '.join(runs) or 'none'}")


def config_of_run(folder: RunFolder, overrides: Sequence[str] = ()) -> VcppoConfig:
    """The config of an existing run, with `overrides`; its run folder is the one it was read from.

    config.yaml says the folder as it was seen from where the run was started, which may be elsewhere.

    Raises:
        RunError: the folder holds a run of another name, which the settings would lead to.
    """
    own = load_config(folder.config)
    place = folder.path.resolve()
    if own.run.path.resolve() == place:
        return load_config(folder.config, overrides)
    if own.run.name != place.name:
        raise RunError(
            f"{folder.path} holds the run {own.run.name!r} (run.name in its config.yaml): it is a copy, or was renamed."
            f" Name the folder {own.run.name!r} again; it may lie anywhere"
        )
    return load_config(folder.config, [f"run.folder={place.parent}", *overrides])


def latest_run(root: Path = Path("runs")) -> RunFolder:
    """The run whose config was written last. Raises RunError when there is none."""
    configs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise RunError(f"no run under {root}/: start one with `vcppo up -c CONFIG` or `vcppo demo`, or name its folder")
    return RunFolder(configs[-1].parent)
