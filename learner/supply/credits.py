"""How many prompts to issue, and which trajectories make the next batch. Pure; the staleness bound lives here.

Accounting is in *units*: single trajectories for GAE, whole groups for the group estimators (a group
is issued, waited for and trained as one). With U units per step, eta = ``max_staleness`` and learner
version v, a unit whose oldest version is w may be trained at versions w .. w + eta; its *deadline* is
d = w + eta. Two rules:

1. Issue only while fewer than (eta + 1) * U units are open (issued and not trained, rejected or
   expired; claimed-and-trained counts as trained although its commit waits for a checkpoint).
2. The batch at version v is the U open units with the earliest deadlines, in issue order among equals, however
   long the last of them takes (``straggler=wait``). Who finished first never decides what is trained next: the
   first finished are the short responses, and the first batches would hold little else.

Why no trajectory is ever older than eta, and nothing deadlocks. Invariant F(v): #{open: d <= v + j} <=
(j + 1) * U for all j in 0..eta. What is issued at v has d = v + eta, where rule 1 is exactly F for
j = eta; smaller j are untouched. A batch of the earliest deadlines takes min(U, #{d <= v + j}) units
out of each of these counts, which leaves #{d <= v + 1 + i} <= (i + 1) * U: F(v + 1) for i < eta. F(v)
for j = 0 says that all units that would otherwise become too old fit into the batch. It waits only for
units that are open, so it ends when they arrive. Rejections and expiries only lower the counts.
eta = 0: the batch is everything open, the synchronous algorithm.

``straggler=drop`` trains ready units, earliest deadline first, and gives up those that arrive too late:
to keep F, for every j at least need_j = #{open: d <= v + j} - j * U of the units with d <= v + j must be
trained or dropped now; F says need_j <= U.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple


class Entry(NamedTuple):
    """One open prompt, in issue order.

    Attributes:
        prompt_id, group_id: as in `Prompt`.
        version: the oldest policy version its tokens can have: the issue version, or the trajectory's
            own oldest version where that is known and lower.
        buffered: its trajectory has arrived.
    """

    prompt_id: str
    group_id: str
    version: int
    buffered: bool


class Ready(NamedTuple):
    """Train ``prompt_ids`` now; ``dropped`` (stragglers, only with straggler=drop) must be given up first."""

    prompt_ids: list[str]
    dropped: list[str]


class Wait(NamedTuple):
    """The batch is not complete; ``on`` are the prompts whose trajectories it needs (empty: more must be issued)."""

    on: list[str]


class Unit(NamedTuple):
    """What is trained together: a trajectory, or a whole group."""

    entries: list[Entry]
    deadline: int  # the last version at which it may be trained
    ready: bool  # every member has arrived

    @property
    def missing(self) -> list[str]:
        """Prompts of the unit that have not arrived: what it waits for."""
        return [entry.prompt_id for entry in self.entries if not entry.buffered]

    @property
    def ids(self) -> list[str]:
        """All its prompts, in issue order."""
        return [entry.prompt_id for entry in self.entries]


def num_units_to_issue(num_open: int, units_per_step: int, max_staleness: int, steps_left: int) -> int:
    """Rule 1, and never more than the steps that are left will train.

    Args:
        num_open: units issued and not yet trained, rejected or expired.
        units_per_step: U.
        max_staleness: eta.
        steps_left: learner steps from the current version to the end of the run, this one included.
    """
    bound = min(max_staleness + 1, steps_left) * units_per_step
    return max(0, bound - num_open)


def make_units(entries: Iterable[Entry], group_size: int, max_staleness: int) -> list[Unit]:
    """Units by (deadline, issue order). ``group_size`` 1: every entry is a unit.

    A group with fewer than ``group_size`` members has lost some to rejection or expiry: it is not
    ready until it has been topped up (`shrunk_groups`).
    """
    members: dict[str, list[Entry]] = {}
    for entry in entries:
        members.setdefault(entry.group_id if group_size > 1 else entry.prompt_id, []).append(entry)
    units = [
        Unit(
            group,
            min(entry.version for entry in group) + max_staleness,
            len(group) >= group_size and all(entry.buffered for entry in group),
        )
        for group in members.values()
    ]
    return sorted(units, key=lambda unit: unit.deadline)  # stable: issue order within a deadline


def shrunk_groups(entries: Iterable[Entry], group_size: int) -> dict[str, int]:
    """Group id → how many members it lost. Groups are issued and trained whole, so any shortfall is a loss."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.group_id] = counts.get(entry.group_id, 0) + 1
    return {group: group_size - count for group, count in counts.items() if count < group_size}


def too_stale(entries: Iterable[Entry], version: int, max_staleness: int) -> list[str]:
    """Prompts that can't be trained any more. Empty unless a generator ran old weights or eta was lowered on resume."""
    return [entry.prompt_id for entry in entries if entry.version < version - max_staleness]


def select_batch(
    units: Sequence[Unit],
    *,
    version: int,
    units_per_step: int,
    max_staleness: int,
    straggler: Literal["wait", "drop"] = "wait",
) -> Ready | Wait:
    """Rule 2 over `make_units`' result: the batch for the step at ``version``, or what it waits for."""
    if straggler == "drop":
        return _select_without_waiting(units, version, units_per_step, max_staleness)
    batch = units[:units_per_step]
    if len(batch) < units_per_step or not all(unit.ready for unit in batch):
        return Wait(_missing(batch))
    return Ready([i for unit in batch for i in unit.ids], [])


def _select_without_waiting(
    units: Sequence[Unit], version: int, units_per_step: int, max_staleness: int
) -> Ready | Wait:
    """The first U ready units; late ones that the bound has no room for any more are dropped."""
    ready = [unit for unit in units if unit.ready]
    late = [unit for unit in units if not unit.ready]
    if len(ready) < units_per_step:
        return Wait(_missing(late[: units_per_step - len(ready)]))
    batch = ready[:units_per_step]
    dropped: list[Unit] = []
    for horizon in range(max_staleness + 1):
        last = version + horizon
        num_due = sum(unit.deadline <= last for unit in units)
        # capped: only entries that break F(v), from a generator that ran old weights, can ask for more than a batch
        needed = min(num_due - horizon * units_per_step, units_per_step)
        covered = sum(unit.deadline <= last for unit in (*batch, *dropped))
        due = [unit for unit in late if unit.deadline <= last and unit not in dropped]
        dropped.extend(due[: max(0, needed - covered)])
    return Ready([i for unit in batch for i in unit.ids], [i for unit in dropped for i in unit.ids])


def _missing(units: Iterable[Unit]) -> list[str]:
    return [prompt_id for unit in units for prompt_id in unit.missing]
