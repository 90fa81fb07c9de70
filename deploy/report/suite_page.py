"""A suite's page as a list of blocks, and the two forms it is written in: one HTML file, and Markdown beside PNGs."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from vcppo.deploy.report.run_page import STYLE
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
from vcppo.deploy.terminal.display import clock


class Heading(NamedTuple):
    """A heading of the page."""

    text: str


class Text(NamedTuple):
    """A paragraph of the page."""

    text: str


class Picture(NamedTuple):
    """A figure: `name`.png and the `name`.csv it was drawn from."""

    name: str
    title: str
    caption: str
    png: bytes


Block = Heading | Text | Picture | Table


def blocks(data: SuiteData, pictures: Sequence[Picture], facts: Sequence[str]) -> Iterator[Block]:
    """The page, from what the reader came for to the details."""
    if data.description:
        yield Text(data.description)
    seeds = sorted({seed for arm in data.arms for seed in arm.seeds})
    yield Text(f"{data.num_runs} finished runs of {len(data.arms)} arms, seeds {', '.join(map(str, seeds))}; "
               f"{clock(data.seconds)} of wall time in all stages together.")  # fmt: skip
    for text in left_out(data):
        yield Text(text)
    yield Heading("Results")
    yield results(data)
    yield claims(data)
    yield from paper_tables(data)
    sweep = collapse(data)
    if sweep is not None:
        yield sweep
    tested = benchmarks(data)
    if tested is not None:
        yield tested
    yield Heading("Figures")
    yield from pictures
    yield Heading("Every run, and how it was made")
    yield by_seed(data)
    for fact in facts:
        yield Text(fact)


def as_html(title: str, page: Sequence[Block]) -> str:
    """One file, nothing loaded from elsewhere."""
    body = "".join(_html(block) for block in page)
    viewport = "<meta name=viewport content='width=device-width,initial-scale=1'>"
    head = f"<head><meta charset=utf-8>{viewport}<title>{escape(title)}</title><style>{STYLE}</style></head>"
    return f"<!doctype html><html lang=en>{head}<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Picture):
        source = f"data:image/png;base64,{base64.b64encode(block.png).decode()}"
        caption = f"{escape(block.caption)} Data: {escape(block.name)}.csv"
        image = f"<img alt='{escape(block.title)}' src='{source}'>"
        return f"<h3>{escape(block.title)}</h3><figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = "".join(f"<th{' class=n' if i else ''}>{escape(text)}</th>" for i, text in enumerate(block.headings))
    rows = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(text)}</td>" for i, text in enumerate(row)) + "</tr>"
        for row in block.rows
    )
    note = f"<p class=note>{escape(block.note)}</p>" if block.note else ""
    return f"<h3>{escape(block.title)}</h3><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def as_markdown(title: str, page: Sequence[Block], images: str) -> str:
    """For docs; `images` is the folder of the PNGs, relative to the page."""
    return f"# {title}\n\n" + "\n".join(_markdown(block, images) for block in page)


def _markdown(block: Block, images: str) -> str:
    if isinstance(block, Heading):
        return f"## {block.text}\n"
    if isinstance(block, Text):
        return f"{block.text}\n"
    if isinstance(block, Picture):
        return f"### {block.title}\n\n![{block.title}]({images}/{block.name}.png)\n\n{block.caption}\n"
    lines = [f"### {block.title}\n", _row(block.headings), "|---" + "|---:" * (len(block.headings) - 1) + "|"]
    lines += [_row(row) for row in block.rows]
    return "\n".join(lines) + "\n" + (f"\n{block.note}\n" if block.note else "")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
