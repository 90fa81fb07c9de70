"""Where a run keeps responses: value pretraining's recording, samples of RL steps, samples of evaluations.

Each is read while its writer goes on; what it is in the middle of writing is left out.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vcppo.common.files.json_lines import Row, read_json_lines
from vcppo.common.records.ids import make_prompt_id
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.segments import split
from vcppo.common.records.trajectory import Int32Array, Trajectory
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.deploy.samples.sample_choices import Stage

_STEP_FILE = re.compile(r"step-(\d+)\.parquet")
_SETTLED_NS = 1_000_000_000
_SHARED = (
    "step", "id", "outcome", "finish_reason", "length", "reward", "prompt", "response", "generator", "components",
    "turn_rewards", "largest_advantage", "largest_mismatch",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One response of any stage.

    Attributes:
        place: ``rl step 12``, ``value pretraining``, ``eval export``.
        step: of RL; None elsewhere.
        id: trajectory id, or problem and number in an evaluation.
        length: in tokens; of a trajectory its actions.
        reward: None where a stage has none (evaluations).
        components: parts of the reward by name, unweighted.
        turn_rewards: of an environment's turns; empty where the reward is the last one's.
        versions: (policy version, tokens) in turn; empty where unknown.
        extracted: the answer the verifier took out, where it was kept.
        prompt, response: token ids, or text where it was kept as text.
        tokens: of an RL step, what is known of each token (`vcppo.common.records.sample_table.TOKEN_COLUMNS`).
        largest_advantage, largest_mismatch: of its tokens, absolute; of an RL step.
    """

    stage: Stage
    place: str
    step: int | None
    id: str
    outcome: str
    finish_reason: str
    length: int
    reward: float | None
    prompt: Int32Array | str | None
    response: Int32Array | str
    versions: tuple[tuple[int, int], ...] = ()
    extracted: str | None = None
    generator: str | None = None
    more: dict[str, Any] = field(default_factory=dict)
    components: dict[str, float] = field(default_factory=dict)
    turn_rewards: tuple[float, ...] = ()
    tokens: Callable[[], dict[str, list[Any]]] | None = None
    largest_advantage: float | None = None
    largest_mismatch: float | None = None


def steps_of(folder: RunFolder) -> Mapping[int, Path]:
    """RL steps whose samples are kept, in order."""
    changed = _changed(folder.samples)
    # Two changes of one moment have one time: what was changed just now may be changed again unseen.
    if changed is None or time.time_ns() - changed < _SETTLED_NS:
        return _listed(folder.samples)
    return _listed_at(folder.samples, changed)


