"""A recording knows what it was made with: settings, model files, problems, the task's own code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.tasks import Task, load_task
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.value_pretraining.recorded_with import (
    RecordingOutdated,
    check_recording,
    critic_inputs,
    model_digest,
    read_note,
    still_fits,
)

TASK = """
from vcppo.common.tasks import Problem, Task, Verdict

class Sums(Task):
    def problems(self, split, seed, start, count):
        return [Problem(f"{i} + 1", {"answer": str(i + 1)}) for i in range(start, start + count)]

    def verify(self, answer, response, finish_reason):
        return Verdict("correct", response)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(40 << 20))
    return folder


def config_of(tmp_path: Path, model: Path, **sections: dict[str, object]) -> VcppoConfig:
    tree: dict[str, object] = {"run": {"folder": tmp_path / "runs"}, "model": {"path": str(model)}, **sections}
    return VcppoConfig.model_validate(tree)


def source_of(config: VcppoConfig, task: Task | None = None) -> PromptSource:
    import numpy as np

    return PromptSource(config, task or load_task(config.task), lambda _: np.zeros(1, np.int32))


def check(config: VcppoConfig, num_recorded: int, task: Task | None = None) -> dict[str, object]:
    return check_recording(config.run.path, config, source_of(config, task), num_recorded)


def test_the_same_again_is_taken_over_and_more_of_it_too(tmp_path: Path, model: Path) -> None:
    config = config_of(tmp_path, model)
    first = check(config, 0)
    assert check(config, 8) == first
    more = config_of(tmp_path, model, value_pretraining={"num_trajectories": 8192, "learning_rate": 1e-3})
    assert check(more, 8)["num_problems"] == 1024
    assert check(config, 8)["num_problems"] == 1024  # what was noted stays known
    assert still_fits(config, read_note(config.run.path) or {})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sampling": {"temperature": 0.5}}, r"sampling\.temperature is 1\.0 in the run and 0\.5 now"),
        ({"task": {"reward_wrong": 0.0}}, r"task\.reward_wrong"),
        ({"task": {"options": {"num_operations": 3}}}, r"task\.options"),
        ({"rl": {"group_size": 4}}, r"rl\.group_size"),
    ],
)
def test_other_settings_are_refused_by_name(
    tmp_path: Path, model: Path, sections: dict[str, dict[str, object]], said: str
) -> None:
    check(config_of(tmp_path, model), 0)
    other = config_of(tmp_path, model, **sections)
    with pytest.raises(RecordingOutdated, match=said) as caught:
        check(other, 8)
    assert "--start-over value_pretraining" in str(caught.value)
    assert caught.value.exit_code == 3
    check(other, 0)  # nothing is recorded: it is another recording


def test_other_data_under_the_same_name_are_recognised(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(40)))
    config = config_of(tmp_path, model, task={"name": "dataset", "options": {"path": str(rows)}})
    check(config, 0)
    check(config, 8)
    rows.write_text(rows.read_text().replace('"answer": "7"', '"answer": "8"'))
    with pytest.raises(RecordingOutdated, match="the task's problems are others"):
        check(config, 8)


def test_a_task_of_ones_own_is_known_by_its_source(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_sums.py").write_text(TASK)
    config = config_of(tmp_path, model, task={"name": "my_sums:Sums"})
    check(config, 0)
    check(config, 8)
    (tmp_path / "my_sums.py").write_text(TASK.replace('"correct"', '"wrong"') + "\n# longer\n")
    del sys.modules["my_sums"]
    importlib.invalidate_caches()
    with pytest.raises(RecordingOutdated, match="the source of the task"):
        check(config, 8)
    del sys.modules["my_sums"]


def test_a_verifier_of_ones_own_is_known_by_its_source(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    rows, judge = tmp_path / "rows.jsonl", tmp_path / "my_judge.py"
    rows.write_text("".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(40)))
    judge.write_text("def judge(answer, response, finish_reason): ...\n")
    options = {"path": str(rows), "verifier": "my_judge:judge"}
    config = config_of(tmp_path, model, task={"name": "dataset", "options": options})
    check(config, 0)
    check(config, 8)
    judge.write_text(judge.read_text() + "# longer\n")
    with pytest.raises(RecordingOutdated, match="the source of the task"):
        check(config, 8)
    del sys.modules["my_judge"]


def test_variables_of_the_chat_template_make_another_recording(tmp_path: Path, model: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{i}?", "answer": "{i}"}}\n' for i in range(40)))
    plain, thinks = ({"path": str(rows)} | more for more in ({}, {"chat_template_kwargs": {"enable_thinking": False}}))
    configs = [config_of(tmp_path, model, task={"name": "dataset", "options": each}) for each in (plain, thinks)]
    digests = [source_of(config).problems_digest(4) for config in configs]
    assert digests[0] != digests[1]
    check(configs[0], 0)
    with pytest.raises(RecordingOutdated, match=r"task\.options\.chat_template_kwargs\.enable_thinking is None"):
        check(configs[1], 8)


def test_model_files_count_notes_of_ours_do_not(model: Path) -> None:
    before = model_digest(str(model))
    (model / "cold_start.json").write_text('{"seconds": 3}')
    (model / "README.md").write_text("hello")
    assert model_digest(str(model)) == before
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(20 << 20)
        file.write(b"\x01" * (2 << 20))  # as training changes weights: not only in one place
    changed = model_digest(str(model))
    assert changed != before
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert model_digest(str(model)) != changed
    assert "not on this machine" in model_digest("nobody/nothing")


def test_the_critic_is_known_by_its_own_settings_and_the_recording(tmp_path: Path, model: Path) -> None:
    config = config_of(tmp_path, model)
    note = check(config, 0)
    inputs = critic_inputs(config, note)
    for section, values in (
        ("value_pretraining", {"learning_rate": 1e-3}),
        ("value_pretraining", {"num_trajectories": 8192}),
        ("rl", {"max_grad_norm": 0.5}),
        ("algorithm", {"gamma": 0.99}),
    ):
        assert critic_inputs(config_of(tmp_path, model, **{section: values}), note) != inputs, values
    for section, values in (
        ("value_pretraining", {"min_explained_variance": 0.1}),
        ("rl", {"actor_learning_rate": 1e-3}),
    ):
        assert critic_inputs(config_of(tmp_path, model, **{section: values}), note) == inputs, values
    assert critic_inputs(config, {**note, "model": "another"}) != inputs
