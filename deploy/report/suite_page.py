"""The page of a suite as data, and the two forms it is written in: one HTML file, and Markdown beside PNGs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcppo.deploy.report.markup import Picture, render
from vcppo.deploy.report.suite_data import SuiteData
from vcppo.deploy.report.suite_tables import (
    Table,
    benchmarks,
    by_seed,
    claims,
    collapse,
    left_out,
    paper_tables,
    results,
)
from vcppo.deploy.report.sweep_tables import equal_steps, equal_time, sweep
from vcppo.deploy.terminal.display import clock


@dataclass(frozen=True)
class SuitePage:
    """What the page says, in its order: from what the reader came for to the details."""

    title: str
    introduction: Sequence[str]
    results: Sequence[Table]
    pictures: Sequence[Picture]
    every_run: Table
    facts: Sequence[str]

    @property
    def tables(self) -> list[Table]:
        """All of them."""
        return [*self.results, self.every_run]


def suite_page(title: str, data: SuiteData, pictures: Sequence[Picture], facts: Sequence[str]) -> SuitePage:
    """The page of `data`; `facts` are paragraphs on how it was made."""
    seeds = sorted({seed for arm in data.everything for seed in arm.seeds})
    scope = (f"{data.num_runs} finished runs of {len(data.arms)} arms, seeds {', '.join(map(str, seeds))}; "
             f"{clock(data.seconds)} of wall time in all stages together.")  # fmt: skip
    compared = [equal_steps(data), equal_time(data), sweep(data)]
    tables = [results(data), *compared, claims(data), *paper_tables(data), collapse(data), benchmarks(data)]
    return SuitePage(
        title=title,
        introduction=[*([data.description] if data.description else []), scope, *left_out(data)],
        results=[table for table in tables if table is not None],
        pictures=pictures,
        every_run=by_seed(data),
        facts=facts,
    )


def as_html(page: SuitePage) -> str:
    """One file, nothing loaded from elsewhere."""
    return render("suite.html.j2", page=page)


def as_markdown(page: SuitePage, images: str) -> str:
    """For docs; `images` is the folder of the PNGs, relative to the page."""
    return render("suite.md.j2", page=page, images=images)
