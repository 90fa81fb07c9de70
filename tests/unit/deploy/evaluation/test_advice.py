"""`vcppo advise`: it says what the figures say, with the figures, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rig.fake_run import config_of, explainable_row, make_run, rl_row
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.cli import main
from vcppo.deploy.evaluation.advice import Facts, advise, measure_first
from vcppo.deploy.evaluation.explainable_results import ExplainableRow, read_rows
from vcppo.deploy.run.run_data import RunData

NOTHING = Facts((), (), (), True, 8, None, 0.95, None, None)


def row(position: int, reached: float, low: float, high: float) -> ExplainableRow:
    changes = {"explainable": 0.8, "explained": 0.8 * reached, "reached": reached, "reached_interval": (low, high)}
    return explainable_row(20, position).model_copy(update=changes)


def topics(facts: Facts) -> dict[str, str]:
    return {each.topic.split("?")[0].split(",")[0]: f"{each.found} {each.follows}" for each in advise(facts)}


class TestCriticOrGroup:
    def test_the_better_one_is_said_with_the_variance_it_leaves(self) -> None:
        facts = replace(NOTHING, critic=[0.6, 0.62, 0.58], group=[0.2, 0.21, 0.19])
        said = topics(facts)["A critic"]
        assert "last 3 steps the critic explains 0.60 of the outcome" in said and "other responses 0.20" in said
        assert "leaves 50% of the variance" in said and "The critic is the better baseline: +0.40" in said
        other = replace(facts, critic=facts.group, group=facts.critic)
        assert "The group's mean is the better baseline: -0.40" in topics(other)["A critic"]

    @given(st.lists(st.floats(-0.5, 0.9), min_size=1, max_size=12))
    def test_equal_ones_are_never_told_apart(self, figures: list[float]) -> None:
        said = topics(replace(NOTHING, critic=figures, group=figures))["A critic"]
        assert "within chance" in said and "better" not in said

    def test_one_step_is_too_little_to_choose(self) -> None:
        assert "within chance" in topics(replace(NOTHING, critic=[0.9], group=[0.1]))["A critic"]

    def test_a_run_without_critic_learns_what_one_could_gain_at_most(self) -> None:
        rows = [explainable_row(20, 0), *(row(position, 0.5, 0.4, 0.6) for position in (8, 40))]
        said = topics(replace(NOTHING, has_critic=False, rows=rows))["A critic"]
        by_prompt = rows[0].group_mean
        assert by_prompt is not None and f"gain at most {0.8 - by_prompt:.2f}" in said
        told = [rows[0].model_copy(update={"group_mean": 0.9}), *rows[1:]]
        assert "nothing for a critic to gain" in topics(replace(NOTHING, has_critic=False, rows=told))["A critic"]


class TestPasses:
    def test_a_critic_that_lags_and_what_a_pass_costs(self) -> None:
        rows = [row(8, 0.9, 0.8, 1.0), row(40, 0.25, 0.1, 0.4)]
        said = topics(replace(NOTHING, rows=rows, wait_seconds=7.0, pass_seconds=2.0))["More passes of the critic"]
        assert "0.20 of 0.80 explainable after 40 tokens" in said and "It lags after 40 tokens: up to 0.60" in said
        assert "waits 7.0 s a step" in said and "3 fit into the wait" in said
        assert "waits" not in topics(replace(NOTHING, rows=rows))["More passes of the critic"]

    def test_one_that_keeps_up_and_one_of_which_nobody_knows(self) -> None:
        assert "keeps up" in topics(replace(NOTHING, rows=[row(8, 0.95, 0.85, 1.1)]))["More passes of the critic"]
        assert "within chance" in topics(replace(NOTHING, rows=[row(8, 0.7, 0.2, 1.1)]))["More passes of the critic"]

    def test_nothing_is_said_without_measurement(self) -> None:
        assert "More passes of the critic" not in topics(replace(NOTHING, length=100.0))


class TestLambda:
    def test_how_far_the_outcome_reaches(self) -> None:
        said = topics(replace(NOTHING, length=135.0))["Another λ"]
        assert "half its weight 14 tokens from the end" in said and "90% lie farther away" in said

    def test_what_it_leans_on_there(self) -> None:
        facts = replace(NOTHING, length=135.0, rows=[row(40, 0.3, 0.1, 0.5), row(134, 0.0, -0.1, 0.1)])
        said = topics(facts)["Another λ"]
        assert "After 40 tokens it explains 30%" in said and "nearer to 1 would lean on it less" in said
        sure = replace(facts, rows=[row(40, 0.95, 0.85, 1.05)])
        assert "nothing here speaks for a λ nearer to 1" in topics(sure)["Another λ"]
        assert "too uncertain" in topics(replace(facts, rows=[row(40, 0.5, 0.1, 0.95)]))["Another λ"]

    @pytest.mark.parametrize(("lam", "text"), [(1.0, "outcome less"), (0.0, "next value less")])
    def test_the_ends(self, lam: float, text: str) -> None:
        assert text in topics(replace(NOTHING, length=100.0, lambda_actor=lam))["Another λ"]

    def test_a_run_without_critic_has_no_lambda(self) -> None:
        assert topics(replace(NOTHING, has_critic=False, length=100.0)) == {}


class TestFacts:
    @pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "group_mean"])
    def test_a_critic_is_what_gae_alone_has(self, tmp_path: Path, estimator: str) -> None:
        """REINFORCE++ has neither a group's baseline nor a critic."""
        data = RunData.load(make_run(tmp_path))
        algorithm = data.config.algorithm.model_copy(update={"advantage_estimator": estimator})
        data.config = data.config.model_copy(update={"algorithm": algorithm})
        assert not Facts.of(data, []).has_critic

    def test_from_a_run(self, tmp_path: Path) -> None:
        folder = make_run(tmp_path)
        facts = Facts.of(RunData.load(folder), read_rows(folder))
        assert (len(facts.critic), len(facts.group), facts.group_size, facts.has_critic) == (7, 7, 8, True)
        assert {each.version for each in facts.rows} == {20}
        assert facts.wait_seconds == pytest.approx(1.1) and facts.pass_seconds == 4.2
        assert facts.length == pytest.approx(206, abs=2) and facts.lambda_actor == 0.95

    def test_a_pass_is_timed_alone_where_there_were_several(self, tmp_path: Path) -> None:
        data = RunData(RunFolder(tmp_path), config_of(tmp_path))
        data.rl = [{**rl_row(1), "step": 1, "critic/passes": 4, "time/critic_passes": 6.0}]
        assert Facts.of(data, []).pass_seconds == 2.0
        adaptive = data.config.algorithm.model_copy(update={"length_adaptive_alpha": 0.05})
        data.config = data.config.model_copy(update={"algorithm": adaptive})
        found = Facts.of(data, [])
        assert found.length is not None and found.lambda_actor == pytest.approx(1 - 20 / found.length)


class TestCommand:
    def test_a_page_and_what_would_say_more(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = make_run(tmp_path)
        assert main(["advise", str(folder.path)]) == 0
        page = capsys.readouterr().out
        assert "The critic is the better baseline: +0.40" in page and "More can be said" not in page
        folder.explainable_results.unlink()
        assert main(["advise", str(folder.path)]) == 0
        page = capsys.readouterr().out
        assert f"vcppo explainable {folder.path} --positions 21,82,144,185" in page.replace("\n", "")
        assert main(["advise", str(folder.path), "--json"]) == 0
        assert [each["topic"] for each in json.loads(capsys.readouterr().out)][-1] == "Another λ?"

    def test_a_run_that_has_hardly_begun(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = make_run(tmp_path, num_steps=0)
        folder.explainable_results.unlink()
        assert main(["advise", str(folder.path)]) == 2
        assert "no figures to advise from" in capsys.readouterr().err

    def test_nothing_to_measure_without_a_length(self) -> None:
        assert measure_first(NOTHING, "r") is None
