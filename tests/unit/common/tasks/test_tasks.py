"""Tasks: deterministic problems, splits that never meet, exact verdicts, errors that name the place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import DATA
from vcppo.common.config import TaskConfig
from vcppo.common.tasks import (
    Demonstration,
    Problem,
    Split,
    Task,
    TaskError,
    Verdict,
    decode_response,
    encode_prompt,
    load_task,
)
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic
from vcppo.common.tasks.dataset import DatasetTask
from vcppo.common.tasks.math_answers import judge

PROBLEMS = DATA / "problems.jsonl"
SPLITS: tuple[Split, ...] = ("train", "held_out")


class OwnTask(Task):
    """A user's task, loaded by module:Class."""

    def __init__(self, difficulty: int = 1) -> None:
        self.difficulty = difficulty

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem(f"{split} {seed} {i} {self.difficulty}", {}) for i in range(start, start + count)]

    def verify(self, answer: Any, response: str, finish_reason: Any) -> Verdict:
        return Verdict("wrong", None)


def recompute(prompt: str, num_digits: int) -> str:
    """The answer from the prompt's text, by another way than the task's."""
    x = int(prompt[:num_digits])
    for multiplier, addend in re.findall(r"[A-Z](\d)[a-z](\d)", prompt):
        x = (x * int(multiplier) + int(addend)) % 10**num_digits
    return str(x).zfill(num_digits)


class TestLoading:
    def test_built_in(self) -> None:
        assert isinstance(load_task(TaskConfig(options={"num_operations": 2})), ChainArithmetic)

    def test_own_class(self) -> None:
        task = load_task(TaskConfig(name=f"{__name__}:OwnTask", options={"difficulty": 3}))
        assert task.problems("train", 0, 5, 1) == [Problem("train 0 5 3", {})]

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("chain_arithmetics", "neither built in"),
            ("no_such_module:Task", "can't be imported"),
            (f"{__name__}:Missing", "can't be imported"),
            ("pathlib:Path", "not a subclass"),
        ],
    )
    def test_unknown_name(self, name: str, says: str) -> None:
        with pytest.raises(TaskError, match=says) as error:
            load_task(TaskConfig(name=name))
        assert name in str(error.value)

    def test_options_of_another_task(self) -> None:
        with pytest.raises(TaskError, match=r"it takes \(difficulty") as error:
            load_task(TaskConfig(name=f"{__name__}:OwnTask", options={"dificulty": 3}))
        assert "dificulty" in str(error.value)

    @pytest.mark.parametrize("options", [{"num_operation": 3}, {"num_operations": 0}, {"num_operations": "many"}])
    def test_bad_options_are_named(self, options: dict[str, object]) -> None:
        with pytest.raises(TaskError, match=r"task\.options\.num_operation") as error:
            load_task(TaskConfig(options=options))
        assert "accepted fields: num_operations" in str(error.value)

    def test_no_demonstrations_says_what_to_do(self) -> None:
        with pytest.raises(TaskError, match=r"sft\.phases empty"):
            OwnTask().demonstrations(0, 1, {})


