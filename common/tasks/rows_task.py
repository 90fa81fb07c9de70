"""What tasks read from rows share: problems from a file or the Hugging Face hub, two splits, prompts, the judged part.

``path`` is a ``.jsonl``, ``.json`` (one list) or ``.parquet`` file, or the id of a hub data set (``openai/gsm8k``;
needs ``pip install datasets``). Every row is checked when the task is loaded; one error names all bad rows by file,
line and field. Which questions are the same is `vcppo.common.text.question_text.question_key`'s to say.
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import ChatMessages, Finding, Problem, Split, Task, TaskError
from vcppo.common.tasks.prompts.columns import text_of
from vcppo.common.tasks.prompts.filters import RowFilters
from vcppo.common.tasks.prompts.messages import instructions_in, messages_of, question_in, with_system_prompt
from vcppo.common.tasks.prompts.prompt_options import Prompter, PromptOptions, judged_part
from vcppo.common.tasks.prompts.tools import checked_tools, tools_of
from vcppo.common.tasks.rows import BadRow, Row, RowsError, read_rows
from vcppo.common.text.question_text import question_key, visible_text
from vcppo.common.text.yaml_text import one_line

_MAX_ANSWER_BYTES = 1 << 19
_FEW_HELD_OUT = 30
_SHOWN_REPEATED = 10  # findings; data that is repeated on purpose would fill pages


class RowsOptions(PromptOptions):
    """``task.options`` of every task made of rows."""

    path: str
    """A .jsonl, .json or .parquet file, or the id of a Hugging Face data set."""

    held_out_path: str | None = None
    """Held-out problems, likewise. None: a share of `path` is held out, by a hash of the question."""

    subset: str | None = None
    """Configuration name of a hub data set, e.g. `main` of openai/gsm8k."""

    hub_split: str = "train"
    """Which split of a hub data set `path` means."""

    hub_held_out_split: str = "test"
    """Which split of a hub data set `held_out_path` means."""

    evaluation_only: bool = False
    """All rows are held out; there is nothing to train on. For benchmarks."""

    question_column: str = "question"
    """Column with the question."""

    question_columns: list[str] | None = None
    """Several columns that make up the question, joined by blank lines, empty ones left out; instead of one."""

    messages_column: str | None = None
    """Column with a chat: a list of {role, content}, or JSON text of one; instead of a question."""

    tools_column: str | None = None
    """Column with the tools of a prompt: a list of JSON schemas, or JSON text of one. For the chat template."""

    tools: list[dict[str, Any]] | None = None
    """Tools of every prompt, instead of a column."""

    keep_where: dict[str, Any] = Field(default_factory=dict)
    """Column → value, list of values, or {min, max}: only rows that fit all of them are used."""

    keep: str | None = None
    """module:function of yours: it gets a row as a dict, and says by True or False whether the row is used."""

    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of questions held out when held_out_path is not given."""


class Question(NamedTuple):
    """A row as the task uses it.

    Attributes:
        text: the question, without what all prompts share.
        answer: `Problem.answer`.
        place: file and line.
        key: the same for every way to write the same question.
        messages: of a row that is a chat.
        tools: of a row that has some.
    """

    text: str
    answer: dict[str, object]
    place: str
    key: str
    messages: ChatMessages | None = None
    tools: list[dict[str, Any]] | None = None

    @property
    def asked(self) -> tuple[str, str]:
        """Equal for questions that have one right answer: a row's own system prompt or tools may change it."""
        if self.messages is None and self.tools is None:
            return self.key, ""
        return self.key, json.dumps([instructions_in(self.messages or []), self.tools])


