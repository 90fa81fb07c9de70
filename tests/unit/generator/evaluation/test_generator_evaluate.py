"""Evaluation: samples survive a kill, are made once by any number of workers, and become figures when all are there."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.eval_samples import Sample, SampleFiles, problem_keys, records_of, summarise, write_results
from vcppo.common.evaluation.held_out import sample_seed
from vcppo.common.evaluation.intervals import wilson
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.tasks import Problem, Verdict
from vcppo.common.tasks.interface import TaskError
from vcppo.deploy.evaluation.workers import eval_table, parse_result
from vcppo.generator.evaluation import evaluate
from vcppo.generator.evaluation.evaluate import Plan, Sampler
from vcppo.generator.vllm_engine.engine import EngineError, Rollout

PROBLEMS = [Problem(f"Question {number}", {"reference": str(number)}) for number in range(5)]


def config_of(folder: Path, **settings: object) -> VcppoConfig:
    values = {"samples_per_problem": 4, "k": 2, **settings}
    return VcppoConfig.model_validate({"run": {"folder": folder}, "model": {"path": "m"}, "eval": values})


def sample(problem: str, number: int, outcome: str = "correct", **more: Any) -> Sample:
    values = {
        "extracted": "1",
        "finish_reason": "stop",
        "length": 3,
        "seconds": 0.1,
        "response": "text\n</think>\u2028é",
    }
    return Sample(problem, number, outcome, **(values | more))


class Killed(Exception):
    """Stands in for SIGKILL: nothing of ours runs after it."""


class FakeEngine:
    """Right on even sample numbers; dies after `lives` rollouts."""

    model = "m"

    def __init__(self, lives: int = 10**9) -> None:
        self.lives = lives
        self.asked: list[str] = []

    async def generate(self, prompt: Prompt) -> Rollout:
        if len(self.asked) >= self.lives:
            raise Killed
        self.asked.append(prompt.id)
        tokens = np.asarray([prompt.sample_index + 1], np.int32)
        return Rollout(tokens, np.zeros(1, np.float32), (VersionSpan(0, 1),), "stop", 0.01)


class FakeVerifiers:
    async def verify(self, answer: Any, text: str, finish_reason: str, messages: Any) -> Verdict:
        return Verdict("correct" if len(text) % 2 else "wrong", text)


class Tokenizer:
    chat_template = None

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True) -> dict[str, Any]:
        """A token a word, and one more."""
        of = [[1] * (1 + len(each.split())) for each in ([text] if isinstance(text, str) else text)]
        return {"input_ids": of[0] if isinstance(text, str) else of}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "x" * ids[0]


def run(plan: Plan, folder: Path, engine: FakeEngine, worker: int = 0, num_workers: int = 1) -> dict[str, Any] | None:
    """As `evaluate.evaluate` does, without processes."""
    output = folder / "model.json"
    files = SampleFiles(output, plan.key, worker)
    work = plan.work(worker, num_workers, set(files.read()))
    asyncio.run(Sampler(plan.config, engine, FakeVerifiers(), Tokenizer(), files).run(work))  # type: ignore[arg-type]
    return plan.finish(files, output)


def test_killed_in_the_middle_only_the_missing_samples_are_made(tmp_path: Path) -> None:
    plan = Plan(config_of(tmp_path), "m", PROBLEMS)
    first, second = FakeEngine(lives=7), FakeEngine()
    with pytest.raises(ExceptionGroup):
        run(plan, tmp_path, first)
    assert not (tmp_path / "model.json").exists()
    figures = run(plan, tmp_path, second)
    assert len(first.asked) == 7 and len(second.asked) == 13
    assert not set(first.asked) & set(second.asked)
    assert figures is not None and figures["num_samples"] == 20
    assert figures["pass_at_1"] == 0.5  # two of the four samples of each problem
    assert figures["pass_at_k"] == pytest.approx(1 - 1 / 6)
    assert json.loads((tmp_path / "model.json").read_text())["num_problems"] == 5
    third = FakeEngine()
    assert run(plan, tmp_path, third) == figures
    assert third.asked == []


def test_an_engine_that_dies_is_one_error_with_its_text(tmp_path: Path) -> None:
    class Dying(FakeEngine):
        async def generate(self, prompt: Prompt) -> Rollout:
            raise EngineError("vLLM's engine died: out of memory")

    with pytest.raises(EngineError, match="out of memory"):
        run(Plan(config_of(tmp_path), "m", PROBLEMS), tmp_path, Dying())


def test_a_line_that_broke_off_is_made_again_and_spoils_no_other(tmp_path: Path) -> None:
    files = SampleFiles(tmp_path / "model.json", "plan", 0)
    files.add(sample("a", 0))
    (path,) = (tmp_path / "model.samples").glob("plan.0.jsonl")
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):
        path.write_bytes(whole[:cut])
        files.add(sample("a", 1))
        assert set(files.read()) == {("a", 1)}
    path.write_bytes(whole[:-1])  # all there but the line's end
    files.add(sample("a", 1))
    assert files.read() == {("a", 0): sample("a", 0), ("a", 1): sample("a", 1)}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "9" * 5000,
        "[]",
        '{"problem": "a"}',
        json.dumps({**asdict(sample("a", 0)), "outcome": "maybe"}),
        json.dumps({**asdict(sample("a", 0)), "outcome": ["correct"]}),
        json.dumps({**asdict(sample("a", 0)), "length": "9"}),
        json.dumps({**asdict(sample("a", 0)), "sample": True}),
    ],
)
def test_a_line_that_is_no_sample_is_made_again(tmp_path: Path, line: str) -> None:
    files = SampleFiles(tmp_path / "model.json", "plan", 0)
    files.add(sample("a", 1))
    (path,) = (tmp_path / "model.samples").glob("plan.0.jsonl")
    path.write_text(line + "\n" + path.read_text())
    assert files.read() == {("a", 1): sample("a", 1)}


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_workers_share_the_samples_without_a_word(tmp_path: Path, num_workers: int) -> None:
    plan = Plan(config_of(tmp_path), "m", PROBLEMS)
    engines = [FakeEngine() for _ in range(num_workers)]
    results = [run(plan, tmp_path, engine, w, num_workers) for w, engine in enumerate(engines)]
    asked = [prompt for engine in engines for prompt in engine.asked]
    assert len(asked) == len(set(asked)) == 20
    assert max(len(e.asked) for e in engines) - min(len(e.asked) for e in engines) <= 1
    assert results[:-1] == [None] * (num_workers - 1) and results[-1] is not None


def test_another_number_of_workers_takes_over_what_is_there(tmp_path: Path) -> None:
    plan = Plan(config_of(tmp_path), "m", PROBLEMS)
    run(plan, tmp_path, FakeEngine(), 1, 3)
    rest = [FakeEngine(), FakeEngine()]
    results = [run(plan, tmp_path, engine, w, 2) for w, engine in enumerate(rest)]
    assert sum(len(engine.asked) for engine in rest) == 20 - 7
    assert results[1] is not None


def test_more_samples_are_added_to_those_there_are(tmp_path: Path) -> None:
    run(Plan(config_of(tmp_path), "m", PROBLEMS), tmp_path, FakeEngine())
    more = FakeEngine()
    figures = run(Plan(config_of(tmp_path, samples_per_problem=6), "m", PROBLEMS), tmp_path, more)
    assert len(more.asked) == 10 and figures is not None and figures["num_samples"] == 30


@pytest.mark.parametrize("change", ["seed", "model", "temperature", "weights"])
def test_samples_of_something_else_are_not_taken_for_these(tmp_path: Path, change: str) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1")
    config = config_of(tmp_path)
    before = Plan(config, str(model), PROBLEMS).key
    if change == "seed":
        config = config_of(tmp_path, seed=2)
    if change == "temperature":
        sampling = config.sampling.model_copy(update={"temperature": 0.6})
        config = config.model_copy(update={"sampling": sampling})
    if change == "weights":
        (model / "model.safetensors").write_bytes(b"22")
    assert Plan(config, "other" if change == "model" else str(model), PROBLEMS).key != before


def test_each_sample_has_a_seed_of_its_own() -> None:
    seeds = {sample_seed(1, f"p{problem}", number) for problem in range(50) for number in range(32)}
    assert len(seeds) >= 1599 and all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(1, "p", 0) != sample_seed(2, "p", 0)


def test_a_question_said_twice_is_two_problems() -> None:
    keys = problem_keys([PROBLEMS[0], PROBLEMS[1], PROBLEMS[0]])
    assert len(set(keys)) == 3
    assert problem_keys([PROBLEMS[1], PROBLEMS[0]]) == [keys[1], keys[0]]


def test_fewer_problems_than_asked_for_are_all_of_them(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(6)))
    config = config_of(tmp_path, num_problems=512)
    task = config.task.model_copy(
        update={
            "name": "dataset",
            "options": {"path": str(file), "evaluation_only": True, "prompt_template": "{question}"},
        }
    )
    plan = Plan.of(config.model_copy(update={"task": task}), "m", Tokenizer())
    assert plan.left_out == 0 and len(plan.problems) == len(set(problem_keys(plan.problems))) == 6


def rows_of(folder: Path, lengths: list[int], **changes: object) -> VcppoConfig:
    """An evaluation of questions of so many words; 20 tokens are room for 15 words, `Tokenizer`'s own, and 4 more."""
    file = folder / "p.jsonl"
    file.write_text(
        "".join(f'{{"question": "{i} {"w " * (n - 1)}", "answer": "{i}"}}\n' for i, n in enumerate(lengths))
    )
    config = config_of(folder, num_problems=512)
    options = {"path": str(file), "evaluation_only": True, "prompt_template": "{question}"}
    return config.model_copy(
        update={
            "task": config.task.model_copy(update={"name": "dataset", "options": options, **changes}),
            "generator": config.generator.model_copy(update={"max_model_len": 20}),
            "sampling": config.sampling.model_copy(update={"max_response_tokens": 4}),
            "learner": config.learner.model_copy(update={"micro_batch_tokens": 8}),  # no matter: it never sees these
        }
    )