class TestChainProblems:
    @given(seed=st.integers(0, 2**31), start=st.integers(0, 10**6), count=st.integers(1, 8))
    @settings(max_examples=50, deadline=None)
    def test_random_access(self, seed: int, start: int, count: int) -> None:
        task = ChainArithmetic(num_operations=3)
        whole = task.problems("train", seed, start, count)
        assert whole == [task.problems("train", seed, start + i, 1)[0] for i in range(count)]

    @given(num_digits=st.integers(1, 5), num_operations=st.integers(1, 26), seed=st.integers(0, 2**31))
    @settings(max_examples=50, deadline=None)
    def test_answer(self, num_digits: int, num_operations: int, seed: int) -> None:
        task = ChainArithmetic(num_operations=num_operations, num_digits=num_digits)
        for split in SPLITS:
            problem = task.problems(split, seed, 0, 1)[0]
            assert problem.answer == {"value": recompute(str(problem.prompt), num_digits)}

    def test_splits_never_meet(self) -> None:
        """A space of 640 problems, drawn far more often than that."""
        task = ChainArithmetic(num_operations=1, num_digits=1)
        train, held_out = ({problem.prompt for problem in task.problems(split, 7, 0, 4000)} for split in SPLITS)
        assert train and held_out and not train & held_out
        assert not held_out & {demonstration.prompt for demonstration in task.demonstrations(1, 2000, {})}

    def test_seeds_differ(self) -> None:
        task = ChainArithmetic()
        assert task.problems("train", 0, 0, 4) != task.problems("train", 1, 0, 4)

    def test_multiplier_range(self) -> None:
        prompts = [str(p.prompt) for p in ChainArithmetic(max_multiplier=3).problems("train", 0, 0, 50)]
        assert {m for prompt in prompts for m in re.findall(r"[A-Z](\d)", prompt)} == {"2", "3"}


class TestChainVerifier:
    task = ChainArithmetic()

    @pytest.mark.parametrize(
        ("response", "finish_reason", "outcome"),
        [
            ("<think>~A>1\n</think>042", "stop", "correct"),
            ("</think>042", "stop", "correct"),
            ("<think></think>999</think>042", "stop", "correct"),
            ("<think></think>043", "stop", "wrong"),
            ("<think></think>042", "length", "unparsable"),
            ("<think>042", "stop", "unparsable"),
            ("042", "stop", "unparsable"),
            ("<think></think>42", "stop", "unparsable"),
            ("<think></think>0420", "stop", "unparsable"),
            ("<think></think>04A", "stop", "unparsable"),
            ("", "stop", "unparsable"),
        ],
    )
    def test_verdict(self, response: str, finish_reason: Any, outcome: str) -> None:
        assert self.task.verify({"value": "042"}, response, finish_reason).outcome == outcome


