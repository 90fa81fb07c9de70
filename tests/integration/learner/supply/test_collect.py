"""Issuing, waiting, giving up and topping up against a real Redis, without any model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.integration.rig.scripted import fabricate
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import DeadlineExceeded
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import decode_trajectory, encode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.damage import damage_payload, flip_bit
from vcppo.common.store.ledger import BufferEntry
from vcppo.common.store.left_out import Account
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks import load_task
from vcppo.learner.supply.collect import BatchCollector, PromptIssuer, give_up_outdated
from vcppo.learner.supply.prompts import PromptSource


def encode(prompt: object) -> Any:
    return np.frombuffer(str(prompt).encode(), np.uint8).astype(np.int32)


class Setup:
    """A collector and a hand-worked generator."""

    def __init__(self, url: str, name: str, **sections: dict[str, Any]) -> None:
        tree: dict[str, Any] = {
            "run": {"name": name},
            "model": {"path": "unused"},
            "rl": {"batch_size": 4, "group_size": 2, "num_steps": 10, "max_staleness": 1},
            "learner": {"batch_deadline_seconds": 61.0},
        }
        for section, values in sections.items():
            tree[section] = {**tree.get(section, {}), **values}
        self.config = VcppoConfig.model_validate(tree)
        self.store = RunStore.connect(url, name, 10.0)
        self.source = PromptSource(self.config, load_task(self.config.task), encode)
        self.issuer = PromptIssuer(self.store, self.source, "rl")
        self.collector = BatchCollector(self.config, self.store, self.issuer)

    def lease(self, count: int = 100) -> list[Prompt]:
        return self.store.lease("generator-0", count, 60.0, wait_seconds=0.0)

    def answer(self, prompt: Prompt, oldest_version: int | None = None) -> None:
        oldest = prompt.issue_version if oldest_version is None else oldest_version
        trajectory = fabricate(prompt, prompt.issue_version)
        entry = BufferEntry.of(trajectory, encode_trajectory(trajectory))._replace(oldest_version=oldest)
        assert self.store.append([entry]) == ["accepted"]

    def train(self, ids: list[str], version: int) -> None:
        """Stands for a step: its claim stays uncommitted, as before a checkpoint."""
        self.store.claim(ids, version + 1)

    def damage(self, prompt_id: str, change: Callable[[bytes], bytes | None]) -> None:
        """Write other bytes in a stored payload's place; None: take it away."""
        assert damage_payload(self.store, prompt_id, change)


@pytest.fixture
def setup(redis_server: str, request: pytest.FixtureRequest) -> Callable[..., Setup]:
    return lambda **sections: Setup(redis_server, request.node.name[:64], **sections)


def test_credits_count_uncommitted_claims_as_trained(setup: Callable[..., Setup]) -> None:
    s = setup()
    assert s.collector.issue(0) == 8
    assert s.collector.issue(0) == 0
    prompts = s.lease()
    for prompt in prompts[:4]:
        s.answer(prompt)
    ids = s.collector.poll(0)
    assert ids == [prompt.id for prompt in prompts[:4]]
    s.train(ids, 0)
    assert s.collector.issue(1) == 4
    assert s.store.ledger().issued == 12


def test_a_version_that_does_not_exist_yet_is_a_dead_letter_and_replaced(setup: Callable[..., Setup]) -> None:
    """Its staleness would be below 0, which ended the learner in its statistics."""
    s = setup()
    s.collector.issue(0)
    prompts = s.lease()
    s.answer(prompts[0], oldest_version=10**12)
    for prompt in prompts[1:4]:
        s.answer(prompt)
    assert s.collector.poll(0) is None
    assert s.store.dead_letters()[0].reason == "of a policy version that does not exist yet"
    assert s.store.ledger().issued == 9
    s.answer(prompts[4])
    assert s.collector.poll(0) == [prompt.id for prompt in prompts[1:5]]


def test_issuing_again_after_a_crash_changes_nothing(setup: Callable[..., Setup]) -> None:
    s = setup()
    s.collector.issue(0)
    facts.next_index("rl").write(s.store, 0)  # the crash came before the index was stored
    again = PromptIssuer(s.store, s.source, "rl")
    assert again.issue(8, version=0) == 0
    assert s.store.ledger().issued == 8
    assert PromptIssuer(s.store, s.source, "rl").next_index == 8


def test_the_last_steps_issue_only_what_they_train(setup: Callable[..., Setup]) -> None:
    assert setup(rl={"num_steps": 1}).collector.issue(0) == 4


