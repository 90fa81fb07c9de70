"""Rank 0's dealings with the store: issue prompts by credit, wait for a batch, claim it, commit it.

consumes     trajectories the buffer appended
waits for    the batch `vcppo.learner.supply.credits.select_batch` asks for, at most learner.batch_deadline_seconds
unblocked by an append (notification stream), a rejection (its replacement is issued here), a stop request

Groups without signal are left out before a batch is chosen (`vcppo.learner.supply.dynamic_sampling`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import DeadlineExceeded
from vcppo.common.records.ids import purpose_of
from vcppo.common.records.trajectory import Purpose
from vcppo.common.store import facts
from vcppo.common.store.ledger import Outstanding
from vcppo.common.store.run_store import RunStore, StoreFull
from vcppo.learner.supply.credits import (
    Entry,
    Ready,
    Unit,
    Wait,
    make_units,
    num_units_to_issue,
    select_batch,
    shrunk_groups,
    too_stale,
)
from vcppo.learner.supply.dynamic_sampling import DynamicSampling
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.supply.quarantine import Quarantine

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
REPORT_SECONDS = 15.0
_NUM_NAMED = 5  # prompts named in a line about waiting


class PromptIssuer:
    """Issues prompts of one purpose in order; the index of the next one lives in the store."""

    def __init__(self, store: RunStore, source: PromptSource, purpose: Purpose) -> None:
        self._store = store
        self._source = source
        self._purpose: Purpose = purpose
        self._stored_index = facts.next_index(purpose)
        self._told_at = float("-inf")
        self.is_held_back = False  # for want of room in the store
        self.next_index = self._stored_index.read(store) or 0

    @property
    def source(self) -> PromptSource:
        """Where its prompts come from."""
        return self._source

    def not_before(self, index: int) -> None:
        """A checkpoint's index counts where the store is a new one."""
        self.next_index = max(self.next_index, index)

    def issue(self, count: int, version: int) -> int:
        """Prompts first, index second: after a crash in between the same ids are issued again, to no effect."""
        if count <= 0 or self._lacks_room():
            return 0
        prompts = self._source.prompts(self._purpose, self.next_index, count, version)
        try:
            num_new = self._store.issue(prompts)
        except StoreFull as error:  # between the look and the deed; some may be in: issuing them again changes nothing
            self._hold_back(str(error))
            return 0
        self.next_index += count
        self._stored_index.write(self._store, self.next_index)
        return num_new

    def _lacks_room(self) -> bool:
        memory = self._store.memory()
        if memory.is_short:
            self._hold_back(f"{memory.used / 2**20:.0f} of {memory.limit / 2**20:.0f} MiB are used")
        else:
            self.is_held_back = False
        return memory.is_short

    def _hold_back(self, reason: str) -> None:
        """Issue nothing until there is room again, with a line now and then."""
        self.is_held_back = True
        if time.monotonic() - self._told_at >= REPORT_SECONDS:
            self._told_at = time.monotonic()
            log.warning("issue_held_back", reason=reason, waiting_for="a commit", remedy="raise redis.maxmemory_mib")

    def top_up(self, group_id: str, count: int, version: int) -> None:
        """Replace ``count`` lost samples of a group; sample numbers that were used before are passed over."""
        attempt = 0
        while count > 0 and not self._lacks_room():
            count -= self._store.issue([self._source.extra_sample(group_id, attempt, version)])
            attempt += 1


