"""The generator's checks, one by one: what is right passes, each fault is found, with its remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.unit.rig.check_model import TEMPLATE, make, save_tokenizer, sums, write_rows
from vcppo.common.check.check_lines import CheckLine
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks import Finding, Problem, Split, Task, Verdict, encode_prompt
from vcppo.common.tasks.dataset import DatasetOptions
from vcppo.generator.check.__main__ import CHECKS
from vcppo.generator.check.data_checks import half_width
from vcppo.generator.check.data_context import Context
from vcppo.generator.check.prompt_checks import look_at
from vcppo.generator.check.tokenizer_checks import turn_end


def look(config: VcppoConfig, name: str) -> list[CheckLine]:
    (check,) = (each for each in CHECKS if each.name == name)
    return list(check.lines(Context(config)))


def only(lines: list[CheckLine]) -> CheckLine:
    (line,) = lines
    return line


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.name != "vLLM"])
def test_a_sound_folder_passes(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    write_rows(tmp_path / "rows.jsonl", sums(1000))
    lines = look(load_config(tmp_path / "run.yaml"), name)
    assert {line.status for line in lines} == {"passed"}, lines


class TestData:
    def test_a_bad_row_is_named(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write('{"question": "no answer"}\n')
        line = only(look(config, "task"))
        assert line.status == "failed" and "rows.jsonl:61" in line.text
        context = Context(config)
        lines = [line for check in CHECKS for line in check.lines(context) if check.name in ("task", "rows", "text")]
        assert [line.status for line in lines] == ["failed", "skipped", "skipped"]  # said once

    def test_findings_of_a_kind_stand_together_errors_first(self, tmp_path: Path) -> None:
        make(tmp_path)
        name = f"{Careless.__module__}:{Careless.__name__}"
        lines = look(load_config(tmp_path / "run.yaml", [f"task={{name: '{name}'}}"]), "rows")
        assert [(line.status, line.text) for line in lines] == [
            ("failed", "row 70: no answer"), ("warned", "row 0: asked twice"),
        ]  # fmt: skip
        assert lines[1].details[:3] == tuple(f"row {i}: asked twice" for i in (1, 2, 3))
        assert lines[1].details[3].startswith("46 more: row 4, row 5") and lines[1].details[3].endswith(", ...")

    def test_few_held_out_problems_tell_little(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        assert "±" in only(look(config, "held out")).text
        assert any("held-out problems" in line.text for line in look(config, "rows"))  # the task's own warning
        write_rows(tmp_path / "rows.jsonl", sums(1000))
        few = only(look(load_config(tmp_path / "run.yaml", ["eval.num_problems=50"]), "held out"))
        assert few.status == "warned" and "±13.9 points" in few.text
        setting = few.remedy.split()[-1]
        mended = only(look(load_config(tmp_path / "run.yaml", [setting]), "held out"))
        assert mended.status == "passed"

    def test_what_is_evaluated_on_the_way_is_loaded(self, tmp_path: Path) -> None:
        make(tmp_path)
        assert "eval.every = 0" in only(look(load_config(tmp_path / "run.yaml", []), "on the way")).text
        known = "{name: sums, task: chain_arithmetic, options: {num_operations: 1}}"
        broken = "{name: aime, task: aime, options: {path: nowhere.jsonl}}"
        turns = "{name: turns, task: look_up}"
        given = [
            "eval.every=5",
            "eval.num_problems_during_training=40",
            f"eval.benchmarks=[{known}, {broken}, {turns}]",
        ]
        own, sums_, aime, several = look(load_config(tmp_path / "run.yaml", given), "on the way")
        assert own.status == "passed" and "every 5 steps" in own.text and "±" in own.text
        assert (sums_.status, sums_.text) == ("passed", "benchmark sums: 40 problems")
        assert aime.status == "failed" and "nowhere.jsonl" in aime.text and "aime" in aime.remedy
        assert several.status == "failed" and "several turns" in several.text

    def test_rows_that_filters_leave_out_are_counted(self, tmp_path: Path) -> None:
        make(tmp_path)
        write_rows(tmp_path / "rows.jsonl", sums(1000))
        given = ["task.options.keep_where={answer: {min: 20, max: 1800}}"]
        config = load_config(tmp_path / "run.yaml", given)
        assert "is str" in only(look(config, "task")).text
        rows = [{"question": q, "answer": int(a)} for q, a in sums(1000)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (counted, *_) = look(config, "rows")
        assert (counted.status, counted.text) == (
            "passed", "109 rows are left out by the task's filters: 109 by keep_where.answer",
        )  # fmt: skip

    def test_half_width_is_the_textbooks(self) -> None:
        assert half_width(385) == pytest.approx(0.05, abs=2e-4)

    def test_nothing_to_train_on(self, tmp_path: Path) -> None:
        line = only(look(make(tmp_path, "task.options.evaluation_only=true"), "task"))
        assert line.status == "failed" and "nothing to train on" in line.text

    @pytest.mark.parametrize(
        ("task", "given"),
        [
            ("chain_arithmetic", "rl.difficulty.enabled=true"),  # it has no end
            ("look_up", "learner.batch_deadline_seconds=300"),  # as long as a rollout may take
        ],
    )
    def test_settings_that_go_with_other_tasks(self, tmp_path: Path, task: str, given: str) -> None:
        make(tmp_path)
        line = only(look(load_config(tmp_path / "run.yaml", [f"task={{name: '{task}'}}", given]), "task"))
        assert line.status == "failed"
        setting = line.remedy.split()[1].strip(",")
        mended = load_config(tmp_path / "run.yaml", [f"task={{name: '{task}'}}", given, setting])
        assert only(look(mended, "task")).status == "passed"


class TestTokenizer:
    def test_a_token_without_embedding(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        values = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(values | {"vocab_size": 260}))
        line = only(look(config, "vocabulary"))
        assert line.status == "failed" and "2 tokens have no embedding" in line.text

    def test_text_that_does_not_come_back(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        file = tmp_path / "model" / "tokenizer.json"
        tree = json.loads(file.read_text())
        tree["normalizer"] = {"type": "Lowercase"}
        file.write_text(json.dumps(tree))
        lines = look(config, "text")
        assert lines[0].status in ("warned", "failed") and "What is" in lines[0].text

    def test_no_token_that_ends(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        for name in ("config.json", "tokenizer_config.json"):
            tree = json.loads((tmp_path / "model" / name).read_text())
            (tmp_path / "model" / name).write_text(json.dumps({k: v for k, v in tree.items() if "eos" not in k}))
        line = only(look(config, "stop tokens"))
        assert line.status == "failed" and "eos_token_id" in line.text

    def test_a_stop_token_nobody_has(self, tmp_path: Path) -> None:
        line = only(look(make(tmp_path, "sampling.stop_token_ids=[9999]"), "stop tokens"))
        assert line.status == "failed" and "9999" in line.text

    def test_turns_end_with_another_token(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        save_tokenizer(tmp_path / "model", eos="<eos>")
        values = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(values | {"eos_token_id": 5}))
        line = only(look(config, "stop tokens"))
        assert line.status == "warned" and "'<|end|>' (2)" in line.text
        mended = load_config(tmp_path / "run.yaml", [line.remedy.split()[-1]])  # the remedy works
        assert only(look(mended, "stop tokens")).status == "passed"

    def test_stop_strings_are_shown(self, tmp_path: Path) -> None:
        line = only(look(make(tmp_path, 'sampling.stop=["###"]'), "stop tokens"))
        assert "'<|end|>' (2); strings: '###'" in line.text

    def test_end_of_a_turn(self, tmp_path: Path) -> None:
        make(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        assert turn_end(tokenizer) == 2
        tokenizer.chat_template = "{{ raise_exception('no') }}"
        assert turn_end(tokenizer) is None
        tokenizer.chat_template = None
        assert turn_end(tokenizer) is None


class TestPrompts:
    def shown(self, folder: Path, template: str | None, *overrides: str) -> list[CheckLine]:
        config = make(folder, *overrides)
        save_tokenizer(folder / "model", template=template)
        return look(config, "as sent")

    def test_exactly_as_the_model_gets_them(self, tmp_path: Path) -> None:
        lines = self.shown(tmp_path, TEMPLATE)
        assert len(lines) == 3
        text = "\n".join(lines[0].details)
        assert text.startswith("<s><|user|>What is ") and text.endswith("<|end|><|assistant|>")
        assert "\\boxed{}" in text
        assert lines[0].text == f"{len(text.encode()) - len('<s><|user|><|end|><|assistant|>') + 4} tokens"

    def test_a_template_that_can_not_be_rendered(self, tmp_path: Path) -> None:
        line = only(self.shown(tmp_path, "{{ raise_exception('system first') }}"))
        assert line.status == "failed" and "system first" in line.text and "prompt_template" in line.text
        assert only(look(load_config(tmp_path / "run.yaml"), "lengths")).status == "skipped"  # said once

    def test_no_template_at_all(self, tmp_path: Path) -> None:
        assert "no chat template" in only(self.shown(tmp_path, None)).text
        plain = self.shown(tmp_path, None, "task.options.prompt_template='Q: {question} A:'")
        assert {line.status for line in plain} == {"passed"}

    def test_a_template_that_drops_the_question(self, tmp_path: Path) -> None:
        lines = self.shown(tmp_path, "{{ bos_token }}Answer:{% if add_generation_prompt %}A{% endif %}")
        assert {line.status for line in lines} == {"failed"}
        assert "the model never sees" in lines[0].text

    def test_twice_the_first_token(self, tmp_path: Path) -> None:
        lines = self.shown(tmp_path, "{{ bos_token }}" + TEMPLATE)
        assert {line.status for line in lines} == {"warned"}
        assert "'<s>' twice" in lines[0].text

    def test_no_turn_is_opened(self, tmp_path: Path) -> None:
        lines = self.shown(tmp_path, TEMPLATE.partition("{% if")[0])
        assert {line.status for line in lines} == {"warned"}
        assert "add_generation_prompt" in lines[0].text

    def test_tools_and_variables_that_the_template_ignores(self, tmp_path: Path) -> None:
        tools = '[{"type": "function", "function": {"name": "add"}}]'
        given = (f"task.options.tools={tools}", "task.options.chat_template_kwargs={enable_thinking: false}")
        lines = self.shown(tmp_path, TEMPLATE, *given)
        assert {line.status for line in lines} == {"warned"}
        assert "takes no notice of tools, enable_thinking" in lines[0].text
        knows = "{{ tools }}{% if enable_thinking is false %}{{ '<think>' }}{% endif %}" + TEMPLATE
        assert {line.status for line in self.shown(tmp_path, knows, *given)} == {"passed"}

    def test_a_template_may_leave_out_earlier_thinking_and_nothing_else(self, tmp_path: Path) -> None:
        make(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
        tokenizer.chat_template = TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")
        earlier = {"role": "assistant", "content": "<think>hm</think>four"}
        ask = {"role": "user", "content": "And now?"}
        for prompt, status in (([ask, earlier, ask], "passed"), ([{**ask, "content": "a</think>b"}], "failed")):
            assert look_at(tokenizer, prompt, encode_prompt(tokenizer, prompt).tolist()).status == status

    def test_long_rows_of_both_splits_at_once(self, tmp_path: Path) -> None:
        config = make(tmp_path)
        rows = sums()
        for place in (7, 11, 23, 30, 41, 52):
            rows[place] = ("x" * (300 + place), "1")
        write_rows(tmp_path / "rows.jsonl", rows)
        train, held_out = look(config, "lengths")
        found = train.text + held_out.text
        assert train.status == "failed"
        added = 4 + len("\n\n" + DatasetOptions(path="").instruction)  # special tokens, and what follows the question
        assert all(f"({300 + place + added} tokens)" in found for place in (7, 11, 23, 30, 41, 52))
        needed = train.remedy.split()[1].rpartition(",")[0] or train.remedy.split()[1]
        assert needed.startswith("generator.max_model_len=")
        assert look(load_config(tmp_path / "run.yaml", [needed]), "lengths")[0].status == "passed"
        skipping = load_config(tmp_path / "run.yaml", ["task.overlong=skip"])
        assert look(skipping, "lengths")[0].status == "warned"

    def test_a_task_without_end_is_sampled(self, tmp_path: Path) -> None:
        make(tmp_path)
        config = load_config(tmp_path / "run.yaml", ["task={name: chain_arithmetic}"])
        lines = look(config, "lengths")
        assert [line.status for line in lines] == ["passed", "passed"]
        assert "without end" in lines[0].text


class YesMan(Task):
    """A verifier that accepts everything but what hangs it."""

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("1+1", {"reference": "2"})] * count

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        return Verdict("correct", response[:10])


class Careless(YesMan):
    """Its data hold fifty small faults, and a large one behind them."""

    def findings(self) -> list[Finding]:
        small = [Finding("warning", f"row {i}", "asked twice", "drop it") for i in range(50)]
        return [*small, Finding("error", "row 70", "no answer", "mend it")]


class NoMan(YesMan):
    """Nothing is ever right."""

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        return Verdict("wrong", None)


class Sleeper(YesMan):
    """Hangs on braces; judges the rest."""

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        while "{{{{" in response:
            pass
        if "crash" in response or not response:
            raise RuntimeError("no")
        return Verdict("correct" if response.rstrip(".").endswith("{2}") else "wrong", None)


class Parted(YesMan):
    """Right and wrong earn numbers with a part."""

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        right = response.rstrip(".").endswith("{2}")
        return Verdict("correct" if right else "wrong", None, 0.5 * right, {"steps": 0.25})


def size(answer: object, response: str, finish_reason: FinishReason) -> int:
    return len(response)


def failing(answer: object, response: str, finish_reason: FinishReason) -> float:
    raise RuntimeError("no")


class TestVerifier:
    def verdicts(self, folder: Path, task: type[Task]) -> list[CheckLine]:
        make(folder)
        name = f"{task.__module__}:{task.__name__}"
        settings = [f"task={{name: '{name}', verifier_timeout_seconds: 5}}"]
        return look(load_config(folder / "run.yaml", settings), "verdicts")

    def test_its_own_references_in_a_box(self, tmp_path: Path) -> None:
        lines = look(make(tmp_path), "verdicts")
        assert "20 of 20 references are correct" in lines[1].text
        assert "a wrong answer is wrong, an empty one unparsable" in lines[2].text
        assert "hostile answers" in lines[3].text

    def test_of_a_task_of_our_own(self, tmp_path: Path) -> None:
        make(tmp_path)
        lines = look(load_config(tmp_path / "run.yaml", ["task={name: chain_arithmetic}"]), "verdicts")
        assert {line.status for line in lines} == {"passed"}

    def test_one_that_accepts_everything(self, tmp_path: Path) -> None:
        lines = self.verdicts(tmp_path, YesMan)
        assert [line.status for line in lines] == ["passed", "passed", "failed", "failed"]

    def test_one_that_accepts_nothing(self, tmp_path: Path) -> None:
        lines = self.verdicts(tmp_path, NoMan)
        assert lines[1].status == "failed" and "its own reference '2' is not correct" in lines[1].text

    def test_one_that_hangs_and_crashes_comes_back(self, tmp_path: Path) -> None:
        lines = self.verdicts(tmp_path, Sleeper)
        assert [line.status for line in lines] == ["passed", "passed", "failed", "passed"]
        assert "an empty one crash" in lines[2].text
        assert "10,000 open braces timeout" in lines[3].text

    @pytest.mark.parametrize(
        ("settings", "status", "text"),
        [
            ({}, "passed", "correct: 0.5 (steps 0.25, base 0.5); wrong: 0 (steps 0.25, base 0)"),
            ({"reward_weights": "{steps: 0.5}"}, "passed", "correct: 0.625 (steps"),
            ({"reward_weights": "{stepz: 0.5}"}, "failed", "stepz has a weight in task.reward_weights and is never gi"),
            ({"reward_weights": "{steps: 9, x: -9}", "reward_range": "[-1, 1]"}, "failed", "reward 2.75 is beyond"),
        ],
    )
    def test_what_answers_earn_part_by_part(
        self, tmp_path: Path, settings: dict[str, str], status: str, text: str
    ) -> None:
        make(tmp_path)
        overrides = [f"task={{name: '{__name__}:Parted'}}", *(f"task.{key}={value}" for key, value in settings.items())]
        lines = look(load_config(tmp_path / "run.yaml", overrides), "verdicts")
        assert lines[3].status == status and text in lines[3].text


class TestEnvironment:
    def test_it_begins_answers_and_is_encoded(self, tmp_path: Path) -> None:
        make(tmp_path)
        lines = look(load_config(tmp_path / "run.yaml", ["task={name: look_up}"]), "verdicts")
        assert [line.status for line in lines] == ["passed"] * 3
        assert lines[1].text == "reset: 20 of 20 problems begin" and "none goes on" in lines[2].text

    @pytest.mark.parametrize(
        ("function", "status", "text"),
        [("size", "passed", "size 28, format 1"), ("failing", "failed", "any text may come, and one is a crash")],
    )
    def test_its_reward_functions_are_asked(self, tmp_path: Path, function: str, status: str, text: str) -> None:
        make(tmp_path)
        settings = [f"task={{name: look_up, rewards: [{{name: '{__name__}:{function}'}}], format_pattern: means}}"]
        lines = look(load_config(tmp_path / "run.yaml", settings), "verdicts")
        assert (lines[-1].status, len(lines)) == (status, 4) and text in lines[-1].text

    @pytest.mark.parametrize(
        ("breaks", "words"), [("reset", "ValueError: no state"), ("step", "ValueError: no answer"), ("", "no room")]
    )
    def test_what_it_can_not_do_is_said(self, tmp_path: Path, breaks: str, words: str) -> None:
        make(tmp_path)
        name = f"{Answering.__module__}:{Answering.__name__}"
        settings = [f"task={{name: '{name}', options: {{breaks: '{breaks}'}}}}", "sampling.max_response_tokens=8"]
        lines = look(load_config(tmp_path / "run.yaml", settings), "verdicts")
        assert lines[-1].status == ("failed" if breaks else "warned")
        assert any(words in line.text + line.remedy for line in lines if line.status != "passed")

    def test_an_agent_begins(self, tmp_path: Path) -> None:
        make(tmp_path)
        name = f"{Asking.__module__}:{Asking.__name__}"
        lines = look(load_config(tmp_path / "run.yaml", [f"task={{name: '{name}'}}"]), "verdicts")
        assert [line.status for line in lines] == ["passed", "passed", "skipped"]
        assert lines[0].text == "a child of the agent is up" and "vcppo check --generate" in lines[2].text
        save_tokenizer(tmp_path / "model", template=None)
        lines = look(load_config(tmp_path / "run.yaml", [f"task={{name: '{name}'}}"]), "verdicts")
        assert [line.status for line in lines] == ["passed", "failed"] and "chat template" in lines[1].text

    @pytest.mark.parametrize(
        ("knows_tools", "tools", "words"),
        [
            (True, "{use: calculator}", ""),
            (False, "{use: calculator}", "takes no notice of the task's tools"),
            (True, "{use: hammer}", "neither built in (calculator, python, search, mcp)"),
            (True, "{use: search, path: nowhere}", "no folder 'nowhere'"),
            (True, "{use: mcp, command: ['false'], allow: [x]}", "'false' gives no MCP server"),
        ],
    )
    def test_tools_are_tried(self, tmp_path: Path, knows_tools: bool, tools: str, words: str) -> None:
        make(tmp_path)
        save_tokenizer(tmp_path / "model", template=("{{ tools }}" if knows_tools else "") + TEMPLATE)
        options = f"{{task: {{name: products}}, tools: [{tools}]}}"
        lines = look(load_config(tmp_path / "run.yaml", [f"task={{name: tools, options: {options}}}"]), "verdicts")
        assert [line.status for line in lines if words in line.text][:1] == ["failed" if words else "passed"]
        assert words or [line.status for line in lines] == ["passed"] * 3


class Asking(Agent):
    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem([{"role": "user", "content": f"{split} {i}"}], {}) for i in range(start, start + count)]

    async def run(self, answer: Mapping[str, object], endpoint: Endpoint) -> float:
        return 0.0


class Answering(Environment):
    def __init__(self, breaks: str) -> None:
        self.breaks = breaks

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem([{"role": "user", "content": f"{split} {i}"}], {}) for i in range(start, start + count)]

    def reset(self, answer: Mapping[str, object]) -> None:
        if self.breaks == "reset":
            raise ValueError("no state")

    def step(self, action: str) -> Observation:
        if self.breaks == "step":
            raise ValueError("no answer")
        return Observation("a long answer to everything")
