"""What the paper reports, from ``paper_numbers.yaml``: its setting, its tables and its claims, with our arms beside."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vcppo.common.text.yaml_text import read_yaml


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PaperRow(_Part):
    """A row of one of the paper's tables, or of an arm that only we have. Results are in per cent.

    Attributes:
        arm: of ours, that answers the row.
        aime: pass@1 and pass@32.
        gpqa, codeforces: pass@1.
        remark: stands behind the numbers, or in their place.
    """

    label: str
    arm: str
    aime: tuple[float, float] | None = None
    gpqa: float | None = None
    codeforces: float | None = None
    remark: str = ""


class PaperTable(_Part):
    """One of the paper's tables.

    Attributes:
        where: the context length or the step that its results are of.
        shows_aime_only: our page leaves the other two benchmarks out.
    """

    number: int
    about: str
    where: str
    rows: tuple[PaperRow, ...]
    shows_aime_only: bool = False

    @property
    def title(self) -> str:
        """As a heading of our page."""
        return f"Table {self.number}: {self.about} (paper: {self.where})"

    def cell(self, row: PaperRow) -> str:
        """The paper's results of `row`: ``5.6 / 36.7 · 38.7 · 7.3``."""
        if row.aime is None:
            return row.remark or "not in the paper"
        others = () if self.shows_aime_only else (row.gpqa, row.codeforces)
        parts = [" / ".join(map(_per_cent, row.aime)), *(_per_cent(each) for each in others if each is not None)]
        return " · ".join(parts) + (f" ({row.remark})" if row.remark else "")


def _per_cent(value: float) -> str:
    return f"{value:.1f}"


class Claim(_Part):
    """The paper says that the arm `better` ends above the arm `worse`; `source` is where it says so."""

    source: str
    text: str
    better: str
    worse: str


class PaperNumbers(_Part):
    """All of it. `setting`: the paper's value by the field of our config."""

    setting: dict[str, float]
    tables: tuple[PaperTable, ...]
    claims: tuple[Claim, ...]


@cache
def paper_numbers() -> PaperNumbers:
    """Read the file, once a process."""
    text = Path(__file__).with_name("paper_numbers.yaml").read_text(encoding="utf-8")
    return PaperNumbers.model_validate(read_yaml(text))
