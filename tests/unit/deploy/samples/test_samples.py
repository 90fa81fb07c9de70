"""Responses that are kept and read: which of a step, in what room, and what `vcppo samples` shows of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.rig.fake_run import make_run
from vcppo.common.config import MetricsConfig
from vcppo.common.evaluation.eval_samples import Sample as EvalSample
from vcppo.common.evaluation.eval_samples import SampleFiles
from vcppo.common.records.trajectory import FinishReason, Outcome, Trajectory, VersionSpan
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.deploy.cli import main
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.rl.samples import SampleWriter, choose_samples

WORDS = ["<eos>", "two", "plus", "is", "four", "five", "\x1b[31m"]


def trajectory(index: int, outcome: Outcome = "wrong", finish: FinishReason = "stop", length: int = 3) -> Trajectory:
    return Trajectory(
        id=f"rl-{index:08d}-0@generator-0.0",
        prompt_id=f"rl-{index:08d}-0",
        group_id=f"rl-{index:08d}",
        sample_index=0,
        task="t",
        prompt_token_ids=np.array([1, 2, 1, 3], np.int32),
        response_token_ids=np.array([4 if outcome == "correct" else 5] * (length - 1) + [0], np.int32),
        action_mask=np.ones(length, np.bool_),
        behaviour_log_probs=np.full(length, -1.0, np.float32),
        version_spans=(VersionSpan(2, 1), VersionSpan(3, length - 1)),
        finish_reason=finish,
        reward=1.0 if outcome == "correct" else -1.0,
        outcome=outcome,
        generator_id="generator-0",
        issue_version=2,
    )


def batch(**counts: int) -> list[Trajectory]:
    kinds = [outcome for outcome, count in counts.items() for _ in range(count)]
    return [trajectory(i, cast(Outcome, outcome)) for i, outcome in enumerate(kinds)]


class TestChoice:
    def test_the_one_right_response_is_among_them(self) -> None:
        chosen = choose_samples(batch(wrong=200, correct=1, unparsable=50), 8)
        assert Counter(each.outcome for each in chosen) == {"wrong": 3, "unparsable": 4, "correct": 1}

    def test_kinds_share_alike_and_all_are_kept_when_there_is_room(self) -> None:
        all_of = batch(wrong=10, correct=10)
        assert Counter(each.outcome for each in choose_samples(all_of, 6)) == {"wrong": 3, "correct": 3}
        assert {each.id for each in choose_samples(all_of, 32)} == {each.id for each in all_of}
        assert choose_samples([], 32) == []

    def test_cut_responses_are_a_kind_of_their_own(self) -> None:
        cut = trajectory(999, "wrong", "length")
        assert cut in choose_samples([*batch(wrong=99), cut], 2)

    def test_the_same_batch_gives_the_same_whatever_its_order(self) -> None:
        all_of = batch(wrong=100, correct=30)
        chosen = choose_samples(all_of, 10)
        assert [each.id for each in choose_samples(all_of[::-1], 10)] == [each.id for each in chosen]
        assert {each.id for each in chosen} != {each.id for each in [*all_of[:5], *all_of[100:105]]}


class TestWriter:
    def test_a_step_done_again_is_written_again_and_read_back(self, tmp_path: Path) -> None:
        writer = SampleWriter(tmp_path / "samples", MetricsConfig(samples_per_step=4))
        for _ in range(2):
            writer.write(12, batch(wrong=9, correct=9))
        (path,) = (tmp_path / "samples").iterdir()
        assert path.name == "step-000012.msgpack"
        read = list(read_trajectories(path))
        assert Counter(each.outcome for each in read) == {"wrong": 2, "correct": 2}
        assert read[0].response_token_ids.tolist() in ([4, 4, 0], [5, 5, 0])

    def test_beyond_their_room_the_oldest_steps_go(self, tmp_path: Path) -> None:
        writer = SampleWriter(tmp_path, MetricsConfig(samples_per_step=1, samples_mib=0.1))
        for step in range(1, 9):
            writer.write(step, [trajectory(step, length=3000)])
        assert [path.name for path in sorted(tmp_path.iterdir())] == [f"step-{step:06d}.msgpack" for step in (6, 7, 8)]
        writer.write(9, [trajectory(9, length=30_000)])  # alone too large: the newest stays
        assert [path.name for path in tmp_path.iterdir()] == ["step-000009.msgpack"]

    def test_none_when_none_are_wanted(self, tmp_path: Path) -> None:
        SampleWriter(tmp_path / "samples", MetricsConfig(samples_per_step=0)).write(1, batch(wrong=3))
        assert not (tmp_path / "samples").exists()

    def test_a_disk_that_refuses_costs_the_samples_not_the_step(self, tmp_path: Path) -> None:
        (tmp_path / "samples").write_text("in the way")
        SampleWriter(tmp_path / "samples", MetricsConfig()).write(1, batch(wrong=3))

    @pytest.mark.parametrize("tail", [b"", b"\x92", b"\x92\xce\0\0\0\1\xc4\x05vct1", b"rubbish", b"\xc1\xff\0"])
    def test_a_torn_or_damaged_tail_is_left_out(self, tmp_path: Path, tail: bytes) -> None:
        SampleWriter(tmp_path, MetricsConfig()).write(1, batch(wrong=3))
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes() + tail)
        assert len(list(read_trajectories(path))) == 3
        assert list(read_trajectories(tmp_path / "none")) == []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with all three stages: two RL steps, a recording, an evaluation."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="two"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    folder = make_run(tmp_path / "runs", "r")
    writer = SampleWriter(folder.samples, MetricsConfig())
    writer.write(11, batch(wrong=3))
    writer.write(12, [*batch(wrong=6, correct=2), trajectory(77, "unparsable", "length", 9)])
    recording = TrajectoryFile(folder.value_pretraining / RECORD_FILE)
    recording.append([encode_trajectory(replace(each, id=each.id.replace("rl", "vp"))) for each in batch(correct=7)])
    recording.close()
    files = SampleFiles(folder.eval / "export.json", "plan", 0)
    files.add(EvalSample("p0", 0, "correct", "4", "stop", 2, 0.1, "is four \u2028 <eos>"))
    files.add(EvalSample("p1", 0, "timeout", None, "length", 64, 0.1, "is is is"))
    (folder.eval / "export.jsonl").write_text(json.dumps({"problem": "p0", "prompt": "two plus two"}) + "\n")
    return folder


def samples(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["samples", "r", *words]) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in samples(capsys, *words, "--json", "--limit", "0").splitlines()]


class TestCommand:
    def test_newest_step_a_page_at_a_time(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        out = samples(capsys)
        assert out.count("── rl step 12 · rl-") == 5
        assert "two plus two is" in out  # the prompt
        assert "» four four <eos>" in out  # a right response, and that it ended
        assert "9 responses looked at" in out and "9 match; these are 1 to 5, more with --page 2" in out
        assert "reward -1 · 3 tokens · stop · v2 to v3" in out
        second = samples(capsys, "--page", "2")
        assert second.count("── rl step 12 · rl-") == 4 and "--page" not in second

    @pytest.mark.parametrize(
        ("words", "count"),
        [(["--outcome", "correct"], 2), (["--outcome", "correct,unparsable"], 3), (["--finish", "length"], 1),
         (["--min-reward", "0"], 2), (["--max-reward", "0"], 7), (["--min-length", "4"], 1),
         (["--step", "11"], 3), (["--step", "all"], 12), (["--step", "3-11"], 3), (["--prompt", "rl-00000077"], 1),
         (["--prompt", "rl-00000077-0"], 1), (["--prompt", "rl-0000007"], 0), (["--stage", "value_pretraining"], 7),
         (["--stage", "eval"], 2), (["--stage", "eval", "--model", "export"], 2),
         (["--stage", "eval", "--model", "x"], 0),
         (["--stage", "eval", "--outcome", "timeout"], 1), (["--stage", "eval", "--min-reward", "-9"], 0)],
    )  # fmt: skip
    def test_filters(self, run: RunFolder, words: list[str], count: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert len(rows(capsys, *words)) == count

    def test_json_has_it_all(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        (row,) = rows(capsys, "--outcome", "unparsable")
        assert row["prompt"] == "two plus two is"
        assert row["response"] == "five five five five five five five five <eos>"
        assert (row["step"], row["length"], row["reward"], row["finish_reason"]) == (12, 9, -1.0, "length")
        assert (row["versions"], row["prompt_id"]) == ([[2, 1], [3, 8]], "rl-00000077-0")
        answered, late = rows(capsys, "--stage", "eval")
        assert (answered["extracted"], answered["prompt"], answered["reward"]) == ("4", "two plus two", None)
        assert late["prompt"] is None  # the evaluation is not complete yet

    def test_parts_of_a_graded_reward_are_shown(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        graded = replace(trajectory(1), reward=0.75, components={"base": 0.5, "brevity": 0.25}, turn_rewards=(0.5,))
        SampleWriter(run.samples, MetricsConfig()).write(13, [graded])
        assert "reward 0.75 (base 0.5, brevity 0.25) · by turn 0.5 · 3 tokens" in samples(capsys)
        found = rows(capsys)[0]
        assert found["components"] == {"base": 0.5, "brevity": 0.25} and found["turn_rewards"] == [0.5]

    def test_a_response_does_not_steer_the_terminal(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        steering = replace(trajectory(1), response_token_ids=np.array([6, 6, 0], np.int32))
        SampleWriter(run.samples, MetricsConfig()).write(13, [steering])
        assert "\x1b" not in samples(capsys)
        assert rows(capsys)[0]["response"] == "\x1b[31m \x1b[31m <eos>"

    @pytest.mark.parametrize(
        ("words", "said"),
        [(["--step", "99"], "keeps samples of steps 11 to 12"), (["--tokenizer", "nowhere"], "nowhere")],
    )
    def test_what_can_not_be_shown(
        self, run: RunFolder, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["samples", "r", *words]) != 0
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize("words", [["--step", "x"], ["--outcome", "good"], ["--page", "0"], ["--limit", "-1"]])
    def test_bad_usage(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["samples", "r", *words])
        assert ended.value.code == 2

    def test_a_run_without_any(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        make_run(tmp_path, "empty")
        assert main(["samples", str(tmp_path / "empty")]) == 2
        assert "has no responses yet" in capsys.readouterr().err


def test_every_outcome_can_be_asked_for(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(rows(capsys, "--outcome", ",".join(get_args(Outcome)))) == 9
