"""A few responses of each RL step, read from the files of samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from vcppo.common.records.sample_table import SampleError, SampleTable
from vcppo.common.trackers.tracker import Table

log = structlog.get_logger(__name__)

COLUMNS = ("id", "prompt", "response", "reward", "outcome", "value_at_start")

_FILE = re.compile(r"step-(\d+)\.parquet", re.ASCII)


@dataclass(frozen=True)
class SampleTables:
    """The run's folder of samples; `count` responses of each step are told."""

    folder: Path
    count: int

    def after(self, step: int) -> Iterator[tuple[int, Path]]:
        """Later steps than `step` that have a file, in their order."""
        steps = {int(found[1]): path for path in self.folder.glob("step-*") if (found := _FILE.fullmatch(path.name))}
        yield from sorted((number, path) for number, path in steps.items() if number > step)

    def read(self, path: Path) -> Table | None:
        """The first ones, which are of all kinds (`vcppo.learner.rl.samples`); None: the file can't be read."""
        try:
            samples = SampleTable(path)
        except SampleError as error:
            log.warning("samples_not_told", file=str(path), error=str(error))
            return None
        rows = []
        for number, head in enumerate(samples.heads()[: self.count]):
            values = samples.tokens(number, ["values"])["values"]
            head["value_at_start"] = next((value for value in values if value is not None), None)
            rows.append([head[name] for name in COLUMNS])
        return Table(COLUMNS, rows)