class RowsTask(Task):
    """A finite set of questions, passed over again and again. Subclasses say what an answer is, and judge."""

    version: ClassVar[int] = 2  # 2: held out is what has the same normal form, not the same bytes

    def __init__(self, options: RowsOptions) -> None:
        self._rows_options = options
        _check_options(options)
        self._prompter = Prompter(options)
        self._filters = RowFilters(options.keep_where, options.keep)
        self._repeated: list[Finding] = []
        self._questions = self._load()
        # A permutation of 100,000 takes long enough not to draw it for every batch; two epochs meet in one batch.
        self._order = lru_cache(maxsize=8)(self._draw_order)

    @abstractmethod
    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """`Problem.answer` of a row; TaskError names the row's place."""

    def contradiction(self, first: Mapping[str, object], second: Mapping[str, object]) -> str | None:
        """Why two answers to one question can't both be right ("5, not 6"), where that is cheap to say for sure."""
        return None

    def answer_problem(self, answer: Mapping[str, object]) -> str | None:
        """Why an answer can't be used, where that is cheap to say; it is refused when the task is made."""
        return None

    def answer_findings(self, questions: Iterable[Question]) -> Iterator[Finding]:
        """What is wrong with answers beyond what is refused when the task is made."""
        return iter(())

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`: passes over the data, each in its own order drawn from the seed and the pass number."""
        if not self._questions[split] and count:
            raise TaskError(f"task.options.path = {self._rows_options.path!r} is for evaluation only: train on another")
        chosen = [self._numbered(split, seed, number) for number in range(start, start + count)]
        common = self._rows_options.tools
        return [
            Problem(self._prompter.prompt(each.text, each.messages, each.tools or common), each.answer)
            for each in chosen
        ]

    def num_problems(self, split: Split) -> int:
        """Rows of the split that have a question; after so many the sequence starts over."""
        return len(self._questions[split])

    def where(self, split: Split, seed: int, number: int) -> str:
        """File and line of the row."""
        return self._numbered(split, seed, number).place

    def left_out(self) -> Mapping[str, int]:
        """Rows that ``keep_where`` and ``keep`` leave out, of both splits."""
        return self._filters.left_out

    def questions(self, split: Split, count: int) -> list[str]:
        """The first `count` questions as they stand in the rows, without the prompt template."""
        return [question.text for question in self._questions[split][:count]]

    def findings(self) -> Iterator[Finding]:
        """Repeated questions, splits that are too small, options without effect; then the answers'."""
        options = self._rows_options
        yield from self._repeated[:_SHOWN_REPEATED]
        if (more := len(self._repeated) - _SHOWN_REPEATED) > 0:
            different = len({row.key for row in self._rows})
            text = f"{more} more rows ask again what another row asks; {different} questions in all"
            yield Finding("warning", options.path, text, "drop the rows, or leave them on purpose")
        for name in ("system_prompt", "instruction"):
            if options.prompt_template is not None and name in options.model_fields_set and getattr(options, name):
                text = f"{one_line(repr(getattr(options, name)), 80)} has no effect: prompt_template is set"
                yield Finding("warning", f"task.options.{name}", text, "write it into prompt_template, or leave it out")
        count = len(self._questions["held_out"])
        if count < _FEW_HELD_OUT:
            text = f"{count} held-out problems: pass@1 of 50 % has an interval of ± {98 / count**0.5:.0f} points"
            remedy = "add rows, raise task.options.held_out_fraction, or give a larger held_out_path"
            yield Finding("warning", options.held_out_path or options.path, text, remedy)
        yield from self.answer_findings(self._rows)

    def judged_part(self, response: str, finish_reason: FinishReason) -> str | None:
        """What follows the thinking; None: by the options there is nothing to judge."""
        return judged_part(self._rows_options, response, finish_reason)

    def _load(self) -> dict[Split, list[Question]]:
        options = self._rows_options
        problems: list[BadRow] = []
        train = self._read(options.path, options.hub_split, problems)
        held_out: list[Question] = []
        if options.held_out_path is not None and not options.evaluation_only:
            held_out = self._read(options.held_out_path, options.hub_held_out_split, problems)
        self._rows = [*train, *held_out]  # the repeated ones too, for findings
        problems += self._contradictions(self._rows)
        if problems:
            raise RowsError(problems)
        if options.evaluation_only:
            if not train:
                raise TaskError(
                    f"task.options.path = {options.path!r} holds no problem{self._said_left_out()}: add rows"
                )
            return {"train": [], "held_out": self._each_once(train)}
        if options.held_out_path is None:
            train, held_out = self._split(train)
        else:
            train = self._without(train, held_out)
        for split, questions in (("train", train), ("held_out", held_out)):
            if not questions:
                raise TaskError(
                    f"task.options.path = {options.path!r} leaves no problem for the {split} split"
                    f"{self._said_left_out()}: add rows, or set "
                    "task.options.held_out_path or held_out_fraction"
                )
        self._note_repeated(train)
        return {"train": train, "held_out": self._each_once(held_out)}

    def _read(self, path: str, hub_split: str, problems: list[BadRow]) -> list[Question]:
        """All questions of a source; what is wrong with its other rows is added to `problems`."""
        questions = []
        for row in read_rows(path, self._rows_options.subset, hub_split):
            if isinstance(row, BadRow):
                problems.append(row)
                continue
            try:
                if self._filters.keeps(row):
                    questions.append(self._question(row))
            except TaskError as error:
                problems.append(BadRow(row.place, str(error).removeprefix(f"{row.place}: ")))
        return questions

    def _said_left_out(self) -> str:
        left_out = ", ".join(f"{count} by {name}" for name, count in self._filters.left_out.items())
        return f" (left out: {one_line(left_out)})" if left_out else ""

    def _question(self, row: Row) -> Question:
        options = self._rows_options
        messages = None if options.messages_column is None else self._messages(row, options.messages_column)
        text = self.question_of(row) if messages is None else question_in(messages)
        answer = self.answer_of(row, text)
        size = len(json.dumps(answer))
        if size > _MAX_ANSWER_BYTES:  # it travels with the prompt
            raise TaskError(f"{row.place}: its answer takes {size} bytes, at most {_MAX_ANSWER_BYTES}: drop the row")
        if (problem := self.answer_problem(answer)) is not None:
            raise TaskError(f"{row.place}: {problem}")
        tools = None if options.tools_column is None else tools_of(row, options.tools_column)
        return Question(text, answer, row.place, question_key(text), messages, tools)

    def _messages(self, row: Row, column: str) -> ChatMessages:
        options = self._rows_options
        messages = messages_of(row, column)
        if options.system_prompt:
            with_system_prompt(messages, options.system_prompt, f"{row.place}: {column!r}")
        return messages

    def _contradictions(self, questions: Iterable[Question]) -> Iterator[BadRow]:
        first: dict[tuple[str, str], Question] = {}
        for question in questions:
            earlier = first.setdefault(question.asked, question)
            said = None if earlier is question else self.contradiction(question.answer, earlier.answer)
            if said is not None:
                text = f"asks the same question as {earlier.place} with another answer ({said}): drop one of the two"
                yield BadRow(question.place, text)

    def _without(self, train: list[Question], held_out: list[Question]) -> list[Question]:
        """A question in both files is held out: evaluation must not see what was trained on."""
        places = {question.key: question.place for question in held_out}
        for question in train:
            if question.key in places:
                text = f"is also held out ({places[question.key]}), so it is not trained on"
                self._repeated.append(Finding("warning", question.place, text, "drop one of the two rows"))
        return [question for question in train if question.key not in places]

    def _each_once(self, questions: list[Question]) -> list[Question]:
        """Held-out questions that are there twice would count twice."""
        self._note_repeated(questions, "; it is evaluated once")
        return list({question.key: question for question in reversed(questions)}.values())[::-1]

    def _note_repeated(self, questions: list[Question], consequence: str = "; it is trained on as often") -> None:
        first: dict[str, Question] = {}
        for question in questions:
            earlier = first.setdefault(question.key, question)
            if earlier is not question:
                text = f"asks the same question as {earlier.place}{consequence}"
                self._repeated.append(Finding("warning", question.place, text, "drop the row, or leave it on purpose"))

    def question_of(self, row: Row) -> str:
        """Text of the question; TaskError names the row's place."""
        options = self._rows_options
        if options.question_columns is None:
            text = text_of(row, options.question_column, "question_column")
            if not text.strip():
                raise TaskError(f"{row.place}: {options.question_column!r} is empty: give the question or drop the row")
            return text
        columns = [
            name for name in options.question_columns if row.values.get(name) is not None or name not in row.values
        ]
        text = "\n\n".join(filter(None, (text_of(row, name, "question_columns").strip() for name in columns)))
        if not text:
            raise TaskError(f"{row.place}: {', '.join(options.question_columns)} are all empty: drop the row")
        return text

    def _split(self, questions: list[Question]) -> tuple[list[Question], list[Question]]:
        """Train and held-out, by a hash of the question's own text: the split survives reordering and additions.

        All ways to write a question go the same way: that of the first of them in the order of the alphabet.
        """
        written: dict[str, str] = {}
        for question in questions:
            text = visible_text(question.text)
            written[question.key] = min(text, written.get(question.key, text))
        limit = self._rows_options.held_out_fraction * 2**64
        held_out = {
            key
            for key, text in written.items()
            if int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") < limit
        }
        return [each for each in questions if each.key not in held_out], [
            each for each in questions if each.key in held_out
        ]

    def _numbered(self, split: Split, seed: int, number: int) -> Question:
        questions = self._questions[split]
        epoch, place = divmod(number, len(questions))
        return questions[self._order(split, seed, epoch)[place]]

    def _draw_order(self, split: Split, seed: int, epoch: int) -> list[int]:
        order = list(range(len(self._questions[split])))
        random.Random(f"{split}:{seed}:{epoch}").shuffle(order)
        return order


def _check_options(options: RowsOptions) -> None:
    """TaskError where two options contradict each other."""
    given = options.model_fields_set
    if options.messages_column is not None:
        for name in ("question_column", "question_columns", "prompt_template"):
            if name in given and getattr(options, name) is not None:
                raise TaskError(
                    f"task.options.messages_column and {name} exclude each other: the chat is the prompt; leave one out"
                )
    if options.prompt_template is not None:
        for name in ("tools", "tools_column"):
            if getattr(options, name):
                raise TaskError(
                    f"task.options.{name} is for the model's chat template, and prompt_template takes its place: "
                    "leave one out"
                )
    if options.tools is not None:
        if options.tools_column is not None:
            raise TaskError("task.options.tools and tools_column exclude each other: leave one out")
        checked_tools(options.tools, "task.options.tools")