class BatchCollector:
    """Batches for the RL steps, within the staleness bound."""

    def __init__(self, config: VcppoConfig, store: RunStore, issuer: PromptIssuer) -> None:
        self._rl = config.rl
        self._deadline_seconds = config.learner.batch_deadline_seconds
        self._store = store
        self._issuer = issuer
        self.dynamic_sampling = DynamicSampling(config, store) if config.rl.dynamic_sampling is not None else None
        in_groups = config.algorithm.has_group_baseline or self.dynamic_sampling is not None
        self._group_size = config.rl.group_size if in_groups else 1
        self._units_per_step = config.rl.batch_size // self._group_size
        self._watch = WaitWatch("batch", self._deadline_seconds)
        self.quarantine = Quarantine(config, store)

    def issue(self, version: int) -> int:
        """Issue as much as the credits allow at ``version``; returns how many prompts."""
        return self._issue(version, self._with_signal(version, self._store.outstanding()))

    def _issue(self, version: int, outstanding: Iterable[Outstanding]) -> int:
        entries = to_entries(outstanding)
        if self._group_size > 1:
            for group_id, lost in shrunk_groups(entries, self._group_size).items():
                log.info("group_topped_up", group_id=group_id, num_prompts=lost, policy_version=version)
                self._issuer.top_up(group_id, lost, version)
        units = self._units(entries)
        steps_left = self._rl.num_steps - version
        count = num_units_to_issue(len(units), self._units_per_step, self._rl.max_staleness, steps_left)
        return self._issuer.issue(count * self._group_size, version)

    def poll(self, version: int) -> list[str] | None:
        """The next batch's prompt ids, or None after waiting a moment for one more trajectory.

        Raises:
            DeadlineExceeded: too long without a batch; names the prompts and generators waited for.
        """
        outstanding = self._store.outstanding()
        if self._give_up_stale(outstanding, version) or self._give_up_impossible(outstanding, version):
            outstanding = self._store.outstanding()
        kept = self._with_signal(version, outstanding)
        if kept is not outstanding:  # whatever comes of the batch, generators go on
            self._issue(version, kept)
            outstanding = self._store.outstanding()
        decision = select_batch(
            self._units(to_entries(outstanding)),
            version=version,
            units_per_step=self._units_per_step,
            max_staleness=self._rl.max_staleness,
            straggler=self._rl.straggler,
        )
        if isinstance(decision, Ready):
            self._watch.reset()
            self._drop(decision, outstanding, version)
            return decision.prompt_ids
        self._wait(decision, outstanding, version)
        return None

    def claim(self, prompt_ids: Sequence[str], step: int) -> list[bytes] | None:
        """The payloads of a batch, claimed for `step`. None: some could not be used and were rejected, or are gone
        meanwhile: nothing was claimed, `poll` again; their replacements are issued there."""
        payloads = self.quarantine.sound(prompt_ids)
        if len(payloads) < len(prompt_ids):
            return None
        if refused := self._store.take(prompt_ids, step):
            log.warning("batch_changed", prompt_id=refused, reason="it is not buffered any more", effect="polled again")
            return None
        return list(payloads.values())

    def _units(self, entries: Iterable[Entry]) -> list[Unit]:
        return make_units(entries, self._group_size, self._rl.max_staleness)

    def _with_signal(self, version: int, outstanding: list[Outstanding]) -> list[Outstanding]:
        """What is outstanding once groups without signal are left out; the same list where none was."""
        dynamic = self.dynamic_sampling
        if dynamic is None or not dynamic.leave_out(self._units(to_entries(outstanding)), outstanding, version):
            return outstanding
        return self._store.outstanding()

    def _wait(self, decision: Wait, outstanding: Sequence[Outstanding], version: int) -> None:
        self._issue(version, outstanding)  # rejections free credits while we wait
        self._store.requeue_expired_leases()
        self._watch.check(lambda: describe_wait(self._store, outstanding, decision.on))
        if decision.on and self._rl.straggler == "wait":
            self._store.wait_for_all(decision.on, POLL_SECONDS)
        else:  # whatever comes next may do
            self._store.wait_for_append(POLL_SECONDS)

    def _give_up_stale(self, outstanding: Sequence[Outstanding], version: int) -> bool:
        stale = too_stale(to_entries(outstanding), version, self._rl.max_staleness)
        if stale:
            log.warning(
                "trajectories_too_stale",
                num_trajectories=len(stale),
                prompt_ids=stale[:_NUM_NAMED],
                policy_version=version,
                max_staleness=self._rl.max_staleness,
                cause="a generator ran old weights, or rl.max_staleness or rl.batch_size was lowered on resume",
            )
            give_up(self._store, stale, outstanding, "stale")
        return bool(stale)

    def _give_up_impossible(self, outstanding: Sequence[Outstanding], version: int) -> bool:
        """What says it was made by weights that do not exist yet: a broken generator's, or none's."""
        ahead = [
            entry.prompt_id
            for entry in outstanding
            if entry.state == "buffered" and entry.oldest_version is not None and entry.oldest_version > version
        ]
        if ahead:
            log.error("trajectories_from_the_future", prompt_ids=ahead[:_NUM_NAMED], policy_version=version)
            give_up(self._store, ahead, outstanding, "of a policy version that does not exist yet")
        return bool(ahead)

    def _drop(self, decision: Ready, outstanding: Sequence[Outstanding], version: int) -> None:
        """straggler=drop: each drop is a log line with what is known of its length and difficulty."""
        if not decision.dropped:
            return
        siblings: dict[str, list[int]] = {}
        for entry in outstanding:
            if entry.num_tokens is not None:
                siblings.setdefault(entry.group_id, []).append(entry.num_tokens)
        by_id = {entry.prompt_id: entry for entry in outstanding}
        for prompt_id in decision.dropped:
            entry = by_id[prompt_id]
            arrived = siblings.get(entry.group_id, [])
            log.warning(
                "straggler_dropped",
                prompt_id=prompt_id,
                issue_version=entry.issue_version,
                policy_version=version,
                siblings_arrived=len(arrived),
                siblings_mean_tokens=sum(arrived) / len(arrived) if arrived else None,
            )
        give_up(self._store, decision.dropped, outstanding, "straggler")


