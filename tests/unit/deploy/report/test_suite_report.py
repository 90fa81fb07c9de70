"""The page of several runs: what is compared, what is said of it, and that no number is there without its runs."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from pathlib import Path

import pytest

from tests.unit.rig.fake_run import make_run
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.cli import main
from vcppo.deploy.experiment.suite import load_suite
from vcppo.deploy.report import suite_figures
from vcppo.deploy.report.markup import Picture
from vcppo.deploy.report.paper_numbers import paper_numbers
from vcppo.deploy.report.suite_data import (
    COLD_START,
    ArmData,
    SeedRun,
    arm_of,
    difference,
    load_run,
    load_suite_data,
    runs_in,
)
from vcppo.deploy.report.suite_figures import FIGURES, FIXED, looks
from vcppo.deploy.report.suite_page import SuitePage, as_html, as_markdown
from vcppo.deploy.report.suite_report import MARK, write_suite_report
from vcppo.deploy.report.suite_tables import Table, claims, left_out, paper_tables, spread
from vcppo.deploy.run.run_config import RunError
from vcppo.learner.critic_quality.signal_by_distance import DISTANCES, LAMBDAS

NUM_PROBLEMS = 200


def finished(
    root: Path, arm: str, seed: int, num_right: int, *, more: dict[str, object] | None = None, model: str = "export"
) -> RunFolder:
    """A run of 30 steps whose policy is right on its first `num_right` problems."""
    folder = make_run(root, f"{arm}-seed{seed}")
    text = folder.config.read_text()
    folder.config.write_text(re.sub(r"(?m)^(  seed:) 0$", rf"\1 {seed}", text, count=1))
    folder.export.mkdir()
    (folder.export / "config.json").write_text("{}")
    share = num_right / NUM_PROBLEMS
    result = {"pass_at_1": share, "mean_length": 100.0, "num_problems": NUM_PROBLEMS, "k": 1, "pass_at_k": share}
    (folder.eval / f"{model}.json").write_text(json.dumps(result))
    lines = [{"index": i, "outcomes": ["correct" if i < num_right else "wrong"]} for i in range(NUM_PROBLEMS)]
    (folder.eval / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if more:
        path = folder.metrics_file("learner")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**r, **more} if r["stage"] == "rl" else r) + "\n" for r in rows))
    return folder


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    signals = {f"reward_signal/{lam:g}": [lam**d for d in DISTANCES[:-6]] + [None] * 5 for lam in LAMBDAS}
    for seed, (ours, plain) in enumerate(((180, 20), (176, 40))):
        finished(folder, "vc_ppo", seed, ours, more=signals)
        finished(folder, "ppo", seed, plain, more=signals)
        finished(folder, "cold_start", seed, 90, model="cold_start")
    finished(folder, "without_decoupled_gae", 0, 178)
    make_run(folder, "grpo_group_mean-seed0", num_steps=3)
    arms = ["vc_ppo", "ppo", "without_decoupled_gae", "grpo_group_mean", "length_adaptive"]
    tree = {
        "name": "s",
        "description": "All of it.",
        "seeds": [0, 1],
        "arms": [{"name": n, "seeds": None} for n in arms],
    }
    (folder / "suite.json").write_text(json.dumps(tree))
    return folder


def test_the_page_its_figures_and_their_data(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(suite)]) == 0
    page = Path(capsys.readouterr().out.strip()).read_text()
    folder = suite / "report"
    assert not re.search(r"(src|href)='?\"?https?://", page)
    drawn = [name for name in FIGURES if (folder / f"{name}.png").exists()]
    assert page.count("data:image/png;base64,") == len(drawn)
    assert {"figure_1_collapse", "figure_2_5_by_position", "figure_3_reward_signal", "figure_4_accuracy"} <= set(drawn)
    assert all((folder / f"{name}.csv").stat().st_size > 50 for name in drawn)
    with (folder / "all_arms.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows["vc_ppo"]["pass@1, %"] == "89.0"
    assert rows["vc_ppo"]["lowest – highest seed"] == "88.0 – 90.0"
    assert rows["ppo"]["seeds"] == "2"
    assert rows["cold start"]["pass@1, %"] == "45.0"
    assert "grpo_group_mean" not in rows


def test_the_same_page_is_made_from_the_records(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite / "vc_ppo-seed0" / "export" / "model.safetensors").write_bytes(bytes(1000))
    archive = tmp_path / "s.tar.xz"
    assert main(["report", str(suite), "--records", str(archive)]) == 0
    with tarfile.open(archive) as file:
        assert not any("safetensors" in name or "/logs/" in name for name in file.getnames())
        file.extractall(tmp_path / "elsewhere", filter="data")
    texts = [path.read_text() for path in (tmp_path / "elsewhere").rglob("*.*")]
    assert not any(str(tmp_path) in text for text in texts)  # where it was made is nobody's business
    again = tmp_path / "elsewhere" / "s"
    assert main(["report", str(again)]) == 0
    for name in ("report.md", "all_arms.csv", "figure_4_accuracy.csv"):
        assert (again / "report" / name).read_text() == (suite / "report" / name).read_text()
    capsys.readouterr()

    before = archive.read_bytes()
    assert main(["report", str(again), "--records", str(archive)]) == 0
    assert archive.read_bytes() == before


def test_records_are_of_a_suite(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(suite / "vc_ppo-seed0"), "--records", str(tmp_path / "x.tar.xz")]) == 2
    assert "--records packs one suite's records" in capsys.readouterr().err
    assert not (tmp_path / "x.tar.xz").exists()


def test_what_is_not_there_is_said(suite: Path) -> None:
    folders = runs_in(suite)
    texts = list(left_out(load_suite_data(folders, suite)))
    assert "without_decoupled_gae (1 of 2 seeds)" in texts[0]
    assert "grpo_group_mean, length_adaptive" in texts[1]
    assert "grpo_group_mean-seed0" in texts[2]


def test_claims_are_judged_by_interval_and_every_seed(suite: Path) -> None:
    folders = runs_in(suite)
    data = load_suite_data(folders, suite)
    verdicts = {row[0]: row[-1] for row in claims(data).rows}
    assert verdicts["PPO ends below its cold start (critic rising along the response)"] == "yes"
    assert verdicts["VC-PPO is better than PPO (critic rising along the response)"] == "yes"
    assert verdicts["Decoupled GAE helps"] == "does not show at this scale, one seed only"
    assert verdicts["VC-PPO is better than GRPO"] == "not run"
    assert verdicts["λ_actor = 0.95 is better than 0.9"] == "not in this suite"
    (first, *_) = paper_tables(data)
    assert first.rows[0][2] == "not run"


def test_no_two_arms_of_a_figure_look_alike() -> None:
    arms = [arm_with(name) for name in (*FIXED, *(f"arm-{number}" for number in range(15)))]
    assert len({looks(arms)[arm.name] for arm in arms}) == len(arms)


def arm_with(name: str, *rates: list[float]) -> ArmData:
    runs = [SeedRun(f"{name}-seed{i}", i, None, None, tuple(each), {}) for i, each in enumerate(rates)]  # type: ignore[arg-type]
    return ArmData(name, tuple(runs))


def test_seeds_that_disagree_show_nothing() -> None:
    high, low = [1.0] * 90 + [0.0] * 10, [0.0] * 50 + [1.0] * 50
    one, other = arm_with("a", high, low), arm_with("b", low, high)
    found = difference(one, other)
    assert found is not None
    assert found.by_seed == pytest.approx([0.4, -0.4])
    assert found.verdict == "no difference shown"
    clear = difference(arm_with("a", high, high), arm_with("b", low, low))
    assert clear is not None
    assert clear.verdict == "higher"
    assert clear.interval[0] < 0.4 < clear.interval[1]
    assert difference(arm_with("b", low), arm_with("a", high)).verdict == "lower"  # type: ignore[union-attr]
    assert difference(arm_with("a", high), arm_with("b", low[:50])) is None


def test_runs_without_a_suite_are_grouped_by_name(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "mine", seed, 100 + seed) for seed in (0, 4)]
    assert [arm_of(load_run(run)) for run in runs] == ["mine", "mine"]
    page = write_suite_report([run.path for run in runs], tmp_path / "out", tmp_path / "docs" / "results.md")
    assert page == tmp_path / "out" / "report.html"
    text = (tmp_path / "docs" / "results.md").read_text()
    assert "| mine | 51.0 |" in text
    assert all((tmp_path / "docs" / name).exists() for name in re.findall(r"\]\((images/[^)]+)\)", text))


def test_words_above_the_mark_stay(tmp_path: Path) -> None:
    run, page = finished(tmp_path, "mine", 0, 100), tmp_path / "results.md"
    page.write_text(f"Written by hand.\n{MARK}\noutdated")
    write_suite_report([run.path, run.path], tmp_path / "out", page)
    text = page.read_text()
    assert text.startswith("Written by hand.\n")
    assert "# Results: " not in text, "the page has a title of its own"
    assert "outdated" not in text
    assert "| mine |" in text


def test_texts_are_texts_and_no_markup() -> None:
    table = Table("<t>", ("arm", "a|b"), [["<x>", "1|2"]])
    picture = Picture("figure", "it's", "<c>", b"png")
    page = SuitePage("<s>", ["a & b"], [table], [picture], table, ["end"])
    html = as_html(page)
    for words in (
        "<title>&lt;s&gt;</title>",
        "<p>a &amp; b</p>",
        "<td>&lt;x&gt;</td><td class=n>1|2</td>",
        "<img alt='it&#39;s' src='data:image/png;base64,cG5n'><figcaption>&lt;c&gt; Data: figure.csv",
    ):
        assert words in html, words
    text = as_markdown(page, "images")
    assert text.startswith(
        "# <s>\n\na & b\n\n## Results\n\n### <t>\n\n| arm | a\\|b |\n|---|---:|\n| <x> | 1\\|2 |\n\n## F"
    )
    assert "### it's\n\n![it's](images/figure.png)\n\n<c>\n\n## Every run" in text
    assert text.endswith("| <x> | 1\\|2 |\n\nend\n")


def test_nothing_finished_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    run = make_run(tmp_path, "half", num_steps=3)
    with pytest.raises(RunError, match=r"none of 1 runs is finished and evaluated \(half\)"):
        write_suite_report([run.path, run.path], tmp_path / "out")


def test_benchmarks_have_their_table(tmp_path: Path) -> None:
    run = finished(tmp_path, "mine", 0, 100)
    (run.eval / "aime").mkdir()
    (run.eval / "aime" / "export.json").write_text(
        json.dumps({"pass_at_1": 0.125, "pass_at_k": 0.5, "k": 32, "num_problems": 30})
    )
    text = write_suite_report([run.path, run.path], tmp_path / "out").with_suffix(".md").read_text()
    assert "| mine | 12.5 / 50.0 (1) |" in text


def test_the_papers_rows_and_claims_are_of_arms_that_exist() -> None:
    numbers = paper_numbers()
    asked = {row.arm for table in numbers.tables for row in table.rows}
    asked |= {arm for claim in numbers.claims for arm in (claim.better, claim.worse)}
    assert asked - {arm.name for arm in load_suite(Path("paper")).arms} == {COLD_START}


def test_a_row_of_the_paper_says_what_is_there_and_no_more() -> None:
    tables = {table.number: {row.label: table.cell(row) for row in table.rows} for table in paper_numbers().tables}
    assert tables[2]["PPO, critic rising along the response"] == "5.6 / 36.7 · 38.7 · 7.3"
    assert tables[2]["GRPO"] == "35.8 / 63.0"
    assert tables[2]["PPO, critic low on all unfinished text"] == "the same"
    assert tables[3]["½"] == "20.6 / 56.7 (50 steps)"
    assert tables[4]["length-adaptive"] == "not in the paper"


def test_distances_are_the_learners() -> None:
    assert suite_figures.DISTANCES == DISTANCES
    assert tuple(f"{lam:g}" for lam in LAMBDAS) == suite_figures.LAMBDAS


def test_spread_of_one_number_is_the_number() -> None:
    assert spread([0.5]) == "50.0"
    assert spread([0.5, 0.25]) == "25.0 – 50.0"
