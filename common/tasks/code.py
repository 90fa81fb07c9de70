"""A task of programs: problems with tests from a file or the Hugging Face hub; a response's program is run on them.

Judged is the last fenced code block after the thinking that is marked as a program, or the last unmarked one
(`code_answers.last_code_block`). It runs once a test, in a sandbox (`vcppo.common.sandbox`), reads the
test's input on stdin and must print its output and end with exit code 0:

| outcome | when |
|---|---|
| correct | every test |
| wrong | another output, or more than `max_output_kib` |
| timeout | a test took longer than its limit, or all of them longer than `total_seconds` |
| crash | a test ended with another exit code or by a signal (out of memory, say); or the verifier did, and logs it |
| unparsable | no closed code block, cut off, or no end of the thinking where one is required |

A row, as a line of a ``.jsonl`` file::

    {"question": "Print the sum of two integers.", "tests": [{"input": "1 2\\n", "output": "3\\n"}], "seconds": 1}

Public sets of this form: ``open-r1/codeforces`` (subset ``verifiable``: tests_column ``official_tests``,
time_limit_column ``time_limit``; the statement is in ``description``, ``input_format`` and ``output_format``: join them
into one column of a parquet file first), ``deepmind/code_contests`` (question_column ``description``, tests_column
``private_tests``).
Outputs are compared, so a problem with several right ones must not be among the rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import structlog
from pydantic import Field

from vcppo.common.records.trajectory import FinishReason, Outcome
from vcppo.common.sandbox import Isolation, Job, Limits, Result, SandboxError, probe, run_program
from vcppo.common.sandbox.python_job import python_job
from vcppo.common.tasks.code_answers import Case, cases_of, last_code_block, same_output
from vcppo.common.tasks.interface import TaskError, Verdict, parse_options
from vcppo.common.tasks.prompts.columns import text_of
from vcppo.common.tasks.rows import Row
from vcppo.common.tasks.rows_task import RowsOptions, RowsTask

log = structlog.get_logger(__name__)

_LONGEST_FINDING = 200  # characters


class CodeOptions(RowsOptions):
    """``task.options`` of code."""

    tests_column: str = "tests"
    """Column with the tests: a list of {input, output}, {input: [...], output: [...]}, or either as JSON text."""

    time_limit_column: str | None = None
    """Column with a test's limit in seconds of processor time. None, or empty in a row: time_limit_seconds."""

    time_limit_seconds: float = Field(default=2.0, gt=0)
    """Processor time a test may take; by the clock it may take twice that and a second."""

    total_seconds: float = Field(default=4.0, gt=0)
    """All tests of a program together, by the clock. Keep it below task.verifier_timeout_seconds."""

    memory_mib: int = Field(default=512, ge=16)
    """Address space of a program."""

    max_output_kib: int = Field(default=1024, ge=1)
    """Longest output of a test."""

    max_threads: int = Field(default=16, ge=1)
    """Threads of a program. It can't start other processes."""

    tolerance: float = Field(default=0.0, ge=0)
    """Numbers may be off by this, relative or absolute; 0: texts must be equal but for white space."""

    command: list[str] | None = None
    """What runs the file `program`, e.g. [/usr/bin/node, program]. None: this Python, without installed packages."""

    readable: list[str] = Field(default_factory=list)
    """Paths a program may read besides system libraries and this Python, e.g. where another interpreter lives."""

    require_isolation: bool = True
    """Refuse to start where the sandbox can't keep its promises; false: only say so in the log."""

    instruction: str = (
        "Write a Python 3 program that reads standard input and prints the answer, nothing else. "
        "End with the whole program in one ```python block."
    )
    """Follows the question in the chat form."""


class _Tests(NamedTuple):
    tests: list[Case]
    seconds: float