class WaitWatch:
    """The deadline of a wait, and a log line every `REPORT_SECONDS` that says on whom."""

    def __init__(self, what: str, deadline_seconds: float) -> None:
        self._what = what
        self._deadline_seconds = deadline_seconds
        self.reset()

    def reset(self) -> None:
        """What was waited for has come; the next `check` starts a new wait."""
        self._started: float | None = None
        self._next_report = 0.0

    def check(self, describe: Callable[[], dict[str, object]]) -> None:
        """Raises DeadlineExceeded when the wait has lasted too long."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
            self._next_report = now + REPORT_SECONDS
        waited = now - self._started
        if waited > self._deadline_seconds:
            raise DeadlineExceeded(
                f"no {self._what} for {waited:.0f} s (learner.batch_deadline_seconds = {self._deadline_seconds:g}); "
                f"waited for {describe()}"
            )
        if now >= self._next_report:
            self._next_report = now + REPORT_SECONDS
            log.info(f"waiting_for_{self._what}", seconds=round(waited, 1), **describe())


def to_entries(outstanding: Iterable[Outstanding]) -> list[Entry]:
    """What can still be batched: claimed prompts are trained (their commit waits for a checkpoint), and those of an
    evaluation never are."""
    return [
        Entry(
            entry.prompt_id,
            entry.group_id,
            entry.issue_version if entry.oldest_version is None else min(entry.issue_version, entry.oldest_version),
            entry.state == "buffered",
        )
        for entry in outstanding
        if entry.state != "claimed" and purpose_of(entry.prompt_id) != "evaluation"
    ]


def give_up(store: RunStore, prompt_ids: Sequence[str], outstanding: Iterable[Outstanding], reason: str) -> None:
    """Expire what has not arrived, reject what has; one that arrived in between is rejected too."""
    arrived = {entry.prompt_id for entry in outstanding if entry.state == "buffered"}
    pending = [prompt_id for prompt_id in prompt_ids if prompt_id not in arrived]
    expired = set(store.expire(pending, reason)) if pending else set()
    for prompt_id in prompt_ids:
        if prompt_id not in expired:
            store.reject(prompt_id, reason)


def give_up_outdated(store: RunStore, made_with: str) -> int:
    """Settle every open prompt that was made with other settings than `made_with` names; returns how many.

    For a run that has trained and recorded nothing yet: its settings may have changed since the prompts were issued.
    """
    before = facts.PROMPTS_MADE_WITH.read(store)
    outdated: list[Outstanding] = []
    if before is not None and before != made_with:
        outdated = store.outstanding()
        give_up(store, [entry.prompt_id for entry in outdated], outdated, "made with other settings")
        if outdated:
            log.warning("prompts_outdated", num_prompts=len(outdated), reason="the settings have changed since")
    facts.PROMPTS_MADE_WITH.write(store, made_with)
    return len(outdated)


def describe_wait(store: RunStore, outstanding: Iterable[Outstanding], on: Sequence[str]) -> dict[str, object]:
    """Whom a wait is on: the missing prompts by state, and the generators that are alive."""
    missing = set(on)
    states = Counter(entry.state for entry in outstanding if not missing or entry.prompt_id in missing)
    owners = Counter(owner for prompt_id, owner in store.lease_owners().items() if not missing or prompt_id in missing)
    return {
        "missing": len(on),
        "prompt_ids": list(on[:_NUM_NAMED]),
        **{f"num_{state}": count for state, count in sorted(states.items())},
        "leased_by": dict(owners),
        "generators_alive": sorted(member.id for member in store.members("generator")),
    }