def test_a_group_that_lost_a_member_is_topped_up_with_a_new_sample(setup: Callable[..., Setup]) -> None:
    s = setup(algorithm={"advantage_estimator": "leave_one_out"}, rl={"max_staleness": 0})
    s.collector.issue(0)
    prompts = s.lease()
    for prompt in prompts[1:]:
        s.answer(prompt)
    replacement = prompts[0]
    for _ in range(2):  # the replacement is lost too
        lost = replacement
        assert s.store.reject(lost.id, "malformed")
        assert s.collector.poll(0) is None
        (replacement,) = s.lease()
        assert replacement.group_id == prompts[0].group_id
        assert replacement.token_ids.tolist() == prompts[0].token_ids.tolist()
        assert replacement.seed != lost.seed
    s.answer(replacement)
    ids = s.collector.poll(0)
    assert ids is not None
    assert sorted(ids) == sorted([replacement.id, *(prompt.id for prompt in prompts[1:])])
    assert s.store.ledger().is_exact


def test_a_trajectory_of_old_weights_is_given_up_and_replaced(setup: Callable[..., Setup]) -> None:
    s = setup()
    s.collector.issue(5)
    first, *others = s.lease()
    s.answer(first, oldest_version=3)
    for prompt in others[:4]:
        s.answer(prompt)
    assert s.collector.poll(5) == [prompt.id for prompt in others[:4]]
    assert s.store.ledger().rejected == 1
    assert s.store.dead_letters()[0].reason == "stale"


def test_stragglers_are_dropped_when_asked_to(setup: Callable[..., Setup]) -> None:
    s = setup(rl={"straggler": "drop"})
    s.collector.issue(0)
    slow, *prompts = s.lease()
    for prompt in prompts[:4]:
        s.answer(prompt)
    ids = s.collector.poll(0)
    assert ids is not None
    s.train(ids, 0)
    s.collector.issue(1)
    for prompt in [*prompts[4:], *s.lease()]:
        s.answer(prompt)
    ids = s.collector.poll(1)
    assert ids is not None
    assert slow.id not in ids
    ledger = s.store.ledger()
    assert (ledger.expired, ledger.is_exact) == (1, True)


def test_the_deadline_names_whom_it_waited_for(setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch) -> None:
    s = setup()
    s.collector.issue(0)
    (leased,) = s.lease(1)
    monkeypatch.setattr("vcppo.learner.supply.collect.POLL_SECONDS", 0.01)
    assert s.collector.poll(0) is None
    monkeypatch.setattr(s.collector._watch, "_started", time.monotonic() - 62.0)
    with pytest.raises(DeadlineExceeded, match=r"learner\.batch_deadline_seconds = 61") as caught:
        s.collector.poll(0)
    assert leased.id in str(caught.value)
    assert "'leased_by': {'generator-0': 1}" in str(caught.value)


def test_prompts_of_other_settings_are_settled_before_anything_is_trained(setup: Callable[..., Setup]) -> None:
    """In every state: queued, leased, answered, claimed. The ledger stays exact, and numbers go on."""
    s = setup()
    assert give_up_outdated(s.store, "first settings") == 0
    s.collector.issue(0)
    prompts = s.lease(6)
    for prompt in prompts[:5]:
        s.answer(prompt)
    s.store.claim([prompt.id for prompt in prompts[:4]], 1)
    assert give_up_outdated(s.store, "first settings") == 0
    assert s.store.ledger().outstanding == 8
    assert give_up_outdated(s.store, "other settings") == 8
    ledger = s.store.ledger()
    assert ledger.is_exact
    assert (ledger.outstanding, ledger.trained) == (0, 0)
    assert s.store.claimed() == {}
    assert s.collector.issue(0) == 8
    assert not {prompt.id for prompt in prompts} & {prompt.id for prompt in s.lease()}


