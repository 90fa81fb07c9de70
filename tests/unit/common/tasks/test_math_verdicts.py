"""Verdicts on mathematical answers: 800 pairs as a careful person judges them, and hostile ones in bounded time."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.paths import DATA, ROOT
from vcppo.common.tasks import Verdict
from vcppo.common.tasks.dataset import DatasetTask
from vcppo.common.tasks.math_answers import judge, reference_problem
from vcppo.common.tasks.maths.text import boxes, normal_form
from vcppo.common.tasks.maths.values import Unreadable, exact_value

TABLE = DATA / "math_verdicts.tsv"


class Pair(NamedTuple):
    line: int
    reference: str
    response: str
    outcome: str


def read_table() -> dict[str, list[Pair]]:
    """Pairs by section."""
    sections: dict[str, list[Pair]] = {}
    title = ""
    for number, line in enumerate(TABLE.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("#"):
            title = line.strip("# ")
        elif line:
            reference, response, outcome, *_ = line.split("\t")
            sections.setdefault(title, []).append(Pair(number, reference, response.replace("⏎", "\n"), outcome))
    return sections


SECTIONS = read_table()
ALL = [pair for pairs in SECTIONS.values() for pair in pairs]


@pytest.mark.parametrize("section", SECTIONS)
def test_verdicts_are_a_persons(section: str) -> None:
    found = {pair.line: judge(pair.reference, pair.response).outcome for pair in SECTIONS[section]}
    wrong = [f"line {pair.line}: {found[pair.line]}" for pair in SECTIONS[section] if found[pair.line] != pair.outcome]
    assert wrong == []


def test_the_table_is_large_and_has_every_outcome() -> None:
    outcomes = [pair.outcome for pair in ALL]
    assert len(ALL) >= 300 and set(outcomes) == {"correct", "wrong", "unparsable"}
    assert outcomes.count("wrong") >= 150
    assert len({(pair.reference, pair.response) for pair in ALL}) == len(ALL)


def test_every_reference_is_right_against_itself_in_a_box() -> None:
    assert {pair.reference: problem for pair in ALL if (problem := reference_problem(pair.reference))} == {}


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("", "is empty"),
        (" \t", "is empty"),
        ("$", "signs that don't count"),
        (r"\text{}", "signs that don't count"),
        (r"\boxed{}", "signs that don't count"),
        (r"\frac{1}{2", "brace without its partner"),
        ("1}", "brace without its partner"),
        ("48/2 = 24 clips\n#### 72", "whole solution"),
        ("x" * 3000, "3000 characters"),
    ],
)
def test_a_reference_that_nothing_is_right_against(reference: str, says: str) -> None:
    assert says in (reference_problem(reference) or "none")


HOSTILE = {
    "tower": "$9^{9^{9^{9}}}$",
    "boxed tower": r"\boxed{9^{9^{9^{9}}}}",
    "tower of e": r"\boxed{e^{e^{e^{e^{e}}}}}",
    "tower of x": r"\boxed{x^{x^{x^{x^x}}}}",
    "power": r"\boxed{2^{999999999}}",
    "factorial": r"\boxed{100000000!}",
    "factorials": r"\boxed{(((9!)!)!)!}",
    "binomial": r"\boxed{\binom{1000000000}{500000000}}",
    "gamma": r"\boxed{\Gamma(1000000.5)}",
    "sum": r"\boxed{\sum_{k=1}^{10^9} k}",
    "integral": r"\boxed{\int_0^\infty \sin(x^x) dx}",
    "fractions": r"\boxed{" + r"\frac{1}{" * 3000 + "1" + "}" * 3001,
    "parentheses": "$" + "(" * 20_000 + "1" + ")" * 20_000 + "$",
    "parentheses in a box": r"\boxed{" + "(" * 1500 + "1" + ")" * 1500 + "}",
    "squares": r"\boxed{((((((((((((x+1)^{2})^{2})^{2})^{2})^{2})^{2})^{2})^{2})^{2})^{2})^{2})^{2}}",
    "tuples": r"\boxed{" + "(1," * 40 + "1" + ")" * 40 + "}",
    "digits": r"\boxed{" + "9" * 100_000 + "}",
    "signs": r"\boxed{" + "-" * 3000 + "1}",
    "list": r"\boxed{" + "1," * 50_000 + "1}",
    "short list": r"\boxed{" + "1," * 1900 + "1}",
    "relations": r"\boxed{" + "1<" * 1500 + "2}",
    "boxes": r"\boxed{1}" * 30_000,
    "boxes in boxes": r"\boxed{" * 3000 + "1" + "}" * 3000,
    "unclosed boxes": r"\boxed{" * 3000,
    "roots": r"\boxed{" + "√" * 100_000 + "}",
    "halves": r"\boxed{" + "½" * 100_000 + "}",
    "braces": "{" * 100_000 + "}" * 100_000,
    "dollars": "$ a " * 50_000,
    "answers": "the answer is " * 50_000,
    "answers to": "answer to " * 50_000,
    "marks": "#### \n" * 50_000,
    "lines": "\n" * 100_000,
    "blanks": " " * 1_000_000,
    "numbers": "1 " * 200_000,
    "slashes": "1/" * 100_000,
    "half a character": "\ud800 $1$",
    "NUL": "\0$1$",
    "division by zero": r"\boxed{\frac{1}{0}}",
}


@pytest.mark.parametrize("reference", ["42", "2, 3", "x^2+1", "(1,2)"])
def test_hostile_answers_take_bounded_time(reference: str) -> None:
    judge("x+1", "$1+x$")  # SymPy is imported
    for name, text in HOSTILE.items():
        began = time.process_time()
        outcome = judge(reference, text).outcome
        assert outcome in ("wrong", "unparsable"), name
        assert time.process_time() - began < 20, name


def test_what_was_read_is_told_in_bounded_length() -> None:
    assert judge("42", r"so \boxed{x = 42}") == Verdict("correct", "x = 42")
    assert judge("42", r"\boxed{43}") == Verdict("wrong", "43")
    assert len(judge("42", r"\boxed{" + "9" * 100_000 + "}").extracted or "") == 200


def test_boxes_in_the_order_they_end() -> None:
    text = r"\boxed{a \boxed{b}} \{ \fbox{c}} \boxed 5."
    assert [box.content(text) for box in boxes(text) or []] == ["b", r"a \boxed{b}", "c", "5"]
    assert boxes(r"\boxed{1} \boxed{2") is None
    assert boxes("{ } }") == []


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("−½", r"-\frac{1}{2}"),
        ("$-\\dfrac12$", r"-\frac{1}{2}"),
        (r"\left( 1,\, 2 \right)", "( 1, 2 )"),
        ("１２", "12"),
        ("x²", "x^{2}"),
        ("π", r"\pi"),
        ("≤ 3", r"\le 3"),
    ],
)
def test_normal_form(written: str, normal: str) -> None:
    assert normal_form(written) == normal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-2^{2}", "-4"),
        (r"2\frac{1}{2}", "5/2"),
        ("-1 1/2", "-3/2"),
        (r"0.1\overline{6}", "1/6"),
        ("(1+2)(3)", "9"),
        ("5!/3!", "20"),
    ],
)
def test_exact_values(text: str, value: str) -> None:
    assert str(exact_value(text)) == value


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", "0^{-1}", "9^{9^{9}}", "99999!", "(" * 60 + "1" + ")" * 60, "1 2", "1_000"]
)
def test_what_is_no_arithmetic(text: str) -> None:
    with pytest.raises(Unreadable):
        exact_value(text)


def test_ten_thousand_references_are_tried_in_a_minute(tmp_path: Path) -> None:
    """A twentieth of them here; the time is linear."""
    forms = ("{}", r"\frac{{{}}}{{7}}", r"\sqrt{{{}}}", "({}, 1)", r"\text{{option {}}}", r"\${}.50", "x = {}")
    rows = [f'{{"question": "q{n}", "answer": "{forms[n % 7].format(n)}"}}\n'.replace("\\", "\\\\") for n in range(500)]
    (tmp_path / "a.jsonl").write_text("".join(rows))
    task = DatasetTask(path=str(tmp_path / "a.jsonl"))
    began = time.process_time()
    assert [finding for finding in task.findings() if finding.level == "error"] == []
    assert time.process_time() - began < 20


def test_the_table_of_the_docs_is_true() -> None:
    page = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| (`.*`) \| (`.*`) \|$", page, re.MULTILINE)
    assert len(rows) >= 15
    for reference, right, wrong in rows:
        for outcome, answers in (("correct", right), ("wrong", wrong)):
            for answer in re.findall(r"`([^`]+)`", answers):
                assert judge(reference, f"\\boxed{{{answer}}}").outcome == outcome, (reference, answer)
