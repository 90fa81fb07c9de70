"""Data files that are broken or hostile: an error names file and line, and what it can't use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcppo.common.tasks import TaskError
from vcppo.common.tasks.dataset import DatasetTask

GOOD = '{"question": "q", "answer": "1"}\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 100_000, r"a\.jsonl:2: not JSON that can be read"),
        (
            '{"question": "q", "answer": ' + "9" * 5000 + "}",
            r"a\.jsonl:2: not JSON that can be read \(Exceeds the limit",
        ),
        ('{"question": "\\ud800", "answer": "1"}', r"a\.jsonl:2: 'question' has half a character"),
        ('{"question": "q", "answer": "\\ud800"}', r"a\.jsonl:2: 'answer' has half a character"),
        (json.dumps({"question": "q" * 300_000, "answer": "1"}), r"a\.jsonl:2: 'question' has 300000 characters"),
        (json.dumps({"question": "q", "answer": "µ" * 100_000}), r"a\.jsonl:2: its answer takes"),
        ('{"\\u001b[2J": 1}', r"a\.jsonl:2: no field 'question' \(there are: \\x1b\[2J\)"),
        ('{"question": "\\u0000", "answer": ', r"a\.jsonl:2: not JSON"),
    ],
)
def test_a_line_is_refused_by_its_number(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD + line)
    with pytest.raises(TaskError, match=says) as caught:
        DatasetTask(path=str(tmp_path / "a.jsonl"))
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".jsonl"])
def test_a_name_too_long_for_a_file_is_one_line(name: str) -> None:
    with pytest.raises(TaskError, match=r"can't be looked at: File name too long"):
        DatasetTask(path=name)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + (GOOD * 3).encode())
    (tmp_path / "b.jsonl").write_text(GOOD.replace('"q"', '"other"'))
    task = DatasetTask(path=str(tmp_path / "a.jsonl"), held_out_path=str(tmp_path / "b.jsonl"))
    assert task.problems("train", 0, 0, 1)[0].answer == {"reference": "1"}
