"""``difficulty.jsonl``: the problems that groups ask and what each step has shown of them, for a resumed run.

    {"version": 3, "first_group": 24, "problems": [7, 41], "pools": ["new", "edge"]}   before their prompts are issued
    {"step": 3, "outcomes": [[7, 3, 8], [12, 8, 8]]}          problem, correct, responses: before the step is committed

A line is on disk before anything follows from it. Of a step, or a group, that stands there twice the last line counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_lines import LineFile, read_json_lines
from vcppo.common.process.patience import patiently
from vcppo.common.records.ids import parse_group_id
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.store.left_out import LeftOut
from vcppo.learner.supply.difficulty import POOLS, DifficultySampler, Drawn, Outcome, Pool

log = structlog.get_logger(__name__)


class DrawnLine(BaseModel):
    """Draws of one call, of groups from `first_group` on."""

    model_config = ConfigDict(strict=True)

    version: int
    first_group: int
    problems: list[int]
    pools: list[Pool]

    @model_validator(mode="after")
    def _fits(self) -> DrawnLine:
        if len(self.problems) != len(self.pools):
            raise ValueError("problems and pools differ in length")
        return self


class OutcomesLine(BaseModel):
    """What a step has shown: (problem, correct, responses) of each group."""

    model_config = ConfigDict(strict=True)

    step: int
    outcomes: list[list[int]]

    @model_validator(mode="after")
    def _fits(self) -> OutcomesLine:
        if any(len(each) != len(Outcome._fields) for each in self.outcomes):
            raise ValueError("an outcome is no (problem, correct, responses)")
        return self


class DrawnProblems:
    """Rank 0's: draws problems for the groups of RL, and writes down what it must know after a crash.

    Args:
        size: problems of the data set.
        path: of the file.
        confirm: raises when another learner has taken our place; called before each write.
        stopping: whether the process was asked to stop; then it does not wait for room.
    """

    def __init__(
        self,
        config: VcppoConfig,
        size: int,
        path: Path,
        confirm: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        rl = config.rl
        self._sampler = DifficultySampler(rl.difficulty, config.run.seed, size, rl.max_staleness)
        self._file, self._confirm, self._stopping = LineFile(path), confirm, stopping
        for row in read_json_lines(path):
            self._read(row)

    def draw(self, groups: Sequence[int], version: int) -> None:
        """Give each of these groups its problem, at the policy version they are issued at."""
        known = [self._sampler.drawn(group) for group in groups]
        drawn = [self._sampler.draw(group, version) for group in groups]
        if drawn != known:
            self._write(
                DrawnLine(
                    version=version,
                    first_group=groups[0],
                    problems=[each.problem for each in drawn],
                    pools=[each.pool for each in drawn],
                )
            )

    def problem_of(self, group: int) -> int:
        """Its number in the data set. Raises VcppoError for a group that has none."""
        return self._of(group).problem

    def record(
        self, step: int, trained: Iterable[Trajectory], left_out: Iterable[LeftOut]
    ) -> Mapping[str, float | int | None]:
        """Write down what a step has shown, and give its metrics."""
        found = {parse_group_id(each.group_id).number: (each.num_correct, each.num_samples) for each in left_out}
        for trajectory in trained:
            group = parse_group_id(trajectory.group_id).number
            correct, total = found.get(group, (0, 0))
            found[group] = (correct + (trajectory.outcome == "correct"), total + 1)
        outcomes = [Outcome(self.problem_of(group), *counts) for group, counts in sorted(found.items())]
        self._write(OutcomesLine(step=step, outcomes=[list(each) for each in outcomes]))
        self._sampler.record(step, outcomes)
        return self._figures(step, found)

    def _figures(self, step: int, found: Mapping[int, tuple[int, int]]) -> dict[str, float | int | None]:
        figures: dict[str, float | int | None] = {
            f"difficulty/problems/{pool}": len(members) for pool, members in self._sampler.pools(step).members.items()
        }
        for pool in POOLS:
            counts = [each for group, each in found.items() if self._of(group).pool == pool]
            total = sum(total for _, total in counts)
            figures[f"difficulty/drawn/{pool}"] = len(counts) / max(1, len(found))
            figures[f"difficulty/accuracy/{pool}"] = sum(correct for correct, _ in counts) / total if total else None
        return figures

    def _of(self, group: int) -> Drawn:
        drawn = self._sampler.drawn(group)
        if drawn is None:
            raise VcppoError(
                f"{self._file.path}: has no line of group {group}, which was issued: restore the file, or start RL over"
                " (vcppo up --start-over rl)"
            )
        return drawn

    def _write(self, line: BaseModel) -> None:
        self._confirm()
        text = line.model_dump_json().encode() + b"\n"
        patiently(
            lambda: self._file.write(text, sync=True), self._file.path.name, self._file.path.parent, self._stopping
        )

    def _read(self, row: Mapping[str, object]) -> None:
        try:
            if "step" in row:
                outcomes = OutcomesLine.model_validate(row)
                self._sampler.record(outcomes.step, (Outcome(*each) for each in outcomes.outcomes))
            else:
                line = DrawnLine.model_validate(row)
                for offset, (problem, pool) in enumerate(zip(line.problems, line.pools, strict=True)):
                    self._sampler.remember(line.first_group + offset, Drawn(problem, pool, line.version))
        except ValidationError as error:  # a torn line never gets here: this is another program's, or damage
            log.warning("line_passed_over", file=str(self._file.path), error=str(error).splitlines()[0])