class TestDemonstrations:
    task = ChainArithmetic(num_operations=3)

    @pytest.mark.parametrize("style", [{}, {"long_fraction": 0.4, "long_sloppy": 0.03, "check": 0.1}])
    def test_right_and_repeatable(self, style: dict[str, object]) -> None:
        demonstrations = self.task.demonstrations(5, 50, style)
        assert demonstrations == self.task.demonstrations(5, 50, style)
        for prompt, response in demonstrations:
            answer = {"value": recompute(str(prompt), 3)}
            assert self.task.verify(answer, response, "stop").outcome == "correct"

    def test_every_equation_is_true(self) -> None:
        for demonstration in self.task.demonstrations(1, 50, {}):
            equations = re.findall(r"(\d)\*(\d)\+(\d)=(\d\d)", demonstration.response)
            assert all(int(a) * int(b) + int(c) == int(d) for a, b, c, d in equations)

    def test_few_operations_have_any_of_the_letters(self) -> None:
        """So the look-up of each is learnt where it is easy; the answers are right there, too."""
        shown = ChainArithmetic(num_operations=14).demonstrations(3, 200, {"num_operations": 3})
        letters = [re.findall("[A-Z]", each.prompt) for each in shown]
        assert {len(each) for each in letters} == {3} and all(each == sorted(each) for each in letters)
        assert {letter for each in letters for letter in each} == set("ABCDEFGHIJKLMN")
        assert all(each.response.endswith(f"</think>{recompute(each.prompt, 3)}") for each in shown)
        with pytest.raises(TaskError, match=r"style.num_operations = 7: the task has 3: lower it"):
            self.task.demonstrations(0, 1, {"num_operations": 7})

    def test_styles(self) -> None:
        careful = self.task.demonstrations(0, 20, {"long_sloppy": 0.0})
        short = self.task.demonstrations(0, 20, {"long_fraction": 0.0, "short_sloppy": 1.0, "check": 0.0})
        checked = self.task.demonstrations(0, 20, {"long_sloppy": 1.0, "check": 1.0})
        assert all(d.response.count("#") == 3 for d in careful)
        assert all(d.response.count("~") == 3 and "?" not in d.response for d in short)
        assert all(d.response.count("~") == d.response.count("?") == 3 for d in checked)

    @pytest.mark.parametrize("style", [{"sloppy": 0.5}, {"check": 1.5}])
    def test_bad_style(self, style: dict[str, object]) -> None:
        with pytest.raises(TaskError, match=r"sft\.phases\.style\."):
            self.task.demonstrations(0, 1, style)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Saved and loaded again, as the processes of a run do."""
    transformers = pytest.importorskip("transformers")
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=ChainArithmetic().tokenizer(), pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


class TestTokenizer:
    def test_every_symbol_is_one_token_and_comes_back(self, tokenizer: Any) -> None:
        assert len(tokenizer) == 41
        for prompt, response in ChainArithmetic().demonstrations(0, 20, {}):
            ids = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
            assert decode_response(tokenizer, ids) == response
            assert len(encode_prompt(tokenizer, prompt)) == len(prompt)
            assert tokenizer.pad_token_id not in ids  # the unknown symbol

    def test_chat_without_template(self, tokenizer: Any) -> None:
        with pytest.raises(TaskError, match="prompt_template"):
            encode_prompt(tokenizer, [{"role": "user", "content": "1"}])

    def test_chat_with_template(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
        monkeypatch.setattr(tokenizer, "chat_template", template)
        ids = encode_prompt(tokenizer, [{"role": "user", "content": "12"}])
        assert tokenizer.decode(ids) == "12="


class TestDataset:
    def test_splits(self) -> None:
        task = DatasetTask(path=str(PROBLEMS), held_out_fraction=0.3)
        train, held_out = ({str(p.prompt) for p in task.problems(split, 0, 0, 100)} for split in SPLITS)
        assert len(train) + len(held_out) == 20 and not train & held_out

    def test_each_pass_has_every_problem_once(self) -> None:
        task = DatasetTask(path=str(PROBLEMS))
        count = len({str(p.prompt) for p in task.problems("train", 3, 0, 100)})
        passes = [[str(p.prompt) for p in task.problems("train", 3, start, count)] for start in (0, count, 2 * count)]
        assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
        assert len(set(passes[0])) == count and passes[0] != passes[1]

    @given(start=st.integers(0, 100), count=st.integers(1, 40))
    @settings(max_examples=30, deadline=None)
    def test_random_access(self, start: int, count: int) -> None:
        task = DatasetTask(path=str(PROBLEMS))
        whole = task.problems("train", 1, start, count)
        assert whole == [task.problems("train", 1, start + i, 1)[0] for i in range(count)]

    def test_held_out_file_wins(self, tmp_path: Path) -> None:
        held_out = tmp_path / "held_out.jsonl"
        held_out.write_text(PROBLEMS.read_text().splitlines()[0] + "\n")
        task = DatasetTask(path=str(PROBLEMS), held_out_path=str(held_out))
        (question,) = {str(p.prompt) for p in task.problems("held_out", 0, 0, 5)}
        assert question not in {str(p.prompt) for p in task.problems("train", 0, 0, 60)}

    def test_prompts(self) -> None:
        plain = DatasetTask(path=str(PROBLEMS), prompt_template="Q: {question} {{x}}\nA:")
        assert re.fullmatch(r"Q: .* \{x\}\nA:", str(plain.problems("train", 0, 0, 1)[0].prompt))
        chat = DatasetTask(path=str(PROBLEMS), system_prompt="Be brief.").problems("train", 0, 0, 1)[0].prompt
        assert isinstance(chat, list) and [m["role"] for m in chat] == ["system", "user"]

    def test_columns_and_answer_after(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", {"q": "one", "a": "so #### 1"}, {"q": "two", "a": "so #### 2"})
        options = {"path": file, "question_column": "q", "answer_column": "a", "answer_after": "####"}
        task = DatasetTask(**options, held_out_path=write(tmp_path / "b.jsonl", {"q": "three", "a": "#### 3"}))
        assert task.problems("held_out", 0, 0, 1)[0].answer == {"reference": "3"}

    def test_parquet_and_json(self, tmp_path: Path) -> None:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        rows = [json.loads(line) for line in PROBLEMS.read_text().splitlines()]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
        (tmp_path / "p.json").write_text(json.dumps(rows))
        tasks = [DatasetTask(path=str(path)) for path in (PROBLEMS, tmp_path / "p.parquet", tmp_path / "p.json")]
        first, *others = (task.problems("train", 0, 0, 10) for task in tasks)
        assert all(other == first for other in others)

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("a.jsonl", '{"question": "q", "answer": "1"}\n{"question": \n', r"a\.jsonl:2: not JSON"),
            ("a.jsonl", "\n[1]\n", r"a\.jsonl:2: is list"),
            ("a.jsonl", '{"question": "q"}\n', r"a\.jsonl:1: no field 'answer' \(there are: question\).*answer_column"),
            ("a.jsonl", '{"question": "q", "answer": null}\n', r"a\.jsonl:1: 'answer' is NoneType"),
            ("a.jsonl", '{"question": "q", "answer": " "}\n', r"a\.jsonl:1: 'answer' is empty"),
            ("a.jsonl", "", "no problem for the train split"),
            ("a.json", '{"question": "q"}', "holds dict, not a list"),
            ("a.json", "[1,\n}", r"a\.json:2: not JSON"),
            ("a.csv", "question,answer", "must end in .jsonl"),
            ("a.parquet", "no parquet", "not readable as parquet"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, name: str, text: str, says: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(TaskError, match=says):
            DatasetTask(path=str(tmp_path / name))

    def test_no_such_file(self) -> None:
        with pytest.raises(TaskError, match=r"no file 'missing\.jsonl'"):
            DatasetTask(path="missing.jsonl")

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"question": "\xff"}')
        with pytest.raises(TaskError, match="not UTF-8"):
            DatasetTask(path=str(tmp_path / "a.jsonl"))

    def test_hub_without_datasets_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(TaskError, match="pip install datasets"):
            DatasetTask(path="openai/gsm8k")


class TestMathVerdicts:
    @pytest.mark.parametrize(
        ("reference", "text", "outcome"),
        [
            ("5", "5", "correct"),
            ("1/2", "so \\boxed{\\frac{1}{2}}", "correct"),
            ("\\frac12", "The answer is 0.5", "correct"),
            ("1,234", "\\boxed{1234}", "correct"),
            ("x^2+1", "$1+x^2$", "correct"),
            ("42", "\\boxed{43}", "wrong"),
            ("42", "no idea", "unparsable"),
            ("42", "", "unparsable"),
        ],
    )
    def test_judge(self, reference: str, text: str, outcome: str) -> None:
        assert judge(reference, text).outcome == outcome

    def test_thinking_does_not_count(self) -> None:
        task = DatasetTask(path=str(PROBLEMS))
        answer = {"reference": "7"}
        assert task.verify(answer, "<think>\\boxed{3}</think>\\boxed{7}", "stop").outcome == "correct"
        assert task.verify(answer, "<think>\\boxed{7}</think>\\boxed{3}", "stop").outcome == "wrong"
        assert task.verify(answer, "\\boxed{7}", "length").outcome == "unparsable"

    def test_options_of_judging(self) -> None:
        strict = DatasetTask(path=str(PROBLEMS), require_thinking=True, judge_truncated=True)
        answer = {"reference": "7"}
        assert strict.verify(answer, "\\boxed{7}", "stop").outcome == "unparsable"
        assert strict.verify(answer, "</think>\\boxed{7}", "length").outcome == "correct"


def test_demonstration_is_a_pair() -> None:
    prompt, response = Demonstration("p", "r")
    assert (prompt, response) == ("p", "r")


def write(path: Path, *rows: dict[str, str]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
