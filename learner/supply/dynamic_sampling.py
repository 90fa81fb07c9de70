"""Finished groups that teach nothing are left out of training, and other groups take their place.

Source: DAPO (arXiv 2503.14476), section 3.2, dynamic sampling. A group estimator's advantage is a reward less its
group's: where all rewards of a group are the same it is 0, and the group only makes the batch smaller and the step
noisier.

A group is looked at once all its trajectories have arrived, whichever batch it would be in. Left out, it is rejected
in one script with the account of it (`vcppo.common.store.left_out`): all of it or nothing, so no crash leaves half a
group behind. Its credits are free in the same instant and new groups are issued. Rejections only lower the counts of
`vcppo.learner.supply.credits`, so the staleness bound holds as it stands there, and the batch still waits for open
prompts only: each of them is being generated, and there are at most ``rl.dynamic_sampling_max_batches`` batches more
of them a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.store import facts
from vcppo.common.store.ledger import Outstanding
from vcppo.common.store.left_out import KINDS, Account, Kind, LeftOut, sums_of
from vcppo.common.store.run_store import RunStore
from vcppo.learner.supply.credits import Unit

log = structlog.get_logger(__name__)


def find_without_signal(units: Iterable[Unit], outstanding: Iterable[Outstanding], by: str) -> list[LeftOut]:
    """The finished groups among ``units`` that teach nothing, in their order. Pure.

    Args:
        outstanding: what is known of their trajectories. One of which no reward is known makes its group pass.
        by: ``rewards`` or ``outcomes``, as of ``rl.dynamic_sampling``.
    """
    by_id = {entry.prompt_id: entry for entry in outstanding}
    found = [look_at([by_id[prompt_id] for prompt_id in unit.ids], by) for unit in units if unit.ready]
    return [each for each in found if each is not None]


def look_at(members: Sequence[Outstanding], by: str) -> LeftOut | None:
    """Why this group would be left out; None: it has a signal. Pure."""
    rewards = [member.reward for member in members]
    if None in rewards:
        return None
    kind, reason = _without_signal([(float(m.reward or 0.0), bool(m.is_correct)) for m in members], by)
    if kind is None:
        return None
    return LeftOut(
        members[0].group_id,
        kind,
        reason,
        num_samples=len(members),
        num_correct=sum(bool(member.is_correct) for member in members),
        num_tokens=sum(member.num_tokens or 0 for member in members),
        num_response=sum(member.num_response or 0 for member in members),
    )


def _without_signal(responses: Sequence[tuple[float, bool]], by: str) -> tuple[Kind | None, str]:
    """(what kind of group without signal, why in words) of (reward, correct) of each response; None: it has one."""
    num = len(responses)
    num_correct = sum(is_correct for _, is_correct in responses)
    kind: Kind = "all_correct" if num_correct == num else "all_wrong" if num_correct == 0 else "same_reward"
    first = responses[0][0]
    if all(reward == first for reward, _ in responses):
        return kind, f"no signal: all {num} rewards are {first}"
    if by == "outcomes" and kind != "same_reward":
        which = f"all {num} responses are correct" if num_correct else f"none of {num} responses is correct"
        return kind, f"no signal: {which}"
    return None, ""


class DynamicSampling:
    """Rank 0's, of a run that has it on."""

    def __init__(self, config: VcppoConfig, store: RunStore) -> None:
        rl = config.rl
        self._by = rl.dynamic_sampling or "rewards"
        self._most = rl.dynamic_sampling_max_batches * (rl.batch_size // rl.group_size)  # groups a step
        self._store = store
        self._told_step = -1

    def leave_out(self, units: Iterable[Unit], outstanding: Sequence[Outstanding], version: int) -> int:
        """Reject the groups without signal, as far as the step after ``version`` may; returns how many."""
        step = version + 1
        found = find_without_signal(units, outstanding, self._by)
        if not found:
            return 0
        account = self._account()
        room = self._most - len(account.steps.get(step, []))
        if len(found) > room and self._told_step != step:
            self._told_step = step
            log.warning(
                "dynamic_sampling_at_its_limit",
                step=step,
                groups_left_out=self._most,
                effect="the step is trained with what there is",
                remedy="harder or easier problems, or raise rl.dynamic_sampling_max_batches",
            )
        return self._reject(account, step, found[: max(0, room)], outstanding)

    def _reject(self, account: Account, step: int, groups: list[LeftOut], outstanding: Sequence[Outstanding]) -> int:
        if not groups:
            return 0
        names = {each.group_id for each in groups}
        ids = [entry.prompt_id for entry in outstanding if entry.group_id in names and entry.state == "buffered"]
        text = account.adding(step, groups, facts.COMMITTED_STEP.read(self._store) or 0).dumps()
        done = self._store.leave_out(ids, facts.LEFT_OUT.stored(text))
        if not done and facts.LEFT_OUT.read(self._store) != text:  # it may be done, and the answer lost
            log.info("groups_changed", step=step, effect="looked at again")  # one was rejected by hand meanwhile
            return 0
        for each in groups:
            log.info("group_left_out", group_id=each.group_id, reason=each.reason, step=step, tokens=each.num_response)
        return len(groups)

    def left_out(self, step: int) -> list[LeftOut]:
        """What was left out before this step; of a committed one it may be forgotten."""
        return self._account().steps.get(step, [])

    def figures(self, version: int, trained: Sequence[Trajectory]) -> dict[str, float | int]:
        """Of the step that made ``version`` of these trajectories; the same when it is done again."""
        left_out = self.left_out(version)
        sums, kinds = sums_of(left_out), {kind: sum(each.kind == kind for each in left_out) for kind in KINDS}
        groups: dict[str, list[tuple[float, bool]]] = {}
        for each in trained:
            groups.setdefault(each.group_id, []).append((each.reward, each.outcome == "correct"))
        num_correct = sum(each.outcome == "correct" for each in trained)
        without = sum(_without_signal(group, self._by)[0] is not None for group in groups.values())
        return {
            "dynamic_sampling/groups_left_out": sums.groups,
            **{f"dynamic_sampling/{kind}": count for kind, count in kinds.items()},
            "dynamic_sampling/share_left_out": sums.groups / max(1, sums.groups + len(groups)),
            "dynamic_sampling/accuracy": (sums.correct + num_correct) / max(1, sums.samples + len(trained)),
            "dynamic_sampling/response_tokens_left_out": sums.response_tokens,
            "dynamic_sampling/tokens_not_trained": sums.tokens,
            "dynamic_sampling/trained_without_signal": without,
        }

    def _account(self) -> Account:
        return Account.loads(facts.LEFT_OUT.read(self._store))
