"""hidden_choices: a form that is parsed to the last character, and right options that nothing tells."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.common.config import TaskConfig
from vcppo.common.tasks import Split, TaskError, load_task
from vcppo.common.tasks.hidden_choices import HiddenChoices

SPLITS: tuple[Split, ...] = ("train", "held_out")
SMALL: dict[str, Any] = {"num_decisions": 8, "num_kinds": 3, "num_options": 3, "tokens_per_decision": 8}


def written(kinds: str, choices: str, filler: str = "ab") -> str:
    """A response, by another way than the task's."""
    lines = [f"<{i + 1}>{kinds[i]}:{filler}>{kinds[i]}{choices[i]}" for i in range(len(kinds))]
    return "\n".join(lines) + "\n"


class TestProblems:
    @given(seed=st.integers(0, 2**31), start=st.integers(0, 10**6), count=st.integers(1, 6))
    @settings(max_examples=30, deadline=None)
    def test_random_access(self, seed: int, start: int, count: int) -> None:
        task = HiddenChoices()
        whole = task.problems("train", seed, start, count)
        assert whole == [task.problems("train", seed, start + i, 1)[0] for i in range(count)]

    def test_splits_never_meet(self) -> None:
        """256 lists of kinds and eight marks, drawn far more often than there are."""
        task = HiddenChoices(num_decisions=8, num_kinds=2)
        train, held_out = ({each.prompt for each in task.problems(split, 3, 0, 6000)} for split in SPLITS)
        assert len(train) > 1000 and len(held_out) > 150 and not train & held_out
        assert not held_out & {each.prompt for each in task.demonstrations(1, 3000, {})}

    def test_the_prompt_says_what_the_answer_says(self) -> None:
        for problem in HiddenChoices(**SMALL).problems("train", 0, 0, 20):
            kinds, mark = str(problem.answer["kinds"]), problem.answer["mark"]
            named = "".join(f"<{i + 1}>{kind}" for i, kind in enumerate(kinds))
            assert problem.prompt == f"{named}={{{mark}}}"
            assert len(kinds) == 8 and set(kinds) <= set("ABC")

    def test_the_list_begins_again_after_the_last_kind_that_is_named(self) -> None:
        for problem in HiddenChoices(num_decisions=20, num_named=9).problems("train", 0, 0, 20):
            kinds = str(problem.answer["kinds"])
            assert len(kinds) == 20 and kinds[9:18] == kinds[:9] and kinds[18:] == kinds[:2]
            assert str(problem.prompt).startswith("".join(f"<{i + 1}>{kinds[i]}" for i in range(9)) + "={")

    def test_marks_are_uniform_over_their_range(self) -> None:
        task = HiddenChoices(**SMALL, min_mark=3, max_mark=6)
        counts = Counter(each.answer["mark"] for each in task.problems("train", 0, 0, 2000))
        assert sorted(counts) == [3, 4, 5, 6]
        assert all(400 < count < 600 for count in counts.values())

    def test_the_prompts_know_nothing_of_the_secret(self) -> None:
        """Neither prompt, answer nor demonstration changes with it; the right options do."""
        one, other = HiddenChoices(secret=1), HiddenChoices(secret=2)
        assert one.problems("train", 0, 0, 50) == other.problems("train", 0, 0, 50)
        assert one.demonstrations(0, 50, {}) == other.demonstrations(0, 50, {})
        options = ["".join(map(task.right_option, "ABCDEFGHIJ")) for task in (one, other)]
        assert options[0] != options[1]
        assert all(set(each) == set("012") for each in options)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"min_mark": 20, "max_mark": 10}, "min_mark = 20, max_mark = 10: need min_mark <= max_mark"),
            ({"max_mark": 41}, "max_mark = 41: need min_mark <= max_mark <= num_decisions = 40"),
            ({"num_option": 3}, r"task\.options\.num_option"),
            ({"num_decisions": 4}, r"task\.options\.num_decisions"),
        ],
    )
    def test_bad_options_are_named(self, options: dict[str, object], says: str) -> None:
        with pytest.raises(TaskError, match=says):
            load_task(TaskConfig(name="hidden_choices", options=options))


