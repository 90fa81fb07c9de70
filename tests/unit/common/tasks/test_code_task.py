"""The task of programs: which block is the program, what counts as right, every outcome told apart."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import DATA
from vcppo.common.config import TaskConfig
from vcppo.common.sandbox import Isolation, Result, SandboxError
from vcppo.common.tasks import Split, TaskError, Verdict, code, load_task
from vcppo.common.tasks.code import CodeTask
from vcppo.common.tasks.code_answers import Case, cases_of, last_code_block, same_output
from vcppo.common.tasks.rows import Row

PROGRAMS = str(DATA / "programs.jsonl")
SPLITS: tuple[Split, ...] = ("train", "held_out")


def block(source: str) -> str:
    return f"<think>\n```python\nprint('not this one')\n```\n</think>\nHere it is:\n```python\n{source}\n```\nDone."


USAGES = [
    "Example usage:", "Here's how you can use it:", "You can test it with:", "You can run it like this:",
    "Let's test the function:", "This will print:", "The output will be:", "Output", "**Output:**",
    "### Example", "For example:", "e.g.:", "To run the program:", "Usage", "Now let's try it out:",
    "Here is an example of how to use it:", "To test this code, run:", "When run, it prints:",
    "Running this with input 3 gives:", "Sample Input 1:", "Input", "Test:", "Let me verify with an example:",
    "Check:", "Example input and output:", "Call it like this:", "which outputs:", "The expected output is:",
    "Then test with:", "Let's verify:", "Here's a quick test:", "You can call the function as follows:",
    "Unit tests:", "Tests:", "Here are some test cases:", "Driver code:", "Here is an example run:",
    "If you run this, you'll see:",
    "Here’s how you can use it:",
]  # fmt: skip
ATTEMPTS = [
    "Here is the code:", "Code:", "Solution code:", "Use this code:", "Try this:", "You can use this program:",
    "Python code:", "My solution:", "And with a loop:", "Now the program reads it all:",
    "It should print the sum, so:", "We can write:", "Alternatively:", "The same in fewer lines:",
    "Here's the updated code with an example:", "Run this corrected version instead:",
    "Therefore the code is:", "Check for an even number first:", "The results are added:",
    "Using the formula above:", "Using recursion:", "Here is the solution:", "Final solution:",
    "Here's the corrected code:", "Now the full program:", "Putting it together:", "Improved version:",
    "Corrected program:", "Here is the final code with the fix:", "So the program is:",
    "The complete code with tests removed:", "Here is a version that prints the result:", "This runs in O(n):",
    "A faster solution that reads the input:", "Final answer:", "Optimized:",
    "The code that passes the tests:", "Program that uses the input:",
    "Here is the program which outputs the sum:", "Revised solution, tested on the example:",
]  # fmt: skip


class TestCodeBlock:
    @pytest.mark.parametrize(
        ("text", "source"),
        [
            ("```python\na\n```", "a\n"),
            ("```\na\n```\ntext\n```py\nb\n\nc\n```\nmore", "b\n\nc\n"),
            ("~~~\na\n~~~", "a\n"),
            ("````\n```\na\n```\n````", "```\na\n```\n"),
            ("```python\na\n```python\nb\n```", "a\n```python\nb\n"),
            ("```python\na\n```\n```python\nb", "a\n"),
            ("1. so\n  ```python\na\n  ```", "a\n"),
            ("```python\r\na\r\n```\r\n", "a\n"),
            ("```\n```", "\n"),
            ("a ``` b", None),
            ("```python\na", None),
            ("```a``` b\n```", None),
            ("", None),
        ],
    )
    def test_the_last_closed_one(self, text: str, source: str | None) -> None:
        assert last_code_block(text) == source

    @pytest.mark.parametrize(
        "text",
        [
            "```python\nPROGRAM\n```\n\nExample:\n```\n1 2\n3\n```",
            "```python\nPROGRAM\n```\nOutput:\n```text\n3\n```",
            "```python\nPROGRAM\n```\nRun it:\n```bash\npython a.py < in.txt\n```",
            "```python\nPROGRAM\n```\n```output\n1\n```",
            "```py\nPROGRAM\n```\n```json\n{}\n```",
            "```Python 3\nPROGRAM\n```\n```\n1\n```",
            "```python3\nPROGRAM\n```\n~~~\n1\n~~~",
            "```PYTHON\nPROGRAM\n```\n```\n1\n```",
            "```{.python .numberLines}\nPROGRAM\n```\n```\n1\n```",
            '```python title="a.py"\nPROGRAM\n```\n```\n1\n```',
            "```python:main.py\nPROGRAM\n```\n```\n1\n```",
            "```python\nPROGRAM\n```\n```cpp\nint main(){}\n```",
            "```cpp\nPROGRAM\n```\n```\n1\n```",
            "```\nPROGRAM\n```\nOutput:\n```\n1\n```",
            "```\nPROGRAM\n```\n**Example:**\n\n```\n1\n```",
            "Sample run\n```\n$ x\n```\nSolution\n```\nPROGRAM\n```",
            "```python\nPROGRAM\n```\nExample usage:\n```python\nprint(solve(3))\n```",
            "Here's an example solution:\n```python\nPROGRAM\n```\n",
            "```python\nprint(0)\n```\nCorrected:\n```python\nPROGRAM\n```",
            "```python\nPROGRAM\n```.",
            "```python\nPROGRAM\n```**\n",
            "1. Solution:\n\n    ```python\n    PROGRAM\n    ```\n",
            "- ```python\n  PROGRAM\n  ```",
            "1. ```python\n   PROGRAM\n   ```",
            "\t```python\n\tPROGRAM\n\t```",
            "> ```python\n> PROGRAM\n> ```",
            "```python\r\nPROGRAM\r\n```\r\n```\r\n1\r\n```\r\n",
            "~~~python\nPROGRAM\n~~~",
            "````markdown\n```python\nPROGRAM\n```\n````",
            "```python\nPROGRAM\n```\n```python\nprint(2)",
        ],
    )
    def test_the_program_among_blocks(self, text: str) -> None:
        assert last_code_block(text) == "PROGRAM\n"

    @pytest.mark.parametrize("introduction", USAGES)
    def test_a_block_that_uses_the_program_is_not_the_program(self, introduction: str) -> None:
        text = f"Solution:\n```python\nPROGRAM\n```\n{introduction}\n```python\nprint(solve(3))\n```\n"
        assert last_code_block(text) == "PROGRAM\n"

    @pytest.mark.parametrize("introduction", ATTEMPTS)
    def test_another_attempt_is(self, introduction: str) -> None:
        text = f"First:\n```python\nprint(0)\n```\n{introduction}\n```python\nPROGRAM\n```\n"
        assert last_code_block(text) == "PROGRAM\n"

    @pytest.mark.parametrize("label", ["bash", "text", "json", "output", "markdown", "pycon"])
    def test_what_is_never_a_program(self, label: str) -> None:
        assert last_code_block(f"```{label}\nls\n```") is None

    def test_another_interpreters_blocks(self) -> None:
        text = "```js\na\n```\n```sh\nnode a\n```"
        assert (last_code_block(text, "node"), last_code_block(text, "bash")) == ("a\n", "node a\n")

    def test_lines_end_where_python_says(self) -> None:
        assert last_code_block("```python\nprint('\u2028\x0c')\n```") == "print('\u2028\x0c')\n"

    @given(st.text(alphabet="`~ \nax", max_size=60))
    def test_never_raises(self, text: str) -> None:
        found = last_code_block(text)
        assert found is None or found.endswith("\n")

    def test_linear(self) -> None:
        """Openers that nothing closes are what regular expressions go quadratic on."""
        began = time.process_time()
        assert last_code_block("```python\n" * 100_000) is None
        assert last_code_block("`" * 1_000_000) is None
        assert last_code_block("> " * 500_000) is None
        assert last_code_block("~~~" + " " * 500_000 + "~\na\n~~~") == "a\n"
        assert last_code_block("Example " * 100_000 + "\n```\na\n```") == "a\n"
        assert time.process_time() - began < 20


class TestOutputs:
    @pytest.mark.parametrize(
        ("expected", "printed", "tolerance", "same"),
        [
            ("1 2\n", "1  2", 0, True),
            ("1\n2\n", "1 2 ", 0, True),
            ("", "\n", 0, True),
            ("1 2", "1", 0, False),
            ("1", "1 2", 0, False),
            ("1", "1.0", 0, False),
            ("1", "1.0", 1e-9, True),
            ("0.333333", "0.333334", 1e-5, True),
            ("0.333333", "0.333334", 1e-9, False),
            ("1e6", "1000000.5", 1e-6, True),
            ("yes", "YES", 1e-6, False),
            ("1", "nan", 1e-6, False),
            ("0", "inf", 1.0, False),
            ("nan", "nan", 1e-6, True),
            ("1e999", "1e998", 1e-6, False),
            ("1000000006", "1000000005", 1e-6, False),
            ("1000000000000000001", "1000000000000000002", 1e-6, False),
            ("1000000007", "1e9", 1e-6, False),
            ("1000000007", "1000000006.0", 1e-6, False),
            ("1000000007", "1.000000007e9", 1e-6, True),
            ("2", "2.0000001", 1e-6, True),
            ("7", "007", 1e-6, True),
            ("7", "007", 0, False),
            ("0.50", "0.5", 1e-9, True),
            ("0.50", "0.5", 0, False),
            ("1000", "1_000", 1e-6, False),
            ("12", "１２", 1e-6, False),
            ("0.1", "٠.١", 1e-3, False),
            ("1", "True", 1e-6, False),
            ("1" * 400, "1" * 399 + "2", 1e-6, False),
            ("1" * 400 + ".5", "1" * 400, 1e-6, False),
            ("1 2", "1\u00a02", 0, False),
        ],
    )
    def test_word_by_word(self, expected: str, printed: str, tolerance: float, same: bool) -> None:
        assert same_output(expected, printed, tolerance) is same


PAIR = {"input": "1\n", "output": "2\n"}


class TestRows:
    @pytest.mark.parametrize(
        "value",
        [
            [PAIR],
            {"input": ["1\n"], "output": ["2\n"]},
            {"inputs": ["1\n"], "outputs": ["2\n"], "fn_name": None},
            json.dumps([PAIR]),
            json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]}),
        ],
    )
    def test_every_form(self, value: Any) -> None:
        assert cases_of(Row({"tests": value}, "here:1"), "tests") == [Case("1\n", "2\n")]

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({}, "no field 'tests'.*tests_column"),
            ({"tests": None}, "not a list of tests"),
            ({"tests": []}, "not a list of tests"),
            ({"tests": "no"}, "not JSON"),
            ({"tests": {"input": ["1"], "output": []}}, "lists of one length"),
            ({"tests": {"input": "1", "output": "2"}}, "lists of one length"),
            ({"tests": [PAIR, {"input": "1"}]}, "'tests' number 2: not {input: text, output: text}"),
            ({"tests": [PAIR, 3]}, "number 2: not {input"),
        ],
    )
    def test_bad_rows_are_named(self, values: dict[str, Any], says: str) -> None:
        with pytest.raises(TaskError, match=f"^here:1: .*{says}"):
            cases_of(Row(values, "here:1"), "tests")

    @pytest.mark.parametrize(
        ("seconds", "says"),
        [("soon", "no number of seconds"), (0, "no number"), (True, "is bool"), ("nan", "no number")],
    )
    def test_bad_time_limits(self, seconds: Any, says: str, tmp_path: Path) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps({"question": "q", "tests": [PAIR], "seconds": seconds}))
        with pytest.raises(TaskError, match=rf"a\.jsonl:1: 'seconds'.*{says}"):
            CodeTask(path=str(file), time_limit_column="seconds")


class TestProblems:
    def test_built_in_and_split(self) -> None:
        task = load_task(TaskConfig(name="code", options={"path": PROGRAMS, "held_out_fraction": 0.3}))
        train, held_out = ({str(p.prompt) for p in task.problems(split, 0, 0, 50)} for split in SPLITS)
        assert len(train) + len(held_out) == 12 and not train & held_out
        assert all("```python" in prompt for prompt in train | held_out)

    def test_tests_stay_at_home(self) -> None:
        """What travels is a key of fixed size, the same in every process that has read the same rows."""
        here, there = (CodeTask(path=PROGRAMS).problems("train", 0, 0, 5) for _ in range(2))
        assert here == there
        assert all(len(json.dumps(problem.answer)) < 50 for problem in here)

    def test_unknown_options_are_refused(self) -> None:
        with pytest.raises(TaskError, match=r"task\.options\.answer_column"):
            CodeTask(path=PROGRAMS, answer_column="answer")


@pytest.fixture(scope="module")
def task() -> CodeTask:
    options = {"held_out_fraction": 0.3, "time_limit_column": "seconds", "total_seconds": 20, "memory_mib": 128}
    task = CodeTask(path=PROGRAMS, **options)
    task.warm_up()
    return task


def answer_to(task: CodeTask, question: str) -> dict[str, object]:
    for split in SPLITS:
        for problem in task.problems(split, 0, 0, 20):
            if question in str(problem.prompt):
                return problem.answer
    raise AssertionError(question)


SORT = "input(); print(*sorted(map(int, input().split())))"


class TestVerdicts:
    @pytest.mark.parametrize(
        ("source", "outcome", "finding"),
        [
            (SORT, "correct", "3 tests"),
            ("input(); print(*sorted(map(int, set(input().split()))))", "wrong", "test 3 of 3: exited, exit code 0"),
            ("print()", "wrong", "test 1 of 3"),
            ("", "wrong", "test 1 of 3"),
            ("while True: pass", "timeout", "test 1 of 3: "),
            ("import time; time.sleep(60)", "timeout", "test 1 of 3: "),
            ("1 / 0", "crash", "exit code 1, .*ZeroDivisionError: division by zero"),
            ("def", "crash", "SyntaxError"),
            (SORT + "; raise SystemExit(3)", "crash", "exit code 3"),
            ("bytearray(2**30)", "crash", "MemoryError"),
            ("import os; os.kill(os.getpid(), 11); os.abort()", "crash", "signalled"),
            ("while True: print('1 2 3')", "wrong", "flood"),
            ("import os; print(os.fork())", "crash", "PermissionError"),
            ("exit()", "wrong", "test 1 of 3: exited, exit code 0"),
            ("print(sys.path)", "crash", "NameError"),  # nothing is imported for it
            ("import pip", "crash", "ModuleNotFoundError"),  # what is installed beside vcppo is not
        ],
    )
    def test_outcomes(self, task: CodeTask, source: str, outcome: str, finding: str) -> None:
        verdict = task.verify(answer_to(task, "second n integers"), block(source), "stop")
        assert verdict.outcome == outcome
        assert re.search(finding, str(verdict.extracted)) and len(str(verdict.extracted)) <= 200

    @pytest.mark.parametrize(
        ("response", "finish_reason"),
        [("", "stop"), ("print(1)", "stop"), (f"```\n{SORT}\n```\n</think>\nno code", "stop"), (block(SORT), "length")],
    )
    def test_unparsable(self, task: CodeTask, response: str, finish_reason: Any) -> None:
        answer = answer_to(task, "second n integers")
        assert task.verify(answer, response, finish_reason) == Verdict("unparsable", None)

    def test_hash_order_is_fixed(self, task: CodeTask) -> None:
        """A program that depends on it gets one verdict, whoever asks."""
        guess = "input(); print(list({'a', 'b', 'c', 'd'}))"
        answer = answer_to(task, "second n integers")
        tests = task._tests[str(answer["tests"])].tests
        printed = {task._run(guess, tests[0], 1.0, 10.0).stdout for _ in range(3)}
        assert len(printed) == 1

    def test_all_tests_together_have_a_deadline(self, tmp_path: Path) -> None:
        file = tmp_path / "many.jsonl"
        tests = [{"input": "", "output": "1"}] * 1000
        file.write_text("\n".join(json.dumps({"question": f"q{i}", "tests": tests}) for i in range(2)))
        task = CodeTask(path=str(file), held_out_path=PROGRAMS, total_seconds=1.0, tests_column="tests")
        began = time.monotonic()
        verdict = task.verify(task.problems("train", 0, 0, 1)[0].answer, "```\nprint(1)\n```", "stop")
        assert verdict.outcome == "timeout" and time.monotonic() - began < 15

    def test_another_interpreter(self) -> None:
        task = CodeTask(path=PROGRAMS, command=["/bin/sh", "program"])
        answer = answer_to(task, "print it reversed")
        assert (
            task.verify(answer, "```sh\nread -r x; [ $x = abc ] && echo cba || echo $x\n```", "stop").outcome
            == "correct"
        )

    def test_other_rows_than_the_prompt_s(self, task: CodeTask) -> None:
        with pytest.raises(TaskError, match="other rows"):
            task.verify({"tests": "0" * 24}, block(SORT), "stop")

    def test_a_broken_sandbox_is_not_the_program_s_fault(self, task: CodeTask, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Any) -> Result:
            raise SandboxError("no more processes")

        monkeypatch.setattr(code, "run_program", broken)
        with pytest.raises(SandboxError):
            task.verify(answer_to(task, "print it reversed"), block("1"), "stop")


class TestIsolation:
    """What the machine can't do is said, and by default refused."""

    weak = Isolation(frozenset({"user"}), {"seccomp": "Invalid argument", "landlock": "not supported"})

    def test_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(code, "probe", lambda job: self.weak)
        with pytest.raises(TaskError, match=r"no landlock: not supported.*NOT PROMISED: no network.*require_isolation"):
            CodeTask(path=PROGRAMS).warm_up()

    def test_allowed_and_logged(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(code, "probe", lambda job: self.weak)
        CodeTask(path=PROGRAMS, require_isolation=False).warm_up()
        assert "NOT PROMISED: no network, no files but its own, no hold on other processes" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("layers", "missing"),
        [
            ({"namespaces"}, []),
            ({"seccomp", "landlock"}, []),
            ({"seccomp", "user"}, ["no files but its own"]),
            ({"landlock"}, ["no network", "no hold on other processes"]),
        ],
    )
    def test_promises(self, layers: set[Any], missing: list[str]) -> None:
        assert Isolation(frozenset(layers), {}).missing == missing

    def test_no_interpreter(self) -> None:
        with pytest.raises(TaskError, match=r"not even an empty program runs.*task\.options\.command"):
            CodeTask(path=PROGRAMS, command=["/no/such/python", "program"]).warm_up()


