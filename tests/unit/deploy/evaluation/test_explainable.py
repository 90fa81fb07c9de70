"""`vcppo explainable` on a run folder: figures from records, what it refuses and why, what it keeps and shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tests.unit.rig.fake_run import make_run
from vcppo.common.config import load_config
from vcppo.common.evaluation.continuations import Continuation, ContinuationFiles, Response
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.evaluation.evaluation_inputs import continuation_inputs
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.cli import main
from vcppo.deploy.evaluation import explainable_work
from vcppo.deploy.evaluation.explainable_results import ExplainableRow, keep_rows, read_rows
from vcppo.deploy.evaluation.explainable_table import explainable_table, sentences
from vcppo.deploy.evaluation.policy_weights import PolicyWeights, find_weights
from vcppo.deploy.processes.supervisor import ProcessSpec
from vcppo.deploy.run.run_config import RunError

NUM, K, LENGTH = 24, 4, 60
GRPO = ["algorithm.advantage_estimator=group_mean", "value_pretraining.num_trajectories=0"]
COMMAND = ["--positions", "20,40", "--responses", str(NUM), "--continuations", str(K)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of ten steps with one checkpoint, whose policy and critic are there by name only."""
    folder = make_run(tmp_path, num_steps=10)
    folder.explainable_results.unlink()
    (folder.checkpoints / "step-000010" / "critic").mkdir(parents=True)
    (folder.checkpoints / "step-000010" / "manifest.json").write_text("{}")
    return folder


def files_of(folder: RunFolder, version: int | None = None) -> tuple[ContinuationFiles, PolicyWeights]:
    config = load_config(folder.config)
    weights = find_weights(folder, config, version)
    return ContinuationFiles(folder.explainable, plan_key(continuation_inputs(config, weights.name))), weights


def record(folder: RunFolder, length: int = LENGTH) -> None:
    """Half of the prompts tell nothing, and after 20 tokens all is told; the critic never knows more than the mean."""
    files, weights = files_of(folder)
    random = np.random.default_rng(0)
    for problem in range(NUM):
        fate = 1.0 if problem % 2 else -1.0
        files.add(
            Response(
                problem=problem, prompt=[3], tokens=[4] * length, outcome="wrong", reward=fate, finish_reason="stop"
            )
        )
        for position in (0, 20, 40):
            for sample in range(K):
                reward = fate if position else float(random.choice([-1.0, 1.0]))
                files.add(
                    Continuation(
                        problem=problem, position=position, sample=sample, outcome="wrong", reward=reward,
                        length=max(1, length - position),
                    )
                )  # fmt: skip
    values = {str(problem): {"0": 0.0, "20": 0.0, "40": 0.5 if problem % 2 else -0.5} for problem in range(NUM)}
    (folder.explainable / f"{files.plan}.values.json").write_text(
        json.dumps({"critic": weights.critic, "values": values})
    )


def row(
    version: int, position: int, explainable: float | None, explained: float | None, **more: object
) -> ExplainableRow:
    fields: dict[str, object] = {
        "version": version, "position": position, "prefixes": 64, "continuations": 8, "mean": 0.0, "variance": 1.0,
        "explainable": explainable, "explainable_interval": None if explainable is None else (0.1, 0.9),
        "explained": explained, "explained_interval": None, "reached": None, "reached_interval": None,
        "group_mean": None,
    }  # fmt: skip
    return ExplainableRow.model_validate(fields | more)


def started(monkeypatch: pytest.MonkeyPatch, does: object = None) -> list[str]:
    """Names of the processes that the command would start; each does nothing, or `does`."""
    names: list[str] = []

    class Fake:
        def __init__(self, *_: object, **__: object) -> None: ...

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None: ...

        def start(self, spec: ProcessSpec) -> None:
            names.append(spec.name)
            if callable(does):
                does(spec)

        def wait_exit(self, name: str) -> None: ...

    monkeypatch.setattr(explainable_work, "Supervisor", Fake)
    return names