class TestVerifier:
    task = HiddenChoices(**SMALL, secret=4)
    kinds = "ABCABCAB"

    def verdict(self, response: str, mark: int = 5, finish_reason: Any = "stop") -> tuple[str, str | None]:
        found = self.task.verify({"kinds": self.kinds, "mark": mark}, response, finish_reason)
        return found.outcome, found.extracted

    def choices(self, num_right: int) -> str:
        """Right ones first, then wrong ones."""
        right = [self.task.right_option(kind) for kind in self.kinds]
        return "".join(c if i < num_right else str((int(c) + 1) % 3) for i, c in enumerate(right))

    @given(num_right=st.integers(0, 8), mark=st.integers(1, 8))
    def test_the_mark_decides(self, num_right: int, mark: int) -> None:
        outcome = "correct" if num_right >= mark else "wrong"
        assert self.verdict(written(self.kinds, self.choices(num_right)), mark) == (outcome, str(num_right))

    def test_a_response_that_was_cut_off_is_unparsable(self) -> None:
        assert self.verdict(written(self.kinds, self.choices(8)), finish_reason="length") == ("unparsable", None)

    @given(place=st.integers(0, 200), put=st.sampled_from([*"0123ABC:>\n<=", "", "<1>", "9"]))
    @settings(max_examples=300)
    def test_nothing_but_another_option_can_stand_in_a_place(self, place: int, put: str) -> None:
        """One character exchanged for any other text: another option of the line, or unparsable."""
        whole = written(self.kinds, self.choices(8))
        place %= len(whole)
        changed = whole[:place] + put + whole[place + 1 :]
        is_choice = place + 1 < len(whole) and whole[place + 1] == "\n" and len(put) == 1 and put in "012"
        outcome, extracted = self.verdict(changed)
        if changed == whole or is_choice:
            assert (outcome, extracted) == ("correct", "8" if changed == whole else "7")
        else:
            assert (outcome, extracted) == ("unparsable", None)

    @pytest.mark.parametrize("more", ["\n", "0", "<9>A:ab>A0\n", " "])
    def test_nothing_may_follow_or_lead(self, more: str) -> None:
        whole = written(self.kinds, self.choices(8))
        assert self.verdict(whole + more)[0] == self.verdict(more + whole)[0] == "unparsable"
        assert self.verdict("")[0] == self.verdict(whole[: len(whole) // 2])[0] == "unparsable"


class TestDemonstrations:
    def test_they_have_the_form_and_choose_at_random(self) -> None:
        task = HiddenChoices(**SMALL)
        counts: Counter[tuple[str, str]] = Counter()
        for prompt, response in task.demonstrations(0, 1500, {}):
            kinds = "".join(str(prompt).partition("=")[0].split(">")[i + 1][0] for i in range(8))
            verdict = task.verify({"kinds": kinds, "mark": 1}, response, "stop")
            assert verdict.outcome != "unparsable"
            counts.update(zip(kinds, (line[-1] for line in response.splitlines()), strict=True))
        assert len(counts) == 9
        assert all(abs(count / 12000 - 1 / 9) < 0.012 for count in counts.values()), counts

    def test_a_style_is_refused(self) -> None:
        with pytest.raises(TaskError, match=r"sft\.phases\.style\.skill"):
            HiddenChoices().demonstrations(0, 1, {"skill": 1.0})

    def test_shorter_ones_are_beginnings(self) -> None:
        task = HiddenChoices(num_decisions=12, num_named=9, tokens_per_decision=6)
        whole, short = task.demonstrations(0, 50, {}), task.demonstrations(0, 50, {"num_decisions": 9})
        assert [each.prompt for each in whole] == [each.prompt for each in short]
        for prompt, response in short:
            kinds = "".join(line.partition(">")[2][0] for line in response.splitlines())
            assert len(kinds) == 9
            assert str(prompt).startswith("".join(f"<{i + 1}>{kind}" for i, kind in enumerate(kinds)) + "={")
        assert all(each.response.count("\n") == 12 for each in whole)

    def test_the_same_seed_gives_the_same(self) -> None:
        task = HiddenChoices()
        assert task.demonstrations(5, 3, {}) == task.demonstrations(5, 3, {}) != task.demonstrations(6, 3, {})


@pytest.mark.parametrize("options", [{}, SMALL, {"tokens_per_decision": 6, "num_options": 10, "num_kinds": 26}])
def test_a_decision_has_as_many_tokens_as_it_says(options: dict[str, Any]) -> None:
    """And what is encoded decodes to the same text."""
    task = HiddenChoices(**options)
    tokenizer, given = task.tokenizer(), task.options
    prompt, response = task.demonstrations(0, 1, {})[0]
    ids = tokenizer.encode(response).ids
    assert len(ids) == given.num_decisions * given.tokens_per_decision
    assert len(tokenizer.encode(str(prompt)).ids) == 2 * 8 + 2
    assert tokenizer.decode(ids, skip_special_tokens=False) == response
    assert tokenizer.token_to_id("<pad>") not in ids
