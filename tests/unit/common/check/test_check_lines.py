"""Checks and their lines: whatever a check does, it is lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
from rich.console import Console

from vcppo.common.check.check_child import report
from vcppo.common.check.check_lines import Check, CheckLine, NotPossible, Result, failed, passed, warned
from vcppo.common.errors import VcppoError
from vcppo.deploy.check.render import Screen


def good(context: str) -> Iterator[Result]:
    yield passed(f"{context} is fine", "a detail")
    yield warned("odd", "look at it")


def refuses(context: str) -> Result:
    raise VcppoError(f"a.field = {context}: set it to 2")


def crashes(context: str) -> Iterator[Result]:
    yield passed("begins well")
    raise ZeroDivisionError("1/0")


def waits(context: str) -> Result:
    raise NotPossible("needs what failed above")


CHECKS = tuple(Check("g", run.__name__, run, 3.0) for run in (good, refuses, crashes, waits))


def test_every_end_of_a_check_is_a_line() -> None:
    lines = [line for check in CHECKS for line in check.lines("x")]
    assert [(line.name, line.status) for line in lines] == [
        ("good", "passed"), ("good", "warned"), ("refuses", "failed"), ("crashes", "passed"), ("crashes", "failed"),
        ("waits", "skipped"),
    ]  # fmt: skip
    assert lines[0].details == ("a detail",)
    assert lines[2].text == "a.field = x: set it to 2"
    assert "ZeroDivisionError: 1/0" in lines[4].text


def test_a_child_says_what_it_runs_and_where_it_is() -> None:
    out = io.StringIO()
    report(CHECKS, "x", out, first=1)
    messages = [json.loads(line) for line in out.getvalue().splitlines()]
    assert messages[0] == {"plan": [["g", check.name] for check in CHECKS]}
    assert [message["begin"] for message in messages if "begin" in message] == [1, 2, 3]
    assert [message["end"] for message in messages if "end" in message] == [1, 2, 3]
    assert messages[1]["deadline"] == 3.0
    line = CheckLine.from_dict(messages[2]["line"])
    assert (line.group, line.name, line.status) == ("g", "refuses", "failed")


@pytest.mark.parametrize("found", [None, [], {"status": "maybe"}, {}])
def test_what_is_no_line_is_refused(found: object) -> None:
    with pytest.raises(ValueError, match="no line"):
        CheckLine.from_dict(found)


def screen_text(screen: Screen) -> str:
    file = screen.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def make_screen() -> Screen:
    return Screen(Console(file=io.StringIO(), width=100))


def test_groups_are_shown_one_after_the_other() -> None:
    """The model's lines may come before the data's, and wait for them."""
    screen = make_screen()
    screen.expect(["data", "model"])
    screen.add(CheckLine("model", "loads", "passed", "135 M"))
    assert "135 M" not in screen_text(screen)
    screen.done("model")
    screen.add(CheckLine("data", "rows", "failed", "row 3", "drop it", ("seen",)))
    assert "row 3" in screen_text(screen)
    screen.done("data")
    text = screen_text(screen)
    assert text.index("row 3") < text.index("135 M")
    assert "→ drop it" in text and "│ seen" in text
    screen.finish(3.2)
    assert "1 passed, 1 failed in 3 s" in screen_text(screen)


def test_text_of_a_model_can_not_steer_the_terminal() -> None:
    screen = make_screen()
    screen.add(CheckLine("prompts", "as sent", "passed", "3 tokens", "", ("\x1b[31m[bold]red\u202e",)))
    assert "\x1b[31m" not in screen_text(screen)
    assert "\\x1b[31m[bold]red\\u202e" in screen_text(screen)


def test_places_in_files_are_no_emoji() -> None:
    screen = make_screen()
    screen.add(CheckLine("data", "rows", "warned", "rows.jsonl:100: asks it again"))
    assert "rows.jsonl:100: asks" in screen_text(screen)


def test_json_is_a_line_each_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(Console(file=io.StringIO()), as_json=True)
    screen.expect(["data"])
    screen.add(CheckLine("model", "loads", "failed", "no", "do", ("d",), 1.23456))
    screen.finish(2.0)
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {
        "group": "model", "name": "loads", "status": "failed", "text": "no", "remedy": "do", "details": ["d"],
        "seconds": 1.235,
    }  # fmt: skip
    assert last["summary"]["failed"] == 1
    assert failed("a", "b").status == "failed"
