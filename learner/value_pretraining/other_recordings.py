"""Recordings of other runs, taken in beside the run's own: same task, model and sampling, or refused by name.

What two runs were made with stands in their recorded_with.json (`vcppo.learner.value_pretraining.recorded_with`). The
seed may differ, and the size of a group: they say which prompts were asked, not what a response to one is worth.

    the same prompt (by its tokens)          its responses join one group: it is on one side of the split
    the same sample of a run's seed          is counted once: another run of that seed has asked for the same
    longer than generator.max_model_len      is left out
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.records.ids import (
    make_group_id,
    make_prompt_id,
    make_trajectory_id,
    parse_group_id,
    parse_trajectory_id,
)
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.trajectory_records import BAD_RECORD, records
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.value_pretraining.recorded_with import Problems, changed_since, read_note
from vcppo.learner.value_pretraining.recording import PURPOSE

_MAY_DIFFER = ("run.", "rl.group_size")


class RecordingDiffers(VcppoError):
    """A recording named in the config can't be taken in; the text says what differs."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True)
class Recording:
    """One of another run.

    Attributes:
        run: its folder.
        seed: its run.seed.
    """

    run: Path
    seed: int
    trajectories: list[Trajectory] = field(repr=False)


def read_recordings(config: VcppoConfig, note: Mapping[str, Any], problems: Problems) -> list[Recording]:
    """Rank 0: those of value_pretraining.recordings.

    Args:
        note: what the run's own recording is made with.

    Raises:
        RecordingDiffers: one is missing, not complete, damaged or made with something else.
    """
    return [_read(Path(run), config, note, problems) for run in config.value_pretraining.recordings]


def _read(run: Path, config: VcppoConfig, note: Mapping[str, Any], problems: Problems) -> Recording:
    folder = RunFolder(run).value_pretraining
    if folder.resolve() == RunFolder(config.run.path).value_pretraining.resolve():
        raise _refused(run, "it is this run's own, which is used anyway")
    other = read_note(folder)
    if other is None or not (folder / RECORD_FILE).is_file():
        raise _refused(run, f"it has no {RECORD_FILE} with what it was made with")
    if other.get("longest_tokens") is None:
        raise _refused(run, "its recording is not complete")
    mine = {**note, "settings": _compared(note["settings"])}
    changed = changed_since({**other, "settings": _compared(other["settings"])}, mine)
    seed = int(other["settings"]["run.seed"])
    if not changed and problems.problems_digest(int(other["num_problems"]), seed) != other["problems"]:
        changed = ["its problems are others: the task's data, or what task.options refers to"]
    if changed:
        raise _refused(run, f"it was recorded with something else: {'; '.join(changed)}")
    try:
        with (folder / RECORD_FILE).open("rb") as file:
            return Recording(run, seed, [trajectory for trajectory, _ in records(file)])
    except BAD_RECORD as error:
        raise _refused(run, f"{RECORD_FILE} is damaged: {one_line(error)}") from error


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=str))
    return {name: value for name, value in plain.items() if not name.startswith(_MAY_DIFFER)}


def _refused(run: Path, why: str) -> RecordingDiffers:
    return RecordingDiffers(
        f"value_pretraining.recordings: {run} can't be taken in: {why}: take it out of value_pretraining.recordings"
    )


# Pure from here on


@dataclass
class Taken:
    """The run's own trajectories and others'.

    Attributes:
        trajectories: own ones first, then those that were taken in, under new ids.
        num_new_prompts: prompts that the run's own recording does not have.
        facts: for decision.json, one of each recording.
    """

    trajectories: list[Trajectory]
    num_new_prompts: int = 0
    facts: list[dict[str, Any]] = field(default_factory=list)


def take_in(own: Sequence[Trajectory], seed: int, others: Sequence[Recording], max_tokens: int) -> Taken:
    """Own trajectories with those of `others`; the same for the same arguments.

    Args:
        seed: the run's own run.seed.
        max_tokens: generator.max_model_len.
    """
    taken = Taken(list(own))
    seen = {(seed, each.prompt_id) for each in own}
    groups: dict[bytes, str] = {}
    for each in own:
        groups.setdefault(each.prompt_token_ids.tobytes(), each.group_id)
    samples: dict[str, int] = {}
    for each in own:
        samples[each.group_id] = max(samples.get(each.group_id, 0), each.sample_index + 1)
    next_number = 1 + max((parse_group_id(group).number for group in samples), default=-1)
    for recording in others:
        counts = {"num_taken": 0, "num_new_prompts": 0, "num_twice": 0, "num_too_long": 0}
        for each in sorted(recording.trajectories, key=lambda t: (t.group_id, t.sample_index)):
            if (recording.seed, each.prompt_id) in seen:
                counts["num_twice"] += 1
                continue
            seen.add((recording.seed, each.prompt_id))
            if max(conversation.num_tokens for conversation in each.conversations) > max_tokens:
                counts["num_too_long"] += 1
                continue
            prompt = each.prompt_token_ids.tobytes()
            if prompt not in groups:
                groups[prompt] = make_group_id(PURPOSE, next_number)
                next_number += 1
                counts["num_new_prompts"] += 1
            counts["num_taken"] += 1
            group = groups[prompt]
            taken.trajectories.append(_renamed(each, group, samples.setdefault(group, 0)))
            samples[group] += 1
        taken.num_new_prompts += counts["num_new_prompts"]
        taken.facts.append({"run": str(recording.run), "num_trajectories": len(recording.trajectories), **counts})
    return taken


def _renamed(trajectory: Trajectory, group_id: str, sample: int) -> Trajectory:
    made_by, prompt_id = parse_trajectory_id(trajectory.id), make_prompt_id(group_id, sample)
    return replace(
        trajectory,
        id=make_trajectory_id(prompt_id, made_by.generator_id, made_by.incarnation),
        prompt_id=prompt_id,
        group_id=group_id,
        sample_index=sample,
    )