def test_what_was_damaged_in_the_store_is_rejected_at_the_claim_and_replaced(setup: Callable[..., Setup]) -> None:
    """A flipped bit, a torn payload, another prompt's, none: the batch goes on with others, the ledger is exact."""
    s = setup()
    s.collector.issue(0)
    prompts = s.lease(5)
    for prompt in prompts:
        s.answer(prompt)
    first, second, third, fourth, fifth = (prompt.id for prompt in prompts)
    s.damage(first, flip_bit)
    s.damage(second, lambda payload: payload[:-20])
    s.damage(third, lambda _: s.store.payloads([fifth])[0])
    s.damage(fourth, lambda _: None)
    ids = s.collector.poll(0)
    assert ids == [first, second, third, fourth]
    assert s.collector.claim(ids, 1) is None
    assert (s.store.ledger().rejected, s.store.ledger().claimed) == (4, 0)
    letters = {letter.detail.split(": ")[0]: letter.detail for letter in s.store.dead_letters()}
    assert letters.keys() == {first, second, third, fourth}
    for prompt_id, part in ((first, "checksum: "), (third, f"{fifth!r} is stored as"), (fourth, "the store has none")):
        assert part in letters[prompt_id]
    while (ids := s.collector.poll(0)) is None:
        for prompt in s.lease():
            s.answer(prompt)
    payloads = s.collector.claim(ids, 1)
    assert payloads is not None
    assert ids[0] == fifth
    assert [decode_trajectory(payload).prompt_id for payload in payloads] == ids
    assert (s.store.ledger().claimed, s.store.ledger().is_exact) == (4, True)


def test_what_the_model_has_no_room_for_is_rejected_at_the_claim(setup: Callable[..., Setup]) -> None:
    """Its sum is right: it was buffered before the model or the limits changed, or by a buffer that knew others."""
    s = setup()
    facts.VOCABULARY_SIZE.write(s.store, 500)
    s.collector.issue(0)
    odd = s.lease(1)[0]
    sound = fabricate(odd, 0)
    num, room = len(sound.response_token_ids), s.config.generator.max_model_len
    beyond = replace(sound, response_token_ids=np.full(num, 500, np.int32))
    long = replace(sound, prompt_token_ids=np.zeros(room, np.int32))
    for made, field in ((beyond, "response_token_ids: "), (long, "num_response: ")):
        faults = s.collector.quarantine.faults([odd.id], {odd.id: encode_trajectory(made)})
        assert faults[odd.id].startswith(field)
    assert s.collector.quarantine.faults([odd.id], {odd.id: encode_trajectory(sound)}) == {}


