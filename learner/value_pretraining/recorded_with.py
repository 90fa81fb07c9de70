"""What a recording was made with, beside it on disk; so one that no longer fits the config is recognised.

    recorded_with.json
        settings         those that shape a recording (`vcppo.common.config.dependents`)
        model            digest of the model's files: config, tokenizer, templates, and a sample of the weights
        task_code        digest of the source of a task that is not built in, and of reward functions
        problems         digest of the first `num_problems` problems: what options, data files or code make of them
        longest_tokens   a recorded prompt with the longest response it could get; null until all is recorded

Rewards are stored with the responses: other rewards are another recording.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import structlog

from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.config.dependents import differences, flat, settings_of
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.files.fingerprints import contents_named, file_digest, model_contents
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole
from vcppo.common.rewards.reward_functions import load_reward_functions
from vcppo.common.run_folder import RECORD_FILE, RECORDED_WITH_FILE, RunFolder
from vcppo.common.tasks import BUILT_IN_TASKS, Task

log = structlog.get_logger(__name__)

_OURS = ("cold_start.json", "reward_model.json")  # notes of our stages, with times in them


class RecordingOutdated(VcppoError):
    """There is a recording, made with something else than the config says now."""

    exit_code = EXIT_REFUSED


class Problems(Protocol):
    """What `vcppo.learner.supply.prompts.PromptSource` knows of the task's problems."""

    @property
    def task(self) -> Task:
        """The task that is recorded."""

    def problems_digest(self, count: int, run_seed: int | None = None) -> str:
        """Hash of the first `count` problems of value pretraining, of a run of that seed; None: of this run."""


def made_with(config: VcppoConfig, task: Task) -> dict[str, Any]:
    """What shapes a recording now, but for the problems."""
    return {
        "settings": settings_of("recording", flat(config.model_dump(mode="json"))),
        "model": model_digest(config.model.path),
        "task_code": _all_code(config.task, task),
    }


def digest(value: object) -> str:
    """Of a JSON-able value."""
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def check_recording(folder: Path, config: VcppoConfig, problems: Problems, num_recorded: int) -> dict[str, Any]:
    """Note what the recording in `folder` is made with; returns the note.

    Raises:
        RecordingOutdated: something is recorded, and with something else.
    """
    num_problems = -(-config.value_pretraining.num_trajectories // config.rl.group_size)
    now = made_with(config, problems.task)
    before = read_note(folder)
    if num_recorded and before is None:
        log.warning("recording_of_unknown_origin", file=str(folder / RECORD_FILE), effect="it is taken as it is")
    if num_recorded and before is not None:
        changed = changed_since(before, now)
        count = int(before["num_problems"])
        if not changed and problems.problems_digest(count) != before["problems"]:
            changed = ["the task's problems are others: its data, or what task.options refers to"]
        if changed:
            raise RecordingOutdated(_outdated(folder, config, changed))
        num_problems = max(num_problems, count)
    note = {
        **now,
        "num_problems": num_problems,
        "problems": problems.problems_digest(num_problems),
        "longest_tokens": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_note(folder, note)
    return note


def read_note(folder: Path) -> dict[str, Any] | None:
    """recorded_with.json; None when there is none."""
    path = folder / RECORDED_WITH_FILE
    if not path.exists():
        return None
    return read_json_object(path, f"remove {RECORDED_WITH_FILE}, and the recording is taken as it is")


def write_note(folder: Path, note: Mapping[str, Any]) -> None:
    """Write recorded_with.json whole or not at all; `read_note` reads it."""
    write_whole(folder / RECORDED_WITH_FILE, json.dumps(note, indent=1, default=str))


def critic_inputs(config: VcppoConfig, note: Mapping[str, Any]) -> dict[str, Any]:
    """What the critic of value pretraining is made with: the recording, and its own settings."""
    return {
        "recording": digest([note["settings"], note["model"], note["task_code"], note["problems"]]),
        "critic_model": None if config.critic.model is None else model_digest(config.critic.model),
        "num_trajectories": config.value_pretraining.num_trajectories,
        "recordings": [_recording_digest(run) for run in config.value_pretraining.recordings],
        "settings": settings_of("critic", flat(config.model_dump(mode="json"))),
    }


def _recording_digest(run: Path) -> str | None:
    """Of another run's recording; None: it is not there."""
    path = RunFolder(run).value_pretraining / RECORD_FILE
    return file_digest(path) if path.is_file() else None


def still_fits(config: VcppoConfig, note: Mapping[str, Any]) -> bool:
    """Whether settings and model are those the recording was made with; the problems are looked at when it goes on."""
    settings = json.loads(json.dumps(settings_of("recording", flat(config.model_dump(mode="json"))), default=str))
    return bool(note.get("settings") == settings and note.get("model") == model_digest(config.model.path))


def changed_since(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How what a recording was made with (`read_note`) differs from `made_with` of now, but for the problems."""
    plain = json.loads(json.dumps(now, default=str))
    changed = [str(change) for change in differences(before["settings"], plain["settings"])]
    if before["model"] != plain["model"]:
        changed.append("the files at model.path are others")
    if before["task_code"] != plain["task_code"]:
        changed.append("the source of the task (task.name) is another")
    return changed


def _outdated(folder: Path, config: VcppoConfig, changed: list[str]) -> str:
    over = (
        ", or start over: `vcppo up` with the same arguments and --start-over value_pretraining"
        if config.redis.url is None
        else ""
    )
    return (
        f"{folder / RECORD_FILE} was recorded with something else: {'; '.join(changed)}. "
        f"Put that back, or choose another run.name{over}"
    )


def _all_code(config: TaskConfig, task: Task) -> str | None:
    """Of the task, and of the functions that grade it."""
    functions = load_reward_functions(each.name for each in config.rewards)
    code = _task_code(config.name, task)
    return digest([code, *map(_source_of, functions.values())]) if functions else code


def _task_code(name: str, task: Task) -> str | None:
    if name in BUILT_IN_TASKS:
        judges = contents_named([part.judged_by for part in task.parts()])
        return " ".join([f"version {task.version}", *judges.values()])
    return _source_of(type(task))


def _source_of(thing: Any) -> str | None:
    """Digest of the module it is defined in."""
    try:
        source = inspect.getsource(inspect.getmodule(thing) or thing)
    except (OSError, TypeError):  # made without a file
        return None
    return blake2b(source.encode(), digest_size=16).hexdigest()


def model_digest(path: str) -> str:
    """Of the files at a model path; of a hub id, of those in the local cache (`vcppo.common.files.fingerprints`)."""
    contents = model_contents(path)
    if not contents:
        return f"not on this machine: {path}"
    return digest({name: each for name, each in contents.items() if name not in _OURS})