def _changed(folder: Path) -> int | None:
    """When a file was last put in it or taken out; None: there is no such folder."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return None


@lru_cache(maxsize=64)
def _listed_at(folder: Path, changed: int) -> Mapping[int, Path]:
    """Of a run of ten thousand steps it takes a tenth of a second, and a page asks more than once."""
    return _listed(folder)


def _listed(folder: Path) -> Mapping[int, Path]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return {}
    found = ((_STEP_FILE.fullmatch(name), name) for name in names)
    return MappingProxyType(dict(sorted((int(match[1]), folder / name) for match, name in found if match)))


def newest_stage(folder: RunFolder) -> Stage | None:
    """Of RL, value pretraining and evaluation, the first that has kept something."""
    if steps_of(folder):
        return "rl"
    if (folder.value_pretraining / RECORD_FILE).exists():
        return "value_pretraining"
    return "eval" if _evaluations(folder) else None


def samples_of_rl(folder: RunFolder, first: int, last: int) -> Iterator[Sample]:
    """Of steps `first` to `last`."""
    for step, path in steps_of(folder).items():
        if first <= step <= last:
            table = SampleTable(path)
            for number, head in enumerate(table.heads()):
                yield _of_table(head, partial(table.tokens, number))


def samples_of_value_pretraining(folder: RunFolder) -> Iterator[Sample]:
    """All responses of the recording, in its order."""
    for rollout in read_trajectories(folder.value_pretraining / RECORD_FILE):
        for segment, trajectory in enumerate(split(rollout)):
            yield _of_trajectory(trajectory, segment)


def samples_of_evaluations(folder: RunFolder, name: str | None) -> Iterator[Sample]:
    """Of every evaluation of the run, or those of the model or benchmark `name`: of each the newest settings."""
    for model, paths in _evaluations(folder).items():
        if name is not None and name not in model.split("/"):
            continue
        prompts = {str(row.get("problem")): _as_text(row.get("prompt")) for row in read_json_lines(_results(paths[0]))}
        for path in paths:
            for row in read_json_lines(path):
                if (sample := _of_row(row, model, prompts)) is not None:
                    yield sample


def _evaluations(folder: RunFolder) -> dict[str, list[Path]]:
    """model, or benchmark/model -> the files of the plan that was written to last, a file a worker."""
    found: dict[str, list[Path]] = {}
    for samples in sorted(folder.eval.rglob("*.samples")):
        plans = {
            plan: list(paths)
            for plan, paths in groupby(sorted(samples.glob("*.*.jsonl")), key=lambda path: path.name.split(".")[0])
        }
        if plans:
            model = str(samples.relative_to(folder.eval).with_suffix(""))
            found[model] = max(plans.values(), key=lambda paths: max(path.stat().st_mtime for path in paths))
    return found


def _results(samples: Path) -> Path:
    """FILE.jsonl of FILE.samples/…: a line a problem, there when the evaluation is complete."""
    return samples.parent.with_suffix(".jsonl")


def _of_table(head: Mapping[str, Any], tokens: Callable[[], dict[str, list[Any]]]) -> Sample:
    return Sample(
        stage="rl",
        place=f"rl step {head['step']}",
        tokens=tokens,
        more={name: head[name] for name in ("prompt_id", "group_id", "segment", "turns", "staleness")},
        **{name: head[name] for name in _SHARED},
    )


def _of_trajectory(trajectory: Trajectory, segment: int) -> Sample:
    return Sample(
        stage="value_pretraining",
        place="value pretraining",
        step=None,
        id=trajectory.id,
        outcome=trajectory.outcome,
        finish_reason=trajectory.finish_reason,
        length=int(trajectory.action_mask.sum()),
        reward=trajectory.reward,
        prompt=trajectory.prompt_token_ids,
        response=trajectory.response_token_ids,
        versions=tuple((span.version, span.count) for span in trajectory.version_spans),
        generator=trajectory.generator_id,
        components=trajectory.components,
        turn_rewards=trajectory.turn_rewards,
        more={
            "prompt_id": trajectory.prompt_id,
            "group_id": trajectory.group_id,
            "segment": segment,
            "turns": trajectory.num_turns,
        },
    )


def _of_row(row: Row, model: str, prompts: dict[str, str]) -> Sample | None:
    """None for a row of another kind."""
    text = ("problem", "outcome", "finish_reason", "response")
    if not all(isinstance(row.get(name), str) for name in text) or not isinstance(row.get("length"), int):
        return None
    extracted = row.get("extracted")
    return Sample(
        stage="eval",
        place=f"eval {model}",
        step=None,
        id=make_prompt_id(row["problem"], row.get("sample", 0)),
        outcome=row["outcome"],
        finish_reason=row["finish_reason"],
        length=row["length"],
        reward=None,
        prompt=prompts.get(row["problem"]),
        response=row["response"],
        extracted=extracted if isinstance(extracted, str) else None,
        more={"model": model},
    )


def _as_text(prompt: object) -> str:
    """A text prompt, or chat messages one after the other."""
    if isinstance(prompt, list):
        return "\n".join(
            f"{message.get('role')}: {message.get('content')}" for message in prompt if isinstance(message, dict)
        )
    return str(prompt)