class TestFigures:
    def test_from_complete_records_nothing_is_started(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record(run)
        names = started(monkeypatch)
        assert main(["explainable", str(run.path), *COMMAND, "--json"]) == 0
        assert names == []
        prompt, first, last = json.loads(capsys.readouterr().out)["rows"]
        assert [each["position"] for each in (prompt, first, last)] == [0, 20, 40]
        assert {each["version"] for each in (prompt, first, last)} == {10}
        assert abs(prompt["explainable"]) < 0.2 and prompt["reached"] is None
        assert prompt["group_mean"] == pytest.approx(prompt["explainable"] - (1 - prompt["explainable"]) / 7)
        assert first["explainable"] == last["explainable"] == 1.0
        assert (first["explained"], first["reached"]) == (0.0, 0.0)  # the critic lags: there is all to know
        assert last["explained"] == pytest.approx(0.75) and last["reached"] == pytest.approx(0.75)
        assert (first["prefixes"], first["continuations"], first["group_mean"]) == (NUM, K, None)

    def test_what_was_found_is_shown_again_and_other_positions_come_to_it(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record(run)
        started(monkeypatch)
        assert main(["explainable", str(run.path), "--positions", "20", *COMMAND[2:]]) == 0
        assert main(["explainable", str(run.path), "--positions", "40", *COMMAND[2:]]) == 0
        capsys.readouterr()
        assert main(["explainable", str(run.path)]) == 0
        shown = capsys.readouterr().out
        assert [each.position for each in read_rows(run)] == [0, 20, 40]
        assert "The prompt alone explains" in shown and "1.00 (1.00 to 1.00)" in shown

    def test_a_run_without_a_critic_has_the_other_half(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(run.checkpoints / "step-000010" / "critic")
        record(run)
        names = started(monkeypatch)
        assert main(["explainable", str(run.path), *COMMAND]) == 0
        assert names == []
        assert [each.explained for each in read_rows(run)] == [None] * 3
        assert read_rows(run)[1].explainable == 1.0


class TestProcesses:
    def test_each_is_started_for_what_is_missing_and_the_export_does_not_stay(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record(run)
        kept = {path: path.read_bytes() for path in run.explainable.iterdir()}
        shutil.rmtree(run.explainable)
        _, weights = files_of(run)
        given: dict[str, Sequence[str]] = {}

        def does(spec: ProcessSpec) -> None:
            given[spec.name] = spec.command
            if spec.name == "export":
                Path(weights.model).mkdir()
            for path, content in kept.items():
                is_of = "critic_values" if path.suffix == ".json" else "continue-1"
                if spec.name == is_of:
                    made = json.dumps(json.loads(content)["values"]).encode() if path.suffix == ".json" else content
                    (path.with_suffix(".new") if path.suffix == ".json" else path).write_bytes(made)

        names = started(monkeypatch, does)
        assert main(["explainable", str(run.path), *COMMAND, "--generators", "2"]) == 0
        assert names == ["export", "continue-0", "continue-1", "critic_values"]
        assert str(run.checkpoints / "step-000010") in given["export"] and weights.model in given["continue-0"]
        assert "0,20,40" in given["continue-1"] and str(run.checkpoints / "step-000010") in given["critic_values"]
        assert not Path(weights.model).exists() and not list(run.explainable.glob("*.new"))
        assert read_rows(run)[2].reached == pytest.approx(0.75)

    def test_records_that_stay_incomplete_are_an_error_and_no_figure(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        started(monkeypatch)
        assert main(["explainable", str(run.path), *COMMAND]) == 1
        assert "the same command makes them again" in capsys.readouterr().err
        assert not run.explainable_results.exists()

    def test_values_of_another_critic_are_not_taken(self, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        record(run)
        (path,) = run.explainable.glob("*.values.json")
        path.write_text(path.read_text().replace("step 10", "step 9"))
        names = started(monkeypatch)
        assert main(["explainable", str(run.path), *COMMAND]) == 1
        assert names == ["critic_values"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ([], "is not there yet: say where to look, such as --positions 64,128"),
            (["--positions", "300"], "at most sampling.max_response_tokens = 256 tokens: choose smaller"),
            (["--positions", "8", "--version", "7"], "its weights are gone, or not made yet"),
            (["--positions", "8", "--version", "7"], "There are 10 and 0: choose of these"),
            (["--positions", "8", "--version", "0"], "model.path = model is no model folder"),
        ],
    )
    def test_with_a_remedy(
        self, run: RunFolder, words: list[str], text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["explainable", str(run.path), *words]) == 2
        assert text in capsys.readouterr().err
        assert not run.explainable.exists() and not run.explainable_results.exists()

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            (["--positions", "8,x"], "write numbers of tokens"),
            (["--positions", "8", "--version", "newest"], "write latest or a number"),
            (["--positions", "8", "--continuations", "1"], "'1' is no whole number from 2"),
        ],
    )
    def test_bad_usage(self, run: RunFolder, words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["explainable", str(run.path), *words])
        assert ended.value.code == 2 and text in capsys.readouterr().err

    def test_positions_beyond_every_response(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record(run, length=15)
        started(monkeypatch)
        assert main(["explainable", str(run.path), *COMMAND]) == 2
        said = capsys.readouterr().err
        assert "no response goes on beyond any of them; the longest of 24 has 15 tokens" in said

    def test_a_second_one_at_the_same_time(
        self, run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record(run)
        codes = []

        def does(_: ProcessSpec) -> None:
            if not codes:
                codes.append(main(["explainable", str(run.path), *COMMAND]))

        started(monkeypatch, does)
        more = [*COMMAND[:2], "--responses", str(NUM + 1), *COMMAND[4:]]
        assert main(["explainable", str(run.path), *more]) == 1  # those that it would start make nothing here
        assert codes == [2] and "in use by another vcppo" in capsys.readouterr().err

    @pytest.mark.parametrize("text", ["[", "[]", '{"schema_version": 2, "rows": []}', '{"rows": [{"version": 1}]}'])
    def test_results_of_another_kind_are_not_overwritten(
        self, run: RunFolder, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.explainable_results.write_text(text)
        assert main(["explainable", str(run.path)]) != 0
        assert "move it away" in capsys.readouterr().err
        with pytest.raises(Exception, match="move it away"):
            keep_rows(run, [row(1, 0, 0.5, 0.1)])
        assert run.explainable_results.read_text() == text


class TestWeights:
    def test_the_newest_by_default_and_each_by_what_it_holds(self, run: RunFolder) -> None:
        config = load_config(run.config)
        later = run.checkpoints / "step-000020"
        later.mkdir()
        (later / "manifest.json").write_text("{}\n")
        newest, before = find_weights(run, config, None), find_weights(run, config, 10)
        assert (newest.version, newest.critic, before.version) == (20, None, 10)
        assert newest.name != before.name and before.critic == before.name
        (later / "manifest.json").write_text("{...}")
        assert find_weights(run, config, 20).name != newest.name

    def test_before_rl_it_is_the_model_and_the_pretrained_critic(self, run: RunFolder, tmp_path: Path) -> None:
        shutil.rmtree(run.checkpoints)
        model, critic = tmp_path / "m", run.value_pretraining / "critic"
        for folder in (model, critic):
            folder.mkdir()
            (folder / "config.json").write_text("{}")
        config = load_config(run.config, [f"model.path={model}"])
        found = find_weights(run, config, None)
        assert (found.version, found.model, found.checkpoint) == (0, str(model), None)
        (critic / "config.json").write_text("{ }")
        assert find_weights(run, config, None).critic not in (None, found.critic)
        (critic / "config.json").unlink()
        assert find_weights(run, config, None).critic is None
        grpo = load_config(run.config, [f"model.path={model}", *GRPO])
        assert find_weights(run, grpo, None).critic is None

    def test_a_checkpoint_without_manifest_is_refused(self, run: RunFolder) -> None:
        (run.checkpoints / "step-000010" / "manifest.json").unlink()
        with pytest.raises(RunError, match="choose another --version"):
            find_weights(run, load_config(run.config), None)


def test_rows_replace_those_of_the_same_version_and_position(run: RunFolder) -> None:
    keep_rows(run, [row(4, 8, 0.5, 0.1), row(0, 8, 0.9, 0.8)])
    kept = keep_rows(run, [row(4, 8, 0.4, None), row(4, 40, None, None)])
    assert kept == read_rows(run) == [row(0, 8, 0.9, 0.8), row(4, 8, 0.4, None), row(4, 40, None, None)]


def test_the_fall_of_a_critic_is_told_apart() -> None:
    """The figures of the demo's task: .24 of the fall is the task, .31 is lag."""
    rows = [row(0, 40, 0.80, 0.73), row(20, 0, 0.3, 0.1, group_mean=0.2), row(20, 40, 0.56, 0.18)]
    said = sentences(rows, 8)
    assert (
        said[0]
        == "The prompt alone explains 0.30 at version 20; the mean of a group's 7 other responses would explain 0.20."
    )
    assert "changed by -0.55; the task's share of that is -0.24, the critic's -0.31" in said[1]
    assert sentences([row(20, 40, None, None)], 8) == [] == sentences([], 8)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(explainable_table([*rows, row(21, 0, None, None)]))
    assert "0.56 (0.10 to 0.90)" in captured.get() and "–" in captured.get()
