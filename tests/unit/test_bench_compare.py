"""What moved between two versions of the figures: found again by name, judged by their ranges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import compare as command
from benchmarks.__main__ import main
from benchmarks.rig.compare import compare, lines, overlap
from benchmarks.rig.figures import Figure, Goal, at_least, at_most
from tests.paths import ROOT

HERE = {"processor": "One, 2 cores", "memory": "24 GiB", "commit": "aaaaaaa", "software": "x"}
NUMBERS = st.floats(allow_infinity=False) | st.just(0.0)
FIGURES = st.builds(
    Figure,
    what=st.sampled_from("abc"),
    against=st.sampled_from(["", "it"]),
    value=NUMBERS,
    low=st.none() | NUMBERS,
    high=st.none() | NUMBERS,
    goal=st.none() | st.builds(Goal, st.sampled_from(["≤", "≥"]), st.just(1.0)),
)


def kept(*figures: Figure, name: str = "gae", **machine: str) -> dict[str, Any]:
    entry = {"date": "2026-01-01", "machine": HERE | machine, "figures": [each.as_dict() for each in figures]}
    return json.loads(json.dumps({name: entry}))  # as it is read


VERSIONS = st.dictionaries(st.sampled_from(["gae", "wire"]), st.lists(FIGURES, max_size=4), max_size=2).map(
    lambda found: {name: entry for key, figures in found.items() for name, entry in kept(*figures, name=key).items()}
)


def figure(value: float, low: float | None = None, high: float | None = None, goal: Goal | None = None) -> Figure:
    return Figure("step", "TRL", value, low=low, high=high, goal=goal)


@pytest.mark.parametrize(
    ("before", "after", "verdict", "better"),
    [
        (figure(1.0, 0.9, 1.1, at_most(2)), figure(1.05, 1.0, 1.2, at_most(2)), "within the noise", None),
        (figure(1.0, 0.9, 1.1, at_most(2)), figure(1.5, 1.2, 1.6, at_most(2)), "outside the noise", False),
        (figure(1.0, 0.9, 1.1, at_least(2)), figure(1.5, 1.2, 1.6, at_least(2)), "outside the noise", True),
        (figure(1.0, 0.9, 1.1), figure(1.5, 1.2, 1.6), "outside the noise", None),
        (figure(1.0, 0.9, 1.1, at_most(2)), figure(1.5), "noise unknown", None),
        (figure(1.0, 0.9, 1.1), figure(1.5, 1.1, 1.6), "within the noise", None),  # they touch
        (figure(1.0), figure(1.0), "same", None),
        (figure(math.nan), figure(math.nan), "same", None),
        (figure(1.0, 0.9, 1.1), figure(1.5, math.nan, 1.6), "noise unknown", None),
    ],
)
def test_a_move_is_judged_by_its_ranges(before: Figure, after: Figure, verdict: str, better: bool | None) -> None:
    (move,) = compare(kept(before), kept(after))
    assert (move.verdict, move.is_better) == (verdict, better)


def test_figures_of_two_machines_are_not_judged() -> None:
    before, after = kept(figure(1.0, 0.9, 1.1, at_most(2))), kept(figure(1.5, 1.2, 1.6, at_most(2)), processor="Two")
    (move,) = compare(before, after)
    assert (move.verdict, move.is_better) == ("other machine", None)
    text = "\n".join(lines(before, after))
    assert "two machines: none of these is judged" in text and "One, 2 cores" in text and "Two" in text


def test_what_came_and_what_went() -> None:
    one, two = Figure("one", "", 1.0), Figure("two", "", 2.0)
    assert [(move.figure.what, move.verdict) for move in compare(kept(one), kept(two))] == [
        ("two", "new"), ("one", "gone"),
    ]  # fmt: skip
    assert [move.verdict for move in compare({}, kept(one))] == ["new"]
    assert [move.verdict for move in compare(kept(one, name="old"), {})] == ["gone"]


def test_lines_show_both_figures_their_ranges_and_the_change() -> None:
    before = kept(figure(1.0, 0.9, 1.1, at_most(2)), Figure("still", "", 3.0))
    after = kept(figure(1.5, 1.2, 1.6, at_most(2)), Figure("still", "", 3.0), commit="bbbbbbb")
    found = list(lines(before, after))
    assert "commit aaaaaaa" in found[0] and "commit bbbbbbb" in found[0]
    assert found[1:] == [
        "  step, against TRL",
        "      1 × (0.9 – 1.1) → 1.5 × (1.2 – 1.6)   +50 %   outside the noise, worse",
        "1 outside the noise; 1 same",
    ]


def test_moves_within_the_noise_can_be_left_out() -> None:
    before, after = kept(figure(1.0, 0.9, 1.1)), kept(figure(1.05, 1.0, 1.2))
    assert list(lines(before, after, outside_only=True)) == ["1 within the noise"]
    assert len(list(lines(before, after))) == 4


@given(VERSIONS)
def test_nothing_moves_between_a_version_and_itself(version: dict[str, Any]) -> None:
    assert {move.verdict for move in compare(version, version)} <= {"same"}


@given(VERSIONS, VERSIONS)
def test_every_figure_of_both_is_there_once_and_the_other_way_round_says_the_reverse(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    there, back = compare(one, other), compare(other, one)
    assert len(there) == len(back)
    for side, version in ((0, one), (1, other)):
        found = [move for move in there if (move.before, move.after)[side] is not None]
        assert len(found) == sum(len(entry["figures"]) for entry in version.values())
    reverse = {"new": "gone", "gone": "new"}
    assert sorted(reverse.get(move.verdict, move.verdict) for move in there) == sorted(move.verdict for move in back)
    assert list(lines(one, other))  # never raises: zeros, NaN and missing ranges included


@given(st.lists(st.floats(-9, 9), min_size=1), st.lists(st.floats(-9, 9), min_size=1))
def test_ranges_overlap_where_samples_lie_between_each_other(one: list[float], other: list[float]) -> None:
    """Ranges of samples have nothing in common just where all of one lie beyond all of the other."""
    apart = max(one) < min(other) or max(other) < min(one)
    assert overlap((min(one), max(one)), (min(other), max(other))) is not apart


def test_a_file_against_what_lies_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = json.loads((ROOT / command.PAGE).read_text())
    changed["gae"]["figures"][0]["value"] *= 100
    for bound in ("low", "high"):
        changed["gae"]["figures"][0][bound] *= 100
    path = tmp_path / "then.json"
    path.write_text(json.dumps(changed))
    assert main(["compare", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gae: ") and "-99 %   outside the noise, better" in said


def test_a_commit_is_read_from_git(capsys: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: git has nothing to show")
    assert main(["compare", "HEAD", "HEAD"]) == 0
    assert capsys.readouterr().out.endswith(" same\n")


@pytest.mark.parametrize(
    ("text", "said"), [(None, "is no file, and git has no"), ("{", "is not JSON"), ('{"gae": {}}', "lacks `date`")]
)
def test_what_cannot_be_read_is_named_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    path = tmp_path / "then.json"
    if text is not None:
        path.write_text(text)
    assert main(["compare", str(path), str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and str(path) in error and "give a file" in error


def test_its_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    assert "python -m benchmarks compare HEAD" in text and "outside the noise" in text
