"""Responses that are kept and read: which of a step, in what room, and what `vcppo samples` shows of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.unit.rig.fake_run import make_run
from tests.unit.rig.written_samples import write_step
from vcppo.common.evaluation.eval_samples import Sample as EvalSample
from vcppo.common.evaluation.eval_samples import SampleFiles
from vcppo.common.records.sample_table import RESPONSE_COLUMNS, TOKEN_COLUMNS, SampleError, SampleTable
from vcppo.common.records.trajectory import FinishReason, Outcome, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.deploy.cli import main
from vcppo.deploy.samples.sources import steps_of
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.rl.samples import choose_samples

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


LARGE = 10**9


def ids(trajectories: list[Trajectory], count: int, max_tokens: int = LARGE) -> list[str]:
    return [trajectories[number].id for number in choose_samples(trajectories, count, max_tokens)]


def outcomes(trajectories: list[Trajectory], count: int) -> dict[str, int]:
    return Counter(trajectories[number].outcome for number in choose_samples(trajectories, count, LARGE))


class TestChoice:
    def test_the_one_right_response_is_among_them(self) -> None:
        all_of = batch(wrong=200, correct=1, unparsable=50)
        assert outcomes(all_of, 8) == {"wrong": 3, "unparsable": 4, "correct": 1}

    def test_kinds_share_alike_and_all_are_kept_when_there_is_room(self) -> None:
        all_of = batch(wrong=10, correct=10)
        assert outcomes(all_of, 6) == {"wrong": 3, "correct": 3}
        assert set(ids(all_of, 32)) == {each.id for each in all_of}
        assert ids([], 32) == []

    def test_cut_responses_are_a_kind_of_their_own(self) -> None:
        cut = trajectory(999, "wrong", "length")
        assert cut.id in ids([*batch(wrong=99), cut], 2)

    def test_the_same_batch_gives_the_same_whatever_its_order(self) -> None:
        all_of = batch(wrong=100, correct=30)
        assert ids(all_of[::-1], 10) == ids(all_of, 10)
        assert set(ids(all_of, 10)) != {each.id for each in [*all_of[:5], *all_of[100:105]]}

    def test_tokens_are_bounded_and_one_is_kept_in_any_case(self) -> None:
        all_of = batch(wrong=10)  # of 4 + 3 tokens each
        assert [len(ids(all_of, 32, most)) for most in (1, 7, 13, 14, 69, 70)] == [1, 1, 1, 2, 9, 10]


def write(
    folder: Path, step: int, trajectories: list[Trajectory], *, has_critic: bool = True, **settings: float
) -> None:
    write_step(folder, step, trajectories, WORDS, has_critic=has_critic, **settings)


class TestWriter:
    def test_a_step_done_again_is_written_again_and_read_back(self, tmp_path: Path) -> None:
        for _ in range(2):
            write(tmp_path / "samples", 12, batch(wrong=9, correct=9), samples_per_step=4)
        (path,) = (tmp_path / "samples").iterdir()
        assert path.name == "step-000012.parquet"
        heads = SampleTable(path).heads()
        assert Counter(head["outcome"] for head in heads) == {"wrong": 2, "correct": 2}
        assert heads[0]["response"] in ("four four <eos>", "five five <eos>")

    def test_every_column_has_what_its_line_in_the_docs_says(self, tmp_path: Path) -> None:
        """Two turns with two tokens of other text between; GAE by hand, the reward on the last action."""
        mask = np.array([True, True, False, False, True])
        made = replace(
            trajectory(5, "correct", length=5),
            action_mask=mask,
            behaviour_log_probs=np.where(mask, np.float32(-1), np.float32(0)),
            reward=0.75,
            components={"base": 0.5, "brevity": 0.25},
        )
        write(tmp_path, 6, [made])
        table = SampleTable(tmp_path / "step-000006.parquet")
        (head,) = table.heads()
        values, deltas = [0.0, 0.1, 0.4], [0.1 - 0.0, 0.4 - 0.1, 0.75 - 0.4]
        advantages = [deltas[0] + 0.95 * (deltas[1] + 0.95 * deltas[2]), deltas[1] + 0.95 * deltas[2], deltas[2]]
        assert head == {
            "step": 6, "id": "rl-00000005-0@generator-0.0", "prompt_id": "rl-00000005-0", "group_id": "rl-00000005",
            "sample_index": 0, "segment": 0, "task": "t", "generator": "generator-0", "issue_version": 2,
            "staleness": 3,
            "outcome": "correct", "finish_reason": "stop", "reward": 0.75, "components": {"base": 0.5, "brevity": 0.25},
            "turn_rewards": [], "length": 3, "turns": 2, "believed": pytest.approx(values[-1]), "last_value": 0.5,
            "largest_mismatch": 0.25,
            "largest_advantage": pytest.approx(max(advantages)), "prompt": "two plus two is",
            "response": "four four four four <eos>", "prompt_token_ids": [1, 2, 1, 3],
        }  # fmt: skip
        assert list(head) == list(RESPONSE_COLUMNS)

        def spread(numbers: list[float]) -> list[object]:
            first, second, last = (pytest.approx(number) for number in numbers)
            return [first, second, None, None, last]

        tokens = table.tokens(0)
        assert tokens == {
            "token_ids": [4, 4, 4, 4, 0], "tokens": ["four", "four", "four", "four", "<eos>"],
            "turn": [0, 0, None, None, 1], "versions": [2, 3, 3, 3, 3], "behaviour_log_probs": spread([-1, -1, -1]),
            "old_log_probs": spread([-0.75] * 3), "values": spread(values), "value_targets": spread([0.75] * 3),
            "advantages": spread(advantages), "importance_weights": spread([tokens["importance_weights"][0]] * 3),
            "is_trained": [True, True, None, None, True], "entropy": spread([0.0, 0.2, 0.8]),
        }  # fmt: skip
        assert list(tokens) == list(TOKEN_COLUMNS)

    @pytest.mark.parametrize("gone", [["segment"], ["believed"], ["segment", "believed"]])
    def test_a_file_of_before_some_columns_is_read(self, tmp_path: Path, gone: list[str]) -> None:
        write(tmp_path, 1, batch(wrong=2))
        path = tmp_path / "step-000001.parquet"
        parquet.write_table(parquet.read_table(path).drop_columns(gone), path)
        heads = SampleTable(path).heads()
        assert [(head["segment"], head["outcome"]) for head in heads] == [(0, "wrong")] * 2
        assert [head["believed"] is None for head in heads] == ["believed" in gone] * 2

    def test_without_a_critic_nobody_believed_anything(self, tmp_path: Path) -> None:
        write(tmp_path, 1, batch(wrong=2), has_critic=False)
        table = SampleTable(tmp_path / "step-000001.parquet")
        assert table.heads()[0]["last_value"] is table.heads()[0]["believed"] is None
        assert table.tokens(1)["values"] == table.tokens(1)["value_targets"] == [None] * 3
        assert None not in table.tokens(1)["advantages"]

    def test_where_the_learner_did_not_ask_the_policy_there_is_no_entropy(self, tmp_path: Path) -> None:
        write_step(tmp_path, 1, batch(wrong=2), WORDS, has_entropy=False)
        tokens = SampleTable(tmp_path / "step-000001.parquet").tokens(1)
        assert tokens["entropy"] == [None] * 3 and None not in tokens["old_log_probs"]

    def test_a_file_from_before_a_column_is_read(self, tmp_path: Path) -> None:
        write(tmp_path, 1, batch(wrong=2))
        path = tmp_path / "step-000001.parquet"
        parquet.write_table(parquet.read_table(path).drop_columns("entropy"), path)
        tokens = SampleTable(path).tokens(1)
        assert tokens["entropy"] == [None] * 3 and tokens["values"] == [0.0, pytest.approx(0.1), pytest.approx(0.2)]

    def test_a_tokenizer_that_fails_costs_the_text_and_not_the_step(self, tmp_path: Path) -> None:
        write_step(tmp_path, 1, batch(wrong=2), WORDS[:3])  # it knows no token 5
        table = SampleTable(tmp_path / "step-000001.parquet")
        assert [head["response"] for head in table.heads()] == ["", ""]
        assert table.tokens(0)["tokens"] == ["", "", ""] and table.tokens(0)["token_ids"] == [5, 5, 0]

    def test_half_a_character_is_replaced(self, tmp_path: Path) -> None:
        write_step(tmp_path, 1, batch(wrong=1), [*WORDS[:5], "\ud83d"])
        assert SampleTable(tmp_path / "step-000001.parquet").heads()[0]["response"] == "? ? <eos>"

    def test_other_programs_read_it(self, tmp_path: Path) -> None:
        write(tmp_path, 3, batch(wrong=1, correct=1))
        table = parquet.read_table(tmp_path / "step-000003.parquet", columns=["outcome", "values"])
        assert sorted(table.to_pydict()["outcome"]) == ["correct", "wrong"]
        described = parquet.read_schema(tmp_path / "step-000003.parquet").field("values").metadata
        assert described == {b"description": TOKEN_COLUMNS["values"][1].encode()}

    def test_beyond_their_room_the_oldest_steps_but_the_first_go(self, tmp_path: Path) -> None:
        write(tmp_path, 1, [trajectory(1, length=3000)])
        room = 4.5 * (tmp_path / "step-000001.parquet").stat().st_size / 2**20
        for step in range(2, 9):
            write(tmp_path, step, [trajectory(step, length=3000)], samples_mib=room)
        kept = [path.name for path in sorted(tmp_path.iterdir())]
        assert kept == [f"step-{step:06d}.parquet" for step in (1, 6, 7, 8)]
        write(tmp_path, 9, [trajectory(9, length=30_000)], samples_mib=room / 100)  # alone too large: the newest stays
        assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000001.parquet", "step-000009.parquet"]

    def test_columns_that_are_asked_for_are_all_that_is_read(self, tmp_path: Path) -> None:
        write_step(tmp_path, 1, batch(wrong=2), WORDS)
        path = tmp_path / "step-000001.parquet"
        whole, some = SampleTable(path), SampleTable(path, (*RESPONSE_COLUMNS, "token_ids", "values"))
        assert some.heads() == whole.heads()
        assert some.tokens(0, ("values",)) == {"values": whole.tokens(0)["values"]}
        assert set(some.tokens(0)["advantages"]) == {None}

    def test_a_step_is_seen_as_soon_as_it_is_there(self, tmp_path: Path) -> None:
        """A folder that has not changed for a while is not listed again."""
        folder = RunFolder(tmp_path)
        assert not steps_of(folder)
        write_step(folder.samples, 1, batch(wrong=2), WORDS)
        for long_ago in (False, True):
            if long_ago:
                os.utime(folder.samples, ns=(10**18, 10**18))
            assert list(steps_of(folder)) == list(steps_of(folder)) == [1]
        write_step(folder.samples, 2, batch(wrong=2), WORDS)
        assert list(steps_of(folder)) == [1, 2]
        (folder.samples / "step-000001.parquet").unlink()
        assert list(steps_of(folder)) == [2]

    def test_none_when_none_are_wanted(self, tmp_path: Path) -> None:
        write(tmp_path / "samples", 1, batch(wrong=3), samples_per_step=0)
        assert not (tmp_path / "samples").exists()

    def test_a_disk_that_refuses_costs_the_samples_not_the_step(self, tmp_path: Path) -> None:
        (tmp_path / "samples").write_text("in the way")
        write(tmp_path / "samples", 1, batch(wrong=3))

    @pytest.mark.parametrize("damage", [lambda whole: whole[:-9], lambda whole: b"rubbish", lambda whole: b""])
    def test_a_damaged_file_is_named(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        write(tmp_path, 1, batch(wrong=3))
        (path,) = tmp_path.iterdir()
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(SampleError, match=r"step-000001\.parquet: not readable"):
            SampleTable(path)

    def test_a_file_of_another_program_is_refused(self, tmp_path: Path) -> None:
        parquet.write_table(pa.table({"step": [1]}), tmp_path / "step-000001.parquet")
        with pytest.raises(SampleError, match="not of this program"):
            SampleTable(tmp_path / "step-000001.parquet")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with all three stages: two RL steps, a recording, an evaluation."""
    monkeypatch.chdir(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="two"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    folder = make_run(tmp_path / "runs", "r")
    write(folder.samples, 11, batch(wrong=3))
    write(folder.samples, 12, [*batch(wrong=6, correct=2), trajectory(77, "unparsable", "length", 9)])
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
        write(run.samples, 13, [graded])
        assert "reward 0.75 (base 0.5, brevity 0.25) · by turn 0.5 · 3 tokens" in samples(capsys)
        found = rows(capsys)[0]
        assert found["components"] == {"base": 0.5, "brevity": 0.25} and found["turn_rewards"] == [0.5]

    def test_a_response_does_not_steer_the_terminal(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        steering = replace(trajectory(1), response_token_ids=np.array([6, 6, 0], np.int32))
        write(run.samples, 13, [steering])
        assert "\x1b" not in samples(capsys)
        assert "\x1b" not in samples(capsys, "--tokens")
        assert rows(capsys)[0]["response"] == "\x1b[31m \x1b[31m <eos>"

    def test_what_the_critic_believed_token_by_token(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        out = samples(capsys, "--outcome", "unparsable", "--tokens")
        lines = out.splitlines()
        first = next(number for number, line in enumerate(lines) if line.lstrip().startswith("token "))
        table = [line.split() for line in lines[first + 1 : first + 10]]
        assert [row[0] for row in table] == [str(number) for number in range(9)]
        assert [float(row[1]) for row in table] == pytest.approx([0.1 * number for number in range(9)])
        assert [row[-1] for row in table] == ["five"] * 8 + ["<eos>"] and table[-1][2] == "█" * 12
        (row,) = rows(capsys, "--outcome", "unparsable", "--tokens")
        assert row["tokens"]["values"] == pytest.approx([0.1 * number for number in range(9)])  # type: ignore[index]
        assert "tokens" not in rows(capsys, "--outcome", "unparsable")[0]

    def test_the_largest_first(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert rows(capsys, "--sort", "length")[0]["length"] == 9
        found = [row["largest_advantage"] for row in rows(capsys, "--sort", "advantage")]
        assert found == sorted(found, reverse=True) and len(set(found)) > 1  # type: ignore[type-var]
        assert len(rows(capsys, "--sort", "mismatch", "--stage", "eval")) == 2  # what has no such number comes last

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--step", "99"], "keeps samples of steps 11 to 12"),
            (["--stage", "value_pretraining", "--tokenizer", "nowhere"], "nowhere"),
        ],
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