SOLUTIONS = {
    "print their sum": "print(sum(map(int, input().split())))",
    "print it reversed": "print(input()[::-1])",
    "second n integers": SORT,
    "Fibonacci": "a, b = 0, 1\nfor _ in range(int(input())): a, b = b, a + b\nprint(a)",
    "brackets": "s = input()\nwhile any(p in s for p in ('()', '[]', '{}')):\n"
    "    for p in ('()', '[]', '{}'): s = s.replace(p, '')\nprint('NO' if s else 'YES')",
    "prime factors": "n, p = int(input()), 2\nwhile n > 1:\n    if n % p: p += 1\n    else: print(p, end=' '); n //= p",
    "mean": "n = int(input()); print(f'{sum(map(float, input().split())) / n:.6f}')",
    "common subsequence": "a, b = input(), input()\nd = [0] * (len(b) + 1)\nfor x in a:\n    e = d[:]\n"
    "    for i, y in enumerate(b): d[i + 1] = e[i] + 1 if x == y else max(d[i], e[i + 1])\nprint(d[-1])",
    "connected components": "n, m = map(int, input().split()); s = {frozenset([i]) for i in range(1, n + 1)}\n"
    "for _ in range(m):\n"
    "    e = set(map(int, input().split())); j = [c for c in s if c & e]; s -= set(j); s.add(frozenset().union(*j))\n"
    "print(len(s))",
    "different word": "import collections, sys\n"
    "for w, k in sorted(collections.Counter(sys.stdin.read().split()).items()): print(w, k)",
    "modulo m": "print(pow(*map(int, input().split())))",
    "leap year": "import calendar; print('YES' if calendar.isleap(int(input())) else 'NO')",
}


@pytest.mark.parametrize("question", SOLUTIONS)
def test_the_fixture_s_problems_can_be_solved(task: CodeTask, question: str) -> None:
    assert len(SOLUTIONS) == 12
    assert task.verify(answer_to(task, question), block(SOLUTIONS[question]), "stop").outcome == "correct"