class CodeTask(RowsTask):
    """See the module's text. Options: `CodeOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = parse_options(CodeOptions, options, "task.options")
        self._tests: dict[str, _Tests] = {}
        super().__init__(self.options)

    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """``{"tests": key}``: tests can be megabytes, and every process that verifies has read them itself."""
        tests = _Tests(cases_of(row, self.options.tests_column), self._seconds(row))
        key = blake2b(json.dumps([question, tests]).encode(), digest_size=12).hexdigest()
        self._tests[key] = tests
        return {"tests": key}

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Runs the response's program; `Verdict.extracted` says how far it came."""
        final = self.judged_part(response, finish_reason)
        source = None if final is None else last_code_block(final, self._interpreter)
        if source is None:
            return Verdict("unparsable", None)
        tests, seconds = self._find_tests(answer)
        deadline = time.monotonic() + self.options.total_seconds
        for number, test in enumerate(tests, start=1):
            result = self._run(source, test, seconds, deadline - time.monotonic())
            outcome = self._judge(test, result)
            if outcome != "correct":
                return Verdict(outcome, f"test {number} of {len(tests)}: {_finding(result)}"[:_LONGEST_FINDING])
        return Verdict("correct", f"{len(tests)} tests")

    def warm_up(self) -> None:
        """Finds out what the sandbox can do here, says so, and refuses if it is too little."""
        isolation = self._isolation
        log.info("sandbox", isolation=isolation.describe())
        if isolation.missing and self.options.require_isolation:
            raise TaskError(
                f"programs can't be run safely here: {isolation.describe()}. Allow one of the layers (user namespaces; "
                "a kernel with Landlock), or set task.options.require_isolation=false if the programs can be trusted"
            )

    @cached_property
    def _interpreter(self) -> str:
        """Its name without folder and version: by it a response's blocks are told apart."""
        command = self.options.command
        return "python" if command is None else Path(command[0]).name.rstrip(".0123456789")

    @cached_property
    def _isolation(self) -> Isolation:
        try:
            return probe(self._job(source="", test=Case("", ""), limits=Limits()))
        except SandboxError as error:
            raise TaskError(f"not even an empty program runs: {error}; see task.options.command, readable") from error

    def _run(self, source: str, test: Case, seconds: float, left: float) -> Result:
        options = self.options
        limits = Limits(
            cpu_seconds=seconds,
            wall_seconds=max(0.0, min(2 * seconds + 1, left)),
            memory_bytes=options.memory_mib * 2**20,
            num_tasks=options.max_threads,
            output_bytes=options.max_output_kib * 2**10,
        )
        return run_program(self._job(source, test, limits), self._isolation.layers)

    def _job(self, source: str, test: Case, limits: Limits) -> Job:
        options = self.options
        return python_job(source, limits, stdin=test.input, command=options.command, readable=options.readable)

    def _judge(self, test: Case, result: Result) -> Outcome:
        if result.ending == "timeout":
            return "timeout"
        if result.ending == "flood":
            return "wrong"
        if result.ending == "signalled" or result.exit_code != 0:
            return "crash"
        printed = result.stdout.decode(errors="replace")
        return "correct" if same_output(test.output, printed, self.options.tolerance) else "wrong"

    def _find_tests(self, answer: Mapping[str, object]) -> _Tests:
        try:
            return self._tests[str(answer["tests"])]
        except KeyError as error:
            raise TaskError(
                f"no tests {answer.get('tests')!r}: the prompt was made from other rows than {self.options.path!r} here"
            ) from error

    def _seconds(self, row: Row) -> float:
        column = self.options.time_limit_column
        if column is None or row.values.get(column) is None:
            return self.options.time_limit_seconds
        text = text_of(row, column, "time_limit_column")
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 3600:
            raise TaskError(f"{row.place}: {column!r} = {text!r} is no number of seconds between 0 and 3600")
        return seconds


def _finding(result: Result) -> str:
    said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return " ".join([f"{result.ending}, exit code {result.exit_code}, {result.cpu_seconds:.2f} s", *said])
