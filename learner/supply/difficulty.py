"""Which problem a group asks, by how often each was answered right so far: pools of new, easy, edge and hard ones.

Pure: no I/O and no clock. A draw is a function of the run's seed, the group's number, the outcomes of the steps up to
the policy version it is issued at, and the draws that may still be in flight. So a resumed run draws what the
undisturbed one would have drawn. `vcppo.learner.supply.drawn_problems` keeps outcomes and draws on disk.

    new    never answered yet, in the order of the task's own sequence
    easy   share of correct responses, over its newest groups, at least rl.difficulty.easy_from
    hard   at most rl.difficulty.hard_to
    edge   between the two

What was drawn at one of the last max_staleness versions may be in flight, and is not drawn again while another problem
is free. Older draws are settled (`vcppo.learner.supply.credits`): they have their outcome, or were lost and are new.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple, get_args

from vcppo.common.config import DifficultyConfig
from vcppo.common.records.seeds import derive_seed

Pool = Literal["new", "easy", "edge", "hard"]
POOLS: Final[tuple[Pool, ...]] = get_args(Pool)
_TRIES = 32  # random picks that may be taken already, before the free ones are listed


class Outcome(NamedTuple):
    """Of one group: how many of its responses were correct."""

    problem: int
    correct: int
    total: int


class Drawn(NamedTuple):
    """The problem of a group, and the pool it was in at the version it was drawn at."""

    problem: int
    pool: Pool
    version: int


class Pools:
    """Every problem of a data set in its pool, after some steps.

    Args:
        size: problems are numbered from 0 to this.
        rates: problem -> share of correct responses over its newest groups; those without one are new.
    """

    def __init__(self, size: int, rates: Mapping[int, float], settings: DifficultyConfig) -> None:
        self._shares: dict[Pool, float] = {
            "easy": settings.easy_share, "edge": settings.edge_share, "hard": settings.hard_share,
        }  # fmt: skip
        self._new_share = settings.new_share
        self._pool_of: list[Pool] = [
            "new" if (rate := rates.get(problem)) is None else pool_of(rate, settings) for problem in range(size)
        ]
        self.members: dict[Pool, list[int]] = {pool: [] for pool in POOLS}
        for problem, pool in enumerate(self._pool_of):
            self.members[pool].append(problem)

    def draw(self, seed: int, taken: Collection[int]) -> tuple[int, Pool]:
        """A problem that is not in `taken`, where there is one, and its pool; the same for the same arguments."""
        chance = random.Random(seed)
        gone = Counter(self._pool_of[problem] for problem in set(taken) if problem < len(self._pool_of))
        free = [pool for pool in POOLS if len(self.members[pool]) > gone[pool]]
        if not free:  # fewer problems than may be in flight: one of them is asked twice, a new one last
            free = [pool for pool in POOLS if self.members[pool] and pool != "new"]
            pool = self._choose_pool(chance, free) if free else "new"
            return chance.choice(self.members[pool]), pool
        pool = self._choose_pool(chance, free)
        return self._choose(chance, pool, taken), pool

    def _choose_pool(self, chance: random.Random, free: Sequence[Pool]) -> Pool:
        known = [pool for pool in free if pool != "new" and self._shares[pool] > 0]
        if "new" in free and (not known or chance.random() < self._new_share):
            return "new"
        if not known:  # only pools of share 0 are left
            return free[0]
        return chance.choices(known, [self._shares[pool] for pool in known])[0]

    def _choose(self, chance: random.Random, pool: Pool, taken: Collection[int]) -> int:
        members = self.members[pool]
        if pool == "new":
            return next(problem for problem in members if problem not in taken)
        for _ in range(_TRIES):
            if (problem := members[chance.randrange(len(members))]) not in taken:
                return problem
        return chance.choice([problem for problem in members if problem not in taken])


def pool_of(rate: float, settings: DifficultyConfig) -> Pool:
    """Of a problem that was answered."""
    if rate >= settings.easy_from:
        return "easy"
    return "hard" if rate <= settings.hard_to else "edge"


class DifficultySampler:
    """Draws by the outcomes it is told. No I/O: give it what was written to begin where a run was.

    Args:
        seed: the run's.
        size: problems of the data set.
    """

    def __init__(self, settings: DifficultyConfig, seed: int, size: int, max_staleness: int) -> None:
        self._settings, self._seed, self._size, self._max_staleness = settings, seed, size, max_staleness
        self._outcomes: dict[int, list[Outcome]] = {}
        self._drawn: dict[int, Drawn] = {}
        self._pools: tuple[int, Pools] | None = None  # of a version

    def record(self, step: int, outcomes: Iterable[Outcome]) -> None:
        """What a step has shown; of a step done again the last counts."""
        self._outcomes[step] = list(outcomes)
        if self._pools is not None and self._pools[0] >= step:
            self._pools = None

    def remember(self, group: int, drawn: Drawn) -> None:
        """A draw that was made before; of several for a group the last counts."""
        self._drawn[group] = drawn

    def drawn(self, group: int) -> Drawn | None:
        """What this group asks; None: nothing was drawn for it."""
        return self._drawn.get(group)

    def draw(self, group: int, version: int) -> Drawn:
        """The problem of the next group, which is issued at `version`. A group that has one keeps it, unless it was
        drawn at a later version, which is then one that was lost."""
        known = self._drawn.get(group)
        if known is not None and known.version <= version:
            return known
        problem, pool = self.pools(version).draw(
            derive_seed(self._seed, "difficulty", group), self._in_flight(group, version)
        )
        self._drawn[group] = Drawn(problem, pool, version)
        return self._drawn[group]

    def pools(self, version: int) -> Pools:
        """As of the outcomes of the steps up to `version`."""
        if self._pools is None or self._pools[0] != version:
            newest: dict[int, deque[Outcome]] = {}
            for step in sorted(step for step in self._outcomes if step <= version):
                for each in self._outcomes[step]:
                    newest.setdefault(each.problem, deque(maxlen=self._settings.window)).append(each)
            rates = {
                problem: sum(each.correct for each in some) / max(1, sum(each.total for each in some))
                for problem, some in newest.items()
            }
            self._pools = (version, Pools(self._size, rates, self._settings))
        return self._pools[1]

    def _in_flight(self, group: int, version: int) -> set[int]:
        """Problems of the groups before this one that may be on their way: groups are drawn in order of version."""
        found: set[int] = set()
        for before in range(group - 1, -1, -1):
            drawn = self._drawn.get(before)
            if drawn is None or drawn.version < version - self._max_staleness:
                break
            found.add(drawn.problem)
        return found