def test_overlong_problems_are_refused_by_row_with_remedies_that_work(tmp_path: Path) -> None:
    lengths = [15, 16, 3, 30]
    config = rows_of(tmp_path, lengths)
    with pytest.raises(
        TaskError, match=r"task dataset: 2 of 4 held_out prompts are too long: .*p.jsonl:4 \(31 tokens\), .*p.jsonl:2"
    ):
        Plan.of(config, "m", Tokenizer())
    longer = config.model_copy(update={"generator": config.generator.model_copy(update={"max_model_len": 35})})
    assert len(Plan.of(longer, "m", Tokenizer()).problems) == 4
    skipping = rows_of(tmp_path, lengths, overlong="skip")
    plan = Plan.of(skipping, "m", Tokenizer())
    assert sorted(len(str(problem.prompt).split()) for problem in plan.problems) == [3, 15]
    assert plan.left_out == 2


def test_when_all_prompts_are_too_long_it_is_refused_whatever_the_setting(tmp_path: Path) -> None:
    with pytest.raises(VcppoError, match=r"set generator.max_model_len=25, or shorten the rows$"):
        Plan.of(rows_of(tmp_path, [20, 20], overlong="skip"), "m", Tokenizer())


def test_left_out_problems_are_said_with_the_result(tmp_path: Path) -> None:
    config = rows_of(tmp_path, [15, 16, 3], overlong="skip")
    figures = run(Plan.of(config, "m", Tokenizer()), tmp_path, FakeEngine())
    assert figures is not None and (figures["num_problems"], figures["left_out"]) == (2, 1)
    result = parse_result(figures, "m")
    assert list(eval_table([result]).columns[-1].cells) == ["2 (1 too long, left out)"]


