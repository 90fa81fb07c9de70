"""Prompts without room for a response: found when the learner starts, or passed over; never the end of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import structlog

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_USAGE
from vcppo.common.records.trajectory import FinishReason, Int32Array
from vcppo.common.tasks import Problem, Split, Task, Text, Verdict, load_task
from vcppo.common.tasks.lengths import measure_prompts, prompt_room
from vcppo.common.tasks.prompts.chat import own_texts
from vcppo.learner.supply.prompts import PromptSource, PromptTooLong

NUM_ROWS, LONG_ROWS = 200, (60, 150)
ROOM = 192  # tokens of a prompt: 256 less 64


def encode(prompt: Text) -> Int32Array:
    """A token a word, and one in front."""
    text = prompt if isinstance(prompt, str) else " ".join(own_texts(prompt))
    return np.zeros(len(text.split()) + 1, np.int32)


def make_config(folder: Path, *overrides: str, rows: Sequence[str] = ()) -> VcppoConfig:
    texts = list(rows) or [f"What is {i} plus 1?" for i in range(NUM_ROWS)]
    if not rows:
        for i in LONG_ROWS:
            texts[i] = "hello world " * (i + 40)
    (folder / "p.jsonl").write_text("".join(json.dumps({"question": q, "answer": "1"}) + "\n" for q in texts))
    (folder / "held_out.jsonl").write_text('{"question": "And 1 plus 1?", "answer": "2"}\n')
    (folder / "c.yaml").write_text(
        f"run: {{name: x}}\nmodel: {{path: m}}\nsampling: {{max_response_tokens: 64}}\n"
        f"generator: {{max_model_len: 256}}\nlearner: {{micro_batch_tokens: 512}}\n"
        f"task:\n  name: dataset\n  options:\n    path: {folder / 'p.jsonl'}\n"
        f"    prompt_template: '{{question}}'\n    held_out_path: {folder / 'held_out.jsonl'}\n"
    )
    return load_config(folder / "c.yaml", overrides)


class Endless(Task):
    """Every seventh problem is too long; there is no end to them."""

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("w " * (300 if i % 7 == 3 else 5), {"number": i}) for i in range(start, start + count)]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        raise NotImplementedError


class OnlyLong(Endless):
    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("w " * 300, {"number": i}) for i in range(start, start + count)]


def test_every_long_row_is_named_at_the_start_with_remedies_that_work(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(PromptTooLong) as caught:
        PromptSource(config, load_task(config.task), encode)
    text = str(caught.value)
    assert "2 of 200 train prompts" in text
    assert "(381 tokens)" in text and "(201 tokens)" in text
    assert caught.value.exit_code == EXIT_USAGE  # the launcher does not try again
    assert "generator.max_model_len=445" in text and "task.overlong=skip" in text
    raised = make_config(tmp_path, "generator.max_model_len=445")
    PromptSource(raised, load_task(raised.task), encode)


def test_skip_leaves_them_out_and_says_so(tmp_path: Path) -> None:
    config = make_config(tmp_path, "task.overlong=skip")
    with structlog.testing.capture_logs() as lines:
        source = PromptSource(config, load_task(config.task), encode)
    assert [line["count"] for line in lines if line["event"] == "overlong_prompts_left_out"] == [2]
    size, groups = config.rl.group_size, 2 * NUM_ROWS  # two passes over the data
    with structlog.testing.capture_logs() as lines:
        prompts = source.prompts("rl", 0, groups * size, 0)
    assert len(prompts) == groups * size
    assert max(len(prompt.token_ids) for prompt in prompts) <= ROOM
    assert source.num_passed_over == 4
    assert [line["passed_over"] for line in lines] == [1, 2, 3, 4]


def test_rows_that_filters_leave_out_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": {i}}}\n' for i in range(NUM_ROWS)))
    config = make_config(
        tmp_path, f"task.options.path={tmp_path / 'rows.jsonl'}", "task.options.keep_where={answer: {min: 5}}",
        "task.options.held_out_path=null",
    )  # fmt: skip
    with structlog.testing.capture_logs() as lines:
        PromptSource(config, load_task(config.task), encode)
    (line,) = (each for each in lines if each["event"] == "rows_left_out_by_filters")
    assert (line["count"], line["by"]) == (5, {"keep_where.answer": 5})


def test_a_substitute_is_a_function_of_the_group_alone(tmp_path: Path) -> None:
    """A resumed run makes the same prompts, wherever it begins; samples of a group share their problem."""
    config = make_config(tmp_path)
    whole = PromptSource(config, Endless(), encode).prompts("rl", 0, 40 * config.rl.group_size, 0)
    source = PromptSource(config, Endless(), encode)
    for prompt in reversed(whole):
        index = int(prompt.group_id.rsplit("-", 1)[1]) * config.rl.group_size + prompt.sample_index
        (again,) = source.prompts("rl", index, 1, 0)
        assert again.answer == prompt.answer and again.id == prompt.id
    by_group: dict[str, set[str]] = {}
    for prompt in whole:
        by_group.setdefault(prompt.group_id, set()).add(str(prompt.answer))
    assert {len(each) for each in by_group.values()} == {1}
    assert len({next(iter(each)) for each in by_group.values()}) == len(by_group)  # nobody else's problem


def test_an_endless_task_passes_them_over_whatever_the_setting(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    source = PromptSource(config, Endless(), encode)
    prompts = source.prompts("rl", 0, 70 * config.rl.group_size, 0)
    assert max(len(prompt.token_ids) for prompt in prompts) <= ROOM
    assert source.num_passed_over == 10
    extra = source.extra_sample("rl-00000003", 0, 0)
    assert len(extra.token_ids) <= ROOM
    assert source.num_passed_over == 10


def test_of_a_mix_every_source_with_an_end_is_looked_through(tmp_path: Path) -> None:
    """A mix was taken for a task without end, so that `refuse` did nothing and long rows were passed over."""
    config = make_config(tmp_path)
    sources = [
        {"name": "dataset", "weight": 1, "options": config.task.options},
        {"name": f"{__name__}:Endless", "weight": 1},
    ]
    of_mix = config.model_copy(
        update={"task": config.task.model_copy(update={"name": "mix", "options": {"sources": sources}})}
    )
    with pytest.raises(PromptTooLong, match=rf"2 of {NUM_ROWS} train prompts are too long: .*p.jsonl:151 \(381 tokens"):
        PromptSource(of_mix, load_task(of_mix.task), encode)
    skipping = of_mix.model_copy(update={"task": of_mix.task.model_copy(update={"overlong": "skip"})})
    source = PromptSource(skipping, load_task(skipping.task), encode)
    assert max(len(prompt.token_ids) for prompt in source.prompts("rl", 0, 400, 0)) <= ROOM


def test_when_nothing_fits_the_run_ends_and_says_what_would(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with pytest.raises(PromptTooLong, match=r"the shortest of them has 301.*generator.max_model_len to 365"):
        PromptSource(config, OnlyLong(), encode).prompts("rl", 0, 1, 0)
    rows = make_config(tmp_path, "task.overlong=skip", rows=["w " * (300 + i) for i in range(20)])
    with pytest.raises(PromptTooLong, match=r"20 of 20 train prompts are too long"):
        PromptSource(rows, load_task(rows.task), encode)


def test_prompts_shorter_in_bytes_than_their_room_are_not_tokenised(tmp_path: Path) -> None:
    seen: list[Text] = []

    def lengths(prompts: Sequence[Text]) -> list[int]:
        seen.extend(prompts)
        return [len(encode(prompt)) for prompt in prompts]

    config = make_config(tmp_path)
    task = load_task(config.task)
    found = measure_prompts(config, task, "train", lengths)
    assert found is not None and len(found.too_long) == 2 and len(seen) == 3  # one is the empty one
    exact = measure_prompts(config, task, "train", lengths, exact=True)
    assert exact is not None and exact.too_long == found.too_long
    assert len(seen) == 3 + exact.num_prompts
    assert prompt_room(config).tokens == ROOM
