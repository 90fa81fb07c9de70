"""Drawing by difficulty: oracles, and that a draw depends on what is recorded and on nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.rig.scripted import fabricate
from vcppo.common.config import DifficultyConfig, VcppoConfig
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.records.trajectory import Prompt
from vcppo.common.store.left_out import LeftOut
from vcppo.common.tasks import TaskError, load_task
from vcppo.learner.supply.difficulty import POOLS, DifficultySampler, Drawn, Outcome, Pool, Pools, pool_of
from vcppo.learner.supply.drawn_problems import DrawnProblems
from vcppo.learner.supply.prompts import PromptSource

ON = DifficultyConfig(enabled=True)


@pytest.mark.parametrize(
    ("rate", "pool"), [(0.0, "hard"), (0.2, "hard"), (0.25, "edge"), (0.75, "edge"), (0.8, "easy"), (1.0, "easy")]
)
def test_pools_by_rate(rate: float, pool: str) -> None:
    assert pool_of(rate, ON) == pool


def test_only_the_newest_groups_of_a_problem_count() -> None:
    sampler = DifficultySampler(ON, 0, 3, 0)
    sampler.record(1, [Outcome(0, 0, 8), Outcome(1, 8, 8)])
    assert sampler.pools(1).members == {"new": [2], "easy": [1], "edge": [], "hard": [0]}
    sampler.record(2, [Outcome(0, 8, 8)])
    assert sampler.pools(2).members["edge"] == [0]  # 8 of 16
    sampler.record(3, [Outcome(0, 8, 8)])
    assert sampler.pools(3).members["easy"] == [0, 1]  # the first is forgotten
    assert sampler.pools(1).members["hard"] == [0]  # as it was at version 1


def test_a_step_done_again_counts_once() -> None:
    sampler = DifficultySampler(ON, 0, 2, 0)
    sampler.record(1, [Outcome(0, 0, 8)])
    assert sampler.pools(1).members["hard"] == [0]
    sampler.record(1, [Outcome(0, 8, 8)])
    assert sampler.pools(1).members["easy"] == [0]


def test_new_problems_come_first_and_in_the_order_of_the_task() -> None:
    sampler = DifficultySampler(ON, 0, 5, 1)
    assert [sampler.draw(group, 0) for group in range(4)] == [Drawn(group, "new", 0) for group in range(4)]
    sampler.record(1, [Outcome(0, 4, 8), Outcome(1, 8, 8)])
    assert sampler.draw(4, 1) == Drawn(4, "new", 1)  # 2 and 3 are on their way
    assert sampler.draw(5, 1).pool != "new"
    sampler.record(2, [])  # what was drawn at version 0 would be here: it was lost
    assert [sampler.draw(group, 2) for group in (6, 7)] == [Drawn(2, "new", 2), Drawn(3, "new", 2)]


def test_a_lost_problem_is_new_again() -> None:
    sampler = DifficultySampler(ON, 0, 3, 0)
    assert [sampler.draw(group, 0).problem for group in range(2)] == [0, 1]
    sampler.record(1, [Outcome(1, 4, 8)])  # 0 was rejected
    assert [sampler.draw(group, 1) for group in (2, 3)] == [Drawn(0, "new", 1), Drawn(2, "new", 1)]


def test_fewer_problems_than_are_in_flight_are_asked_again() -> None:
    sampler = DifficultySampler(ON, 0, 2, 1)
    found = [sampler.draw(group, 0).problem for group in range(40)]
    assert found[:2] == [0, 1] and {*found[2:]} == {0, 1}


def test_shares_are_met_and_an_empty_pool_gives_its_share_away() -> None:
    rates = {problem: rate for first, rate in ((0, 1.0), (40, 0.5), (80, 0.0)) for problem in range(first, first + 40)}
    pools = Pools(120, rates, DifficultyConfig(enabled=True, easy_share=1, edge_share=6, hard_share=3))
    counts = Counter(pools.draw(seed, ())[1] for seed in range(4000))
    assert counts["new"] == 0
    wanted: list[tuple[Pool, float]] = [("easy", 0.1), ("edge", 0.6), ("hard", 0.3)]
    for pool, share in wanted:
        assert counts[pool] / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)
    taken = set(range(40, 80))
    counts = Counter(pools.draw(seed, taken)[1] for seed in range(4000))
    assert counts["edge"] == 0 and counts["easy"] / 4000 == pytest.approx(0.25, abs=0.03)
    half_new = Pools(240, rates, DifficultyConfig(enabled=True, new_share=0.5))
    assert Counter(half_new.draw(seed, ())[1] for seed in range(4000))["new"] / 4000 == pytest.approx(0.5, abs=0.032)
    only_easy = Pools(40, dict.fromkeys(range(40), 1.0), DifficultyConfig(enabled=True, easy_share=0))
    assert only_easy.draw(1, ())[1] == "easy"  # there is nothing else


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 30),
    eta=st.integers(0, 2),
    steps=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), min_size=1, max_size=8),
    stop=st.integers(0, 60),
    seed=st.integers(0, 5),
    new_share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_run_that_begins_again_from_what_is_written_draws_the_same(
    size: int, eta: int, steps: list[list[int]], stop: int, seed: int, new_share: float
) -> None:
    """Wherever it stops: between two draws of a version, or between a step and its draws."""
    config = DifficultyConfig(enabled=True, new_share=new_share)
    sampler = DifficultySampler(config, seed, size, eta)
    drawn: list[Drawn] = []
    again: DifficultySampler | None = None
    for version, results in enumerate(steps):
        if version:
            past = [Outcome(each.problem, n, 8) for each, n in zip(drawn[-len(results) :], results, strict=False)]
            sampler.record(version, past)
            if again is not None:
                again.record(version, past)
        for _ in results:
            group = len(drawn)
            if group == stop:
                again = DifficultySampler(config, seed, size, eta)
                for before in range(1, version + 1):
                    again.record(before, sampler._outcomes[before])
                for number, each in enumerate(drawn):
                    again.remember(number, each)
            found = sampler.draw(group, version)
            assert again is None or again.draw(group, version) == found
            assert 0 <= found.problem < size
            in_flight = [each for each in drawn if each.version >= version - eta]
            if len({each.problem for each in in_flight}) < size:
                assert found.problem not in {each.problem for each in in_flight}
            unseen = set(sampler.pools(version).members["new"])
            if new_share == 1.0 and unseen - {each.problem for each in in_flight}:
                assert found.pool == "new"
            drawn.append(found)
    assert [sampler.draw(group, len(steps)) for group in range(len(drawn))] == drawn


def make_config(folder: Path, size: int = 12, **rl: Any) -> VcppoConfig:
    rows = [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(size)]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "h.jsonl").write_text('{"question": "And 1 plus 1?", "answer": "2"}\n')
    options = {
        "path": str(folder / "p.jsonl"),
        "held_out_path": str(folder / "h.jsonl"),
        "prompt_template": "{question}",
    }
    return VcppoConfig.model_validate(
        {
            "run": {"name": "x"},
            "model": {"path": "m"},
            "task": {"name": "dataset", "options": options},
            "rl": {"batch_size": 4, "group_size": 2, "max_staleness": 0, "difficulty": {"enabled": True}, **rl},
        }
    )


def encode(prompt: object) -> Any:
    return np.frombuffer(str(prompt).encode(), np.uint8).astype(np.int32)


def text(prompt: Prompt) -> str:
    return bytes(prompt.token_ids.astype(np.uint8)).decode()


def test_prompts_ask_what_is_drawn_and_a_later_process_asks_the_same(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    path = tmp_path / "difficulty.jsonl"

    def begin() -> tuple[PromptSource, DrawnProblems]:
        source = PromptSource(config, load_task(config.task), encode)
        drawn = DrawnProblems(config, 12, path)
        source.draw_by(drawn)
        return source, drawn

    source, drawn = begin()
    first = source.prompts("rl", 0, 24, 0)
    assert len({text(prompt) for prompt in first}) == 12  # each problem once, two samples of each
    made = [fabricate(prompt, 0) for prompt in first[:20]]
    left_out = LeftOut(first[20].group_id, "all_wrong", "no signal", 2, 0, 9, 5)
    figures = drawn.record(1, made, [left_out])
    assert sum(figures[f"difficulty/problems/{pool}"] or 0 for pool in POOLS) == 12
    assert figures["difficulty/problems/new"] == 1
    assert figures["difficulty/drawn/new"] == 1
    assert figures["difficulty/accuracy/new"] == sum(each.outcome == "correct" for each in made) / 22
    assert figures["difficulty/accuracy/hard"] is None
    second = source.prompts("rl", 24, 8, 1)
    extra = source.extra_sample(second[0].group_id, 0, 2)
    assert text(extra) == text(second[0])
    lines = path.read_bytes()
    source, drawn = begin()
    assert source.extra_sample(second[0].group_id, 0, 2).token_ids.tolist() == extra.token_ids.tolist()
    assert [text(each) for each in source.prompts("rl", 24, 8, 1)] == [text(each) for each in second]
    assert path.read_bytes() == lines  # what is known is not written again
    path.write_bytes(b"\n".join(lines.splitlines()[:2]) + b"\n")  # the draws of version 1 were never written
    source, drawn = begin()
    assert [text(each) for each in source.prompts("rl", 24, 8, 1)] == [text(each) for each in second]
    assert drawn.record(1, made, [left_out]) == figures  # and a step that is done again


def test_other_purposes_go_by_the_tasks_own_order(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    source = PromptSource(config, load_task(config.task), encode)
    plain = [text(each) for each in source.prompts("value_pretraining", 0, 24, 0)]
    source.draw_by(DrawnProblems(config, 12, tmp_path / "difficulty.jsonl"))
    assert [text(each) for each in source.prompts("value_pretraining", 0, 24, 0)] == plain
    for number in range(12):  # what the canary asks draws nothing
        assert source.tokens_of("rl", number) is not None
    assert not (tmp_path / "difficulty.jsonl").exists()


def test_a_task_without_an_end_is_refused_by_name() -> None:
    config = VcppoConfig.model_validate(
        {"run": {"name": "x"}, "model": {"path": "m"}, "rl": {"difficulty": {"enabled": True}}}
    )
    with pytest.raises(
        TaskError, match=r"rl\.difficulty\.enabled = true: task chain_arithmetic has no finite set"
    ) as error:
        PromptSource(config, load_task(config.task), encode)
    assert error.value.exit_code == EXIT_USAGE


def test_a_file_that_was_lost_is_named(tmp_path: Path) -> None:
    drawn = DrawnProblems(make_config(tmp_path), 12, tmp_path / "difficulty.jsonl")
    with pytest.raises(VcppoError, match=r"difficulty\.jsonl: has no line of group 3, which was issued"):
        drawn.problem_of(3)


@pytest.mark.parametrize("line", ["{}", "[]", '{"step": 1}', '{"step": 1, "outcomes": [[1]]}', "x",
                                  '{"version": 0, "first_group": 0, "problems": [1], "pools": []}',
                                  '{"version": 0, "first_group": 0, "problems": [1], "pools": ["odd"]}'])  # fmt: skip
def test_a_line_that_is_none_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "difficulty.jsonl"
    path.write_text(line + '\n{"version": 0, "first_group": 3, "problems": [5], "pools": ["new"]}\n')
    assert DrawnProblems(make_config(tmp_path), 12, path).problem_of(3) == 5


def with_signal(sampler: DifficultySampler | None, rates: np.ndarray[Any, Any], steps: int, groups: int = 16) -> float:
    """Share of groups of 8 with right and wrong responses, after each problem was asked once. Nothing is learned."""
    chance, asked, mixed = np.random.default_rng(3), 0, 0
    order = np.random.default_rng(4)
    for step in range(1, steps + 1):
        outcomes = []
        for place in range(groups):
            number = (step - 1) * groups + place
            problem = sampler.draw(number, step - 1).problem if sampler else int(order.integers(len(rates)))
            correct = int(chance.binomial(8, rates[problem]))
            outcomes.append(Outcome(problem, correct, 8))
            if number >= len(rates):
                asked, mixed = asked + 1, mixed + (0 < correct < 8)
        if sampler:
            sampler.record(step, outcomes)
    return mixed / asked


def test_it_asks_what_has_a_signal() -> None:
    """Most problems are nearly always or nearly never answered right, as of a real data set."""
    rates = np.random.default_rng(0).beta(0.15, 0.15, 512)
    assert with_signal(None, rates, 128) == pytest.approx(0.306, abs=0.01)  # docs/sampling.md has both figures
    assert with_signal(DifficultySampler(ON, 0, 512, 1), rates, 128) == pytest.approx(0.735, abs=0.01)
