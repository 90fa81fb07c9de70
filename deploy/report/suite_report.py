"""`vcppo report` over several runs: HTML, Markdown, a PNG and a CSV per figure, a CSV per table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import structlog

from vcppo.common.files.whole_file import write_whole
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.report.markup import Picture
from vcppo.deploy.report.run_page import machine, versions
from vcppo.deploy.report.suite_data import SuiteData, load_suite_data, runs_in
from vcppo.deploy.report.suite_figures import FIGURES, draw
from vcppo.deploy.report.suite_page import SuitePage, as_html, as_markdown, suite_page
from vcppo.deploy.run.run_config import RunError, open_run

log = structlog.get_logger(__name__)


def is_suite(argument: str | Path) -> Path | None:
    """The folder `vcppo experiment` wrote to, by its path or its name under runs/; None: it is something else."""
    return next((path for path in (Path(argument), Path("runs") / argument) if (path / "suite.json").exists()), None)


def write_suite_report(
    arguments: Sequence[str | Path], output: Path | None = None, markdown: Path | None = None
) -> Path:
    """Write the page of several runs, or of all runs of a suite.

    Args:
        arguments: run folders or names, or suites.
        output: folder of page, figures and data; default: report/ in the suite, or beside the first run.
        markdown: also this file, its figures in images/<name>/ beside it.

    Returns:
        The page's path.

    Raises:
        RunError: none of the runs is finished and evaluated.
    """
    suites = [found for each in arguments if (found := is_suite(each)) is not None]
    folders: list[RunFolder] = []
    for each in arguments:
        suite = is_suite(each)
        folders += runs_in(suite) if suite is not None else [open_run(each)]
    folders = list({folder.path.resolve(): folder for folder in folders}.values())  # named twice, counted once
    data = load_suite_data(folders, suites[0] if suites else None)
    if not data.everything:
        raise RunError(
            f"none of {len(folders)} runs is finished and evaluated ({', '.join(data.unfinished) or 'no run'}): "
            "finish one with `vcppo experiment` or `vcppo up`, then `vcppo eval --run RUN --model RUN/export`"
        )
    folder = output or (suites[0] if suites else folders[0].path.parent) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw_all(data, folder)
    page = suite_page(f"Results: {data.name}", data, pictures, _facts())
    _write_tables(page, folder)
    write_whole(folder / "report.html", as_html(page))
    write_whole(folder / "report.md", as_markdown(page, "."))
    if markdown is not None:
        _write_markdown(markdown, page)
    log.info("report_written", path=str(folder / "report.html"))
    return folder / "report.html"


def _draw_all(data: SuiteData, folder: Path) -> list[Picture]:
    pictures = []
    for name, (title, _) in FIGURES.items():
        drawn = draw(name, data)
        if drawn is None:
            for stale in (folder / f"{name}.png", folder / f"{name}.csv"):
                stale.unlink(missing_ok=True)
            continue
        figure, caption, rows = drawn
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        pictures.append(Picture(name, title, caption, buffer.getvalue()))
    return pictures


def _write_tables(page: SuitePage, folder: Path) -> None:
    for table in page.tables:
        name = re.sub(r"\W+", "_", table.title.partition(":")[0].lower()).strip("_")
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.headings, *table.rows])


def _write_markdown(path: Path, page: SuitePage) -> None:
    """What stands above the mark in an existing file is the author's and stays, its title included."""
    images = path.parent / "images" / path.stem
    images.mkdir(parents=True, exist_ok=True)
    for picture in page.pictures:
        (images / f"{picture.name}.png").write_bytes(picture.png)
    text = as_markdown(page, f"images/{path.stem}")
    before, mark, _ = path.read_text(encoding="utf-8").partition(MARK) if path.exists() else ("", "", "")
    _, _, body = text.partition("\n\n")
    write_whole(path, f"{before}{MARK}\n\n{body}" if mark else text)


MARK = "<!-- made by vcppo report from here on -->"


def _facts() -> list[str]:
    about = ", ".join(f"{name} {value}" for name, value in machine().items())
    return [
        f"Machine that wrote this page: {about}.",
        f"Versions: {', '.join(f'{n} {v}' for n, v in versions().items())}.",
    ]