def test_summary_counts_every_sample(tmp_path: Path) -> None:
    keys = problem_keys(PROBLEMS[:2])
    samples = [
        sample(keys[0], 0, length=3),
        sample(keys[0], 1, "wrong", length=5),
        sample(keys[1], 0, "unparsable", length=4, finish_reason="length", extracted=None),
        sample(keys[1], 1, "timeout", length=8),
    ]
    there = {each.key: each for each in samples}
    assert records_of(PROBLEMS[:2], dict(list(there.items())[:3]), 2) is None
    records = records_of(PROBLEMS[:2], there, 2)
    assert records is not None
    figures = summarise(records, k=2, seed=0)
    assert (figures["pass_at_1"], figures["pass_at_k"], figures["mean_length"]) == (0.25, 0.5, 5.0)
    assert figures["truncated_fraction"] == 0.25
    assert figures["outcomes"] == {"correct": 1, "wrong": 1, "unparsable": 1, "timeout": 1}
    counts = {name: each["count"] for name, each in figures["responses"].items()}
    assert counts == {"correct": 1, "wrong": 1, "unparsable": 1, "timeout": 1, "crash": 0, "cut": 1}
    assert all(each["of"] == 4 for each in figures["responses"].values())
    one = summarise([records[0]], k=1, seed=0)["responses"]["correct"]  # two samples of one problem: as one draw
    assert (one["rate"], one["interval"]) == (0.5, wilson(0.5, 1))
    write_results(tmp_path / "eval" / "x.json", figures, records)
    lines = (tmp_path / "eval" / "x.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == json.loads(json.dumps(asdict(records[1])))
    assert [path.name for path in sorted((tmp_path / "eval").iterdir())] == ["x.json", "x.jsonl"]


def test_the_verifier_sees_what_comes_before_the_stop_string(tmp_path: Path) -> None:
    class Stopped(FakeEngine):
        async def generate(self, prompt: Prompt) -> Rollout:
            tokens = np.asarray([4], np.int32)  # decoded as xxxx
            return Rollout(tokens, np.zeros(1, np.float32), (VersionSpan(0, 1),), "stop", 0.01, stop_string="x")

    plan = Plan(config_of(tmp_path), "m", PROBLEMS[:1])
    run(plan, tmp_path, Stopped())
    found = SampleFiles(tmp_path / "model.json", plan.key, 0).read()
    assert {(each.extracted, each.response) for each in found.values()} == {("xxx", "xxxx")}


def test_a_worker_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", "c", "--model", "m", "--output", "o.json", "--worker", "2", "--num-workers", "2"]
    with pytest.raises(SystemExit):
        evaluate.main(options)
    assert "--worker 2: from 0 to --num-workers - 1 = 1" in capsys.readouterr().err
