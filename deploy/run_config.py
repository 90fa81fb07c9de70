"""The config a run was started with: written once, and guarded when the run is resumed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from common.config import VcppoConfig, dump_config, load_config
from common.errors import EXIT_USAGE, VcppoError
from common.run_folder import RunFolder
from common.whole_file import write_whole

# May change on resume: none of them changes what is learnt from which data. A trailing dot means the whole section.
HARMLESS = (
    "run.folder", "logging.", "launcher.", "eval.", "transport.", "broadcast.", "security.",
    "redis.username", "redis.password_file", "redis.ca_file", "redis.connect_deadline_seconds",
    "redis.patience_seconds", "redis.fsync", "watchdog.",
    "redis.maxmemory_mib", "rl.num_steps", "value_pretraining.min_explained_variance",
    "generator.num_generators", "generator.max_in_flight", "generator.tensor_parallel_size", "generator.enforce_eager",
    "generator.kv_cache_gib", "generator.gpu_memory_utilization", "generator.lease_seconds",
    "generator.heartbeat_seconds", "generator.control_host", "generator.engine_options.",
    "learner.micro_batch_tokens", "learner.log_prob_chunk_tokens", "learner.log_prob_chunk_vocab",
    "learner.gradient_checkpointing", "learner.num_threads", "learner.checkpoint_every", "learner.keep_checkpoints",
    "learner.batch_deadline_seconds",
)  # fmt: skip


class RunError(VcppoError):
    """A run folder can't be used as asked."""

    exit_code = EXIT_USAGE


class RunInUse(RunError):
    """Another vcppo works on it."""


class Change(NamedTuple):
    """One field that differs between the run's config and the one given now."""

    field: str
    before: object
    now: object

    @property
    def harmless(self) -> bool:
        return any(self.field == name or (name.endswith(".") and self.field.startswith(name)) for name in HARMLESS)

    def __str__(self) -> str:
        return f"{self.field} is {self.before!r} in the run and {self.now!r} now"


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def changes(before: VcppoConfig, now: VcppoConfig) -> list[Change]:
    """Fields that differ, by dotted name."""
    old, new = (dict(_flatten(config.model_dump(mode="json"))) for config in (before, now))
    return [
        Change(name, old.get(name), new.get(name))
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def harmful_changes(folder: RunFolder, now: VcppoConfig) -> str:
    """What differs from the run's config and would change what is learnt, as text; empty: nothing."""
    return "; ".join(str(change) for change in changes(load_config(folder.config), now) if not change.harmless)


def write_config(config: VcppoConfig) -> Path:
    """Write ``<run>/config.yaml``, or check that it says the same. Returns its path.

    A run whose learner has never come up has learnt nothing: its config may still be corrected.

    Raises:
        RunError: the run exists with another config, by field.
    """
    folder = RunFolder(config.run.path)
    has_learnt = folder.config.exists() and folder.metrics_file("learner").exists()
    if has_learnt and (harmful := harmful_changes(folder, config)):
        raise RunError(
            f"run {config.run.name!r} exists in {folder.path} with another config: {harmful}."
            " Resume it with the same values, or choose another run.name."
        )
    folder.create()
    write_whole(folder.config, dump_config(config))
    return folder.config


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the run for this launcher. Raises RunInUse when another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunInUse(
                f"{folder} is in use by another vcppo (pid {file.read().strip() or 'unknown'}): stop it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def open_run(argument: str | Path) -> RunFolder:
    """The run named by a folder, or by a name under ``runs/``. Raises RunError when there is none."""
    for path in (Path(argument), Path("runs") / argument):
        if (path / "config.yaml").exists():
            return RunFolder(path)
    runs = sorted(each.parent.name for each in Path("runs").glob("*/config.yaml"))
    raise RunError(f"{argument} is not a run folder (no config.yaml in it); runs here: {', '.join(runs) or 'none'}")


def latest_run(root: Path = Path("runs")) -> RunFolder:
    """The run whose config was written last. Raises RunError when there is none."""
    configs = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise RunError(f"no run under {root}/: start one with `vcppo up -c CONFIG` or `vcppo demo`, or name its folder")
    return RunFolder(configs[-1].parent)
