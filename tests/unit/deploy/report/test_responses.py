"""Responses on the page of a run: which ones, their colours, and text that would like to be markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.unit.rig.fake_run import make_run
from tests.unit.rig.learner_samples import trajectory
from tests.unit.rig.written_samples import write_step
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.report import write_report
from vcppo.deploy.report.responses import MAX_TOKENS, read_responses
from vcppo.deploy.samples.token_view import turning_point, value_line

HOSTILE = "<script>alert('x')</script>\x1b[31m\u202e\" onmouseover='x"
WORDS = [HOSTILE, *(f"word{number}" for number in range(1, 200))]


def responses(count: int, length: int = 12, words: int = 100) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    made = [trajectory(rng, f"rl-{i:08d}-0", 4, length, tool_text=0.0, group=f"rl-{i:08d}") for i in range(count)]
    return [
        replace(
            each, reward=float(i % 3) - 1, prompt_token_ids=each.prompt_token_ids % words,
            response_token_ids=each.response_token_ids % words,
        )
        for i, each in enumerate(made)
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path)


def test_extremes_of_the_first_and_the_last_step_each_once(folder: RunFolder) -> None:
    for step in (1, 2, 7):
        write_step(folder.samples, step, responses(6), WORDS)
    shown = read_responses(folder, -1.0, 1.0)
    reasons = [each.why for each in shown]
    assert all(why.startswith(("step 1: ", "step 7: ")) for why in reasons)
    for step in (1, 7):
        said = " ".join(why for why in reasons if why.startswith(f"step {step}:"))
        assert all(said.count(part) == 1 for part in ("largest reward", "smallest reward", "advantage", "mismatch"))
    best = next(each for each in shown if "largest reward" in each.why)
    assert "reward 1 " in best.heading
    assert read_responses(RunFolder(folder.path / "none"), -1.0, 1.0) == []


def test_a_token_has_the_colour_of_its_value_and_the_one_that_moved_it_most_a_frame(folder: RunFolder) -> None:
    write_step(folder.samples, 3, responses(1), WORDS)
    (shown,) = read_responses(folder, -1.0, 1.0)
    assert [token.colour for token in shown.tokens] == pytest.approx([min(1.0, 0.1 * n) for n in range(12)])
    assert "value +0.300" in shown.tokens[3].numbers and "mismatch +0.2500" in shown.tokens[3].numbers
    assert [token.kind for token in shown.tokens].count("turning") == 1
    doubts = [token.undecided for token in shown.tokens]  # 0.2 nats more a token; the largest of them is full colour
    assert doubts == pytest.approx([n / 11 for n in range(12)]) and "entropy 0.600" in shown.tokens[3].numbers
    assert turning_point([0.1, None, 0.2, -0.6, -0.5]) == 2  # after it V fell by .8
    assert turning_point([0.3]) is None and turning_point([None, None]) is None
    assert value_line([-1.0, 0.0, 1.0], -1.0, 1.0) == "0.0,60.0 300.0,30.0 600.0,0.0"


def test_without_a_critic_there_is_text_and_no_colour(folder: RunFolder) -> None:
    write_step(folder.samples, 3, responses(1), WORDS, has_critic=False)
    (shown,) = read_responses(folder, -1.0, 1.0)
    assert {token.colour for token in shown.tokens} == {None} and shown.line == shown.turning == ""


def test_coloured_by_entropy_where_it_is_known(folder: RunFolder) -> None:
    write_step(folder.samples, 3, responses(1), WORDS)
    assert "coloured by entropy" in write_report(folder).read_text()
    write_step(folder.samples, 3, responses(1), WORDS, has_entropy=False)
    assert "coloured by entropy" not in write_report(folder).read_text()


def test_hostile_text_stays_text(folder: RunFolder) -> None:
    write_step(folder.samples, 3, responses(2, words=1), WORDS)
    page = write_report(folder).read_text()
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert page.count("&lt;script&gt;") >= 24
    body = page[page.index("<pre class=tokens>") :]
    spans = body[len("<pre class=tokens>") : body.index("</pre>")]
    quoted = spans.replace("<span class=action", "<span class='action'").replace("class=turning", "class='turning'")
    parsed = ElementTree.fromstring(f"<pre>{quoted}</pre>")  # noqa: S314  (our own page)
    assert len(parsed) == 12 and all(set(span.attrib) == {"class", "title", "style"} for span in parsed)


def test_a_long_response_is_cut_in_its_middle(folder: RunFolder) -> None:
    write_step(folder.samples, 3, responses(1, length=MAX_TOKENS + 500), WORDS)
    (shown,) = read_responses(folder, -1.0, 1.0)
    assert len(shown.tokens) == MAX_TOKENS + 1
    assert [token.text for token in shown.tokens if token.kind == "left_out"] == [" … 500 tokens left out … "]


def test_a_damaged_file_costs_the_responses_and_not_the_page(folder: RunFolder) -> None:
    folder.samples.mkdir(exist_ok=True)
    (folder.samples / "step-000001.parquet").write_bytes(b"rubbish")
    assert "What the critic believed" not in write_report(folder).read_text()