def test_a_prompt_that_is_rejected_between_the_choice_and_the_claim_costs_nothing_else(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `vcppo reject`, say, while the learner runs."""
    s = setup()
    s.collector.issue(0)
    for prompt in s.lease(4):
        s.answer(prompt)
    ids = s.collector.poll(0)
    assert ids is not None
    monkeypatch.setattr(s.collector.quarantine, "reject", lambda *_: s.store.reject(ids[1], "by hand"))
    assert s.collector.claim(ids, 1) is None
    assert (s.store.ledger().claimed, s.store.ledger().buffered) == (0, 3)


GROUPED: dict[str, dict[str, Any]] = {
    "algorithm": {"advantage_estimator": "group_mean"},
    "rl": {"dynamic_sampling": "rewards", "max_staleness": 0},
}


def answer_groups(s: Setup, right_of: Callable[[str], list[bool]]) -> list[str]:
    """All that can be leased, by what `right_of` says of a group's samples; the groups, in order."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in s.lease():
        groups.setdefault(prompt.group_id, []).append(prompt)
    for name, prompts in groups.items():
        for prompt, right in zip(prompts, right_of(name), strict=True):
            made = replace(
                fabricate(prompt, prompt.issue_version),
                reward=1.0 if right else -1.0,
                outcome="correct" if right else "wrong",
            )
            assert s.store.append([BufferEntry.of(made, encode_trajectory(made))]) == ["accepted"]
    return list(groups)


def batch_of(s: Setup, version: int, right_of: Callable[[str], list[bool]]) -> list[str]:
    while (ids := s.collector.poll(version)) is None:
        answer_groups(s, right_of)
    assert s.collector.claim(ids, version + 1) is not None
    return ids


MIXED, RIGHT, WRONG = [True, False], [True, True], [False, False]


def test_groups_without_signal_are_left_out_and_the_batch_is_filled_up(setup: Callable[..., Setup]) -> None:
    s = setup(**GROUPED)
    kinds = {"rl-00000000": RIGHT, "rl-00000002": WRONG, "rl-00000003": RIGHT}
    s.collector.issue(0)
    ids = batch_of(s, 0, lambda name: kinds.get(name, MIXED))
    assert ids == ["rl-00000001-0", "rl-00000001-1", "rl-00000004-0", "rl-00000004-1"]
    ledger = s.store.ledger()
    assert (ledger.is_exact, ledger.rejected, ledger.without_signal, ledger.claimed) == (True, 6, 6, 4)
    assert s.store.num_dead_letters() == 0
    account = Account.loads(facts.LEFT_OUT.read(s.store))
    assert [(each.group_id, each.reason) for each in account.steps[1]] == [
        ("rl-00000000", "no signal: all 2 rewards are 1.0"),
        ("rl-00000002", "no signal: all 2 rewards are -1.0"),
        ("rl-00000003", "no signal: all 2 rewards are 1.0"),
    ]
    trained = [decode_trajectory(payload) for payload in s.store.payloads(ids)]
    assert s.collector.dynamic_sampling is not None
    figures = s.collector.dynamic_sampling.figures(1, trained)
    assert figures["dynamic_sampling/groups_left_out"] == 3
    assert (figures["dynamic_sampling/all_correct"], figures["dynamic_sampling/all_wrong"]) == (2, 1)
    assert figures["dynamic_sampling/share_left_out"] == pytest.approx(3 / 5)
    assert figures["dynamic_sampling/accuracy"] == pytest.approx((4 + 2) / 10)
    assert figures["dynamic_sampling/trained_without_signal"] == 0
    assert figures["dynamic_sampling/tokens_not_trained"] > figures["dynamic_sampling/response_tokens_left_out"] > 0


@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_task_without_signal_is_trained_after_its_limit_and_never_waits_for_ever(
    setup: Callable[..., Setup], max_staleness: int, num_steps: int
) -> None:
    """Also at the last step, where no more is issued than it trains."""
    s = setup(
        algorithm=GROUPED["algorithm"],
        rl={"dynamic_sampling": "rewards", "dynamic_sampling_max_batches": 2, "max_staleness": max_staleness,
            "num_steps": num_steps},
    )  # fmt: skip
    for version in range(min(2, num_steps)):
        s.collector.issue(version)
        ids = batch_of(s, version, lambda _: RIGHT)
        account = Account.loads(facts.LEFT_OUT.read(s.store))
        assert len(account.steps[version + 1]) == 4  # two batches of two groups
        trained = [decode_trajectory(payload) for payload in s.store.payloads(ids)]
        assert s.collector.dynamic_sampling is not None
        figures = s.collector.dynamic_sampling.figures(version + 1, trained)
        assert figures["dynamic_sampling/trained_without_signal"] == 2
        assert all(version - each.oldest_version <= max_staleness for each in trained)
    ledger = s.store.ledger()
    assert ledger.is_exact
    assert ledger.credits_used <= (max_staleness + 1) * 4


def test_a_group_with_one_missing_is_not_looked_at_and_one_topped_up_is(setup: Callable[..., Setup]) -> None:
    s = setup(**GROUPED)
    s.collector.issue(0)
    first, second, *others = s.lease()
    for prompt in (second, *others):
        made = replace(fabricate(prompt, 0), reward=1.0, outcome="correct")
        s.store.append([BufferEntry.of(made, encode_trajectory(made))])
    assert s.store.reject(first.id, "malformed")
    assert s.collector.poll(0) is None  # the second group is left out, the first is topped up
    assert s.store.ledger().without_signal == 2
    ids = batch_of(s, 0, lambda name: [True] if name == first.group_id else MIXED)
    assert not any(prompt_id.startswith(first.group_id) for prompt_id in ids)
    assert (s.store.ledger().rejected, s.store.ledger().without_signal) == (5, 4)


def test_with_a_critic_groups_are_trained_whole_too(setup: Callable[..., Setup]) -> None:
    s = setup(rl={"dynamic_sampling": "outcomes"})
    s.collector.issue(0)
    ids = batch_of(s, 0, lambda name: WRONG if name == "rl-00000000" else MIXED)
    assert ids == [f"rl-0000000{group}-{sample}" for group in (1, 2) for sample in (0, 1)]


def test_one_that_is_rejected_by_hand_meanwhile_is_looked_at_again(
    setup: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    s = setup(**GROUPED)
    s.collector.issue(0)
    answer_groups(s, lambda name: RIGHT if name == "rl-00000000" else MIXED)
    leave_out = s.store.leave_out

    def late(prompt_ids: list[str], fact: tuple[str, str]) -> bool:
        s.store.reject("rl-00000000-1", "by hand")
        return leave_out(prompt_ids, fact)

    monkeypatch.setattr(s.store, "leave_out", late)
    ids = s.collector.poll(0)
    monkeypatch.undo()
    assert ids is not None and s.collector.claim(ids, 1) is None
    assert (s.store.ledger().rejected, s.store.ledger().without_signal) == (1, 0)
    assert facts.LEFT_OUT.read(s.store) is None
    batch_of(s, 0, lambda name: [True] if name == "rl-00000000" else MIXED)  # its replacement is right: left out
    assert (s.store.ledger().rejected, s.store.ledger().without_signal, s.store.ledger().is_exact) == (3, 2, True)
