"""Recordings of other runs: what is taken in, what counts once, and which are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig.learner_samples import trajectory
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.records.ids import make_group_id, make_prompt_id
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.tasks import load_task
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.value_pretraining.other_recordings import (
    Recording,
    RecordingDiffers,
    read_recordings,
    take_in,
)
from vcppo.learner.value_pretraining.recorded_with import check_recording, critic_inputs, write_note
from vcppo.learner.value_pretraining.stage import split_held_out

MAX_TOKENS = 64


def response(group: int, sample: int, prompt: list[int], seed: int = 0, length: int = 5) -> Trajectory:
    rng = np.random.default_rng([seed, group, sample])
    group_id = make_group_id("value_pretraining", group)
    made = trajectory(rng, make_prompt_id(group_id, sample), len(prompt), length, group=group_id)
    return replace(made, sample_index=sample, prompt_token_ids=np.array(prompt, np.int32))


def recording(seed: int, *trajectories: Trajectory, run: str = "other") -> Recording:
    return Recording(Path(run), seed, list(trajectories))


def test_responses_to_the_same_prompt_join_one_group_and_others_make_new_ones() -> None:
    own = [response(0, 0, [1]), response(0, 1, [1]), response(4, 0, [2])]
    other = recording(1, response(0, 0, [2], 1), response(0, 1, [2], 1), response(1, 0, [3], 1), response(1, 1, [3], 1))
    taken = take_in(own, 0, [other], MAX_TOKENS)
    assert taken.trajectories[:3] == own
    assert [each.group_id[-2:] for each in taken.trajectories[3:]] == ["04", "04", "05", "05"]
    assert [each.sample_index for each in taken.trajectories[3:]] == [1, 2, 0, 1]
    assert taken.num_new_prompts == 1
    assert taken.facts == [
        {"run": "other", "num_trajectories": 4, "num_taken": 4, "num_new_prompts": 1, "num_twice": 0, "num_too_long": 0}
    ]
    for before, after in zip(other.trajectories, taken.trajectories[3:], strict=True):
        assert np.array_equal(before.response_token_ids, after.response_token_ids)
        assert after.id.startswith(f"{after.prompt_id}@")


def test_the_same_sample_of_a_seed_counts_once() -> None:
    own = [response(0, 0, [1]), response(0, 1, [1])]
    again = recording(0, response(0, 0, [1]), response(0, 1, [1]), response(0, 2, [1]), run="again")
    third = recording(5, response(0, 0, [9], 5), run="third")
    fourth = recording(5, response(0, 0, [9], 5), run="fourth")
    taken = take_in(own, 0, [again, third, fourth], MAX_TOKENS)
    assert [fact["num_twice"] for fact in taken.facts] == [2, 0, 1]
    assert [fact["num_taken"] for fact in taken.facts] == [1, 1, 0]
    assert len(taken.trajectories) == 4


def test_what_is_too_long_for_this_run_is_left_out() -> None:
    taken = take_in([response(0, 0, [1])], 0, [recording(1, response(0, 0, [2], 1, length=MAX_TOKENS))], MAX_TOKENS)
    assert (len(taken.trajectories), taken.num_new_prompts, taken.facts[0]["num_too_long"]) == (1, 0, 1)


samples = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 4)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(samples, st.lists(st.tuples(st.integers(0, 2), samples), max_size=3))
def test_every_prompt_is_on_one_side_and_every_sample_there_once(own: Any, others: Any) -> None:
    def made(seed: int, rows: list[tuple[int, int, int]]) -> list[Trajectory]:
        unique = {(group, sample): prompt for group, sample, prompt in rows}
        # A prompt's tokens are its group's: of a run, by its first sample.
        tokens = {group: prompt for (group, _), prompt in sorted(unique.items(), reverse=True)}
        return [response(group, sample, [tokens[group]], seed) for group, sample in unique]

    mine = made(0, own)
    taken = take_in(mine, 0, [recording(seed, *made(seed, rows)) for seed, rows in others], MAX_TOKENS)
    assert len({each.prompt_id for each in taken.trajectories}) == len(taken.trajectories)
    assert len(taken.trajectories) == len(mine) + sum(fact["num_taken"] for fact in taken.facts)
    own_groups = {each.group_id for each in mine}
    for each in taken.trajectories[len(mine) :]:
        same = {t.group_id for t in taken.trajectories if np.array_equal(t.prompt_token_ids, each.prompt_token_ids)}
        assert each.group_id in same
        assert len(same - own_groups) <= 1  # the run's own recording may ask one prompt in several groups
    if len({each.group_id for each in taken.trajectories}) >= 2:
        train, held_out = split_held_out(taken.trajectories, 1, seed=0)
        assert not {each.group_id for each in train} & {each.group_id for each in held_out}


# Reading


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def config_of(tmp_path: Path, model: Path, name: str, seed: int = 0, **sections: Any) -> VcppoConfig:
    run = {"folder": tmp_path / "runs", "name": name, "seed": seed}
    return VcppoConfig.model_validate({"run": run, "model": {"path": str(model)}, **sections})


def source_of(config: VcppoConfig) -> PromptSource:
    return PromptSource(config, load_task(config.task), lambda _: np.zeros(1, np.int32))


def record(config: VcppoConfig, *trajectories: Trajectory) -> Path:
    """As value pretraining leaves it."""
    folder = RunFolder(config.run.path).value_pretraining
    note = check_recording(folder, config, source_of(config), 0)
    file = TrajectoryFile(folder / RECORD_FILE)
    file.append([encode_trajectory(each) for each in trajectories])
    file.close()
    write_note(folder, {**note, "longest_tokens": 60})
    return config.run.path


def read(config: VcppoConfig) -> list[Recording]:
    note = check_recording(RunFolder(config.run.path).value_pretraining, config, source_of(config), 0)
    return read_recordings(config, note, source_of(config))


def of(*runs: Path, **stage: object) -> dict[str, object]:
    return {"recordings": [str(run) for run in runs], **stage}


def test_a_run_of_another_seed_and_group_size_is_read(tmp_path: Path, model: Path) -> None:
    other = config_of(tmp_path, model, "other", seed=7, rl={"group_size": 4}, algorithm={"lambda_actor": 0.9})
    run = record(other, response(0, 0, [1]), response(0, 1, [1]))
    (found,) = read(config_of(tmp_path, model, "mine", value_pretraining=of(run)))
    assert (found.run, found.seed, len(found.trajectories)) == (run, 7, 2)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sampling": {"temperature": 0.5}}, r"sampling\.temperature is 0\.5 in the run and 1\.0 now"),
        ({"task": {"reward_wrong": 0.0}}, r"task\.reward_wrong is 0\.0 in the run"),
        ({"task": {"options": {"num_operations": 3}}}, r"task\.options"),
        ({"model": {"dtype": "float32"}}, r"model\.dtype"),
    ],
)
def test_one_made_with_something_else_is_refused_by_name(
    tmp_path: Path, model: Path, sections: dict[str, Any], said: str
) -> None:
    given = {section: {**({"path": str(model)} if section == "model" else {}), **v} for section, v in sections.items()}
    tree = {"run": {"folder": tmp_path / "runs", "name": "other"}, "model": {"path": str(model)}, **given}
    run = record(VcppoConfig.model_validate(tree), response(0, 0, [1]))
    with pytest.raises(RecordingDiffers, match=said) as refused:
        read(config_of(tmp_path, model, "mine", value_pretraining=of(run)))
    assert refused.value.exit_code == EXIT_REFUSED


def test_another_model_or_tokenizer_is_refused(tmp_path: Path, model: Path) -> None:
    run = record(config_of(tmp_path, model, "other"), response(0, 0, [1]))
    (model / "tokenizer.json").write_text('{"other": 1}')
    with pytest.raises(RecordingDiffers, match=r"the files at model\.path are others"):
        read(config_of(tmp_path, model, "mine", value_pretraining=of(run)))


def test_other_problems_under_the_same_settings_are_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record(config_of(tmp_path, model, "other", seed=3), response(0, 0, [1]))
    mine = config_of(tmp_path, model, "mine", value_pretraining=of(run))
    note = check_recording(RunFolder(mine.run.path).value_pretraining, mine, source_of(mine), 0)
    source = source_of(mine)
    monkeypatch.setattr(source, "problems_digest", lambda count, seed: "of other data")
    with pytest.raises(RecordingDiffers, match="its problems are others"):
        read_recordings(mine, note, source)


def test_what_is_no_complete_recording_of_another_run_is_refused(tmp_path: Path, model: Path) -> None:
    mine = config_of(tmp_path, model, "mine")
    with pytest.raises(RecordingDiffers, match="this run's own"):
        read(config_of(tmp_path, model, "mine", value_pretraining=of(mine.run.path)))
    with pytest.raises(RecordingDiffers, match=r"it has no trajectories\.msgpack"):
        read(config_of(tmp_path, model, "mine", value_pretraining=of(tmp_path / "nowhere")))
    run = record(config_of(tmp_path, model, "other"), response(0, 0, [1]), response(0, 1, [1]))
    wanted = config_of(tmp_path, model, "mine", value_pretraining=of(run))
    file = RunFolder(run).value_pretraining / RECORD_FILE
    sound = file.read_bytes()
    file.write_bytes(sound[:40] + b"\xff" + sound[41:])
    with pytest.raises(RecordingDiffers, match=r"trajectories\.msgpack is damaged"):
        read(wanted)
    file.write_bytes(sound)
    assert len(read(wanted)[0].trajectories) == 2
    other = config_of(tmp_path, model, "other")
    check_recording(RunFolder(run).value_pretraining, other, source_of(other), 2)  # it goes on recording
    with pytest.raises(RecordingDiffers, match="not complete"):
        read(wanted)


def test_the_critic_is_another_one_with_other_recordings_wherever_they_lie(tmp_path: Path, model: Path) -> None:
    note = dict.fromkeys(["settings", "model", "task_code", "problems"], "same")
    run = record(config_of(tmp_path, model, "other"), response(0, 0, [1]))
    moved = tmp_path / "moved"
    run.rename(moved)
    inputs = [
        critic_inputs(config_of(tmp_path, model, "mine", value_pretraining=of(*runs)), note)
        for runs in ((), (run,), (moved,), (moved,))
    ]
    assert Counter(str(each) for each in inputs).most_common(1)[0][1] == 2
    assert inputs[2] == inputs[3] != inputs[0]
