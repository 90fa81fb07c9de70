"""Writes <run>/report: summary.png, a PNG and a CSV per figure, report.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import structlog
from matplotlib.figure import Figure

from vcppo.common.run_folder import RunFolder
from vcppo.deploy.evaluation.explainable_results import read_rows
from vcppo.deploy.evaluation.workers import EvalResult, gain, read_result
from vcppo.deploy.report.figures import FIGURES, FigureData, draw, draw_summary
from vcppo.deploy.report.markup import Picture
from vcppo.deploy.report.responses import read_responses
from vcppo.deploy.report.run_page import render_page
from vcppo.deploy.run.run_data import Row, RunData
from vcppo.deploy.terminal.display import number

log = structlog.get_logger(__name__)

EVAL_NAMES = {"cold_start": "cold start", "export": "after RL"}


def read_evals(folder: RunFolder) -> list[EvalResult]:
    """Evaluations of the run: the cold start first, the trained policy last."""
    order = {name: index for index, name in enumerate(EVAL_NAMES)}
    paths = sorted(folder.eval.glob("*.json"), key=lambda path: (order.get(path.stem, 1), path.stem))
    return [result for path in paths if (result := read_result(path, EVAL_NAMES.get(path.stem, path.stem)))]


def has_results(folder: RunFolder) -> bool:
    """Whether a run has come to anything that a report can show."""
    data = RunData.load(folder)
    rows = [data.rl, data.value_pretraining, data.generators, data.recorded, data.decision]
    return any(rows) or bool(read_evals(folder)) or folder.metrics_file("sft").exists()


def write_report(folder: RunFolder) -> Path:
    """Write the report of a run, finished or not. Returns the page's path."""
    data = FigureData(RunData.load(folder), read_evals(folder), read_rows(folder))
    folder.report.mkdir(parents=True, exist_ok=True)
    _write_tables(data, folder.report)
    pictures = [
        Picture(name, name, (function.__doc__ or "").strip(), png)
        for name, function in FIGURES.items()
        if (png := _save(draw(name, data), folder.report / f"{name}.png"))
    ]
    title, subtitle = f"VC-PPO: {data.run.config.run.name}", headline(data)
    _save(draw_summary(data, title, subtitle), folder.report / "summary.png")
    path = folder.report / "report.html"
    rule = data.run.config.reward_rule
    responses = read_responses(folder, rule.low, rule.high)
    path.write_text(render_page(data, subtitle, pictures, responses), encoding="utf-8")
    log.info("report_written", path=str(path))
    return path


def headline(data: FigureData) -> str:
    """The run in one line."""
    run, parts = data.run, []
    if len(data.evals) >= 2:
        before, after = data.evals[0], data.evals[-1]
        rise, _ = gain(before, after)
        parts.append(f"held-out accuracy {before.pass_at_1:.1%} → {after.pass_at_1:.1%} ({rise * 100:+.1f} points)")
    if run.decision:
        judged = run.decision.get("explained_variance", run.decision.get("best_explained_variance"))
        parts.append(f"critic's held-out explained variance {number(judged, '{:.2f}')}")
        if not run.decision.get("passed"):
            parts.append("value pretraining did not pass its gate")
    if run.rl:
        parts.append(f"{run.rl[-1]['step']} asynchronous steps, {run.num_broadcasts} weight broadcasts")
        parts.append(f"staleness ≤ {number(run.max_staleness, '{:.0f}')}")
    return " · ".join(parts) or "no results yet"


def _save(figure: Figure | None, path: Path) -> bytes | None:
    if figure is None:
        path.unlink(missing_ok=True)
        return None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _write_tables(data: FigureData, folder: Path) -> None:
    """The numbers behind every figure: one table per source, lists as one column per position."""
    _write_csv(folder / "rl.csv", data.run.rl)
    _write_csv(folder / "value_pretraining.csv", data.run.value_pretraining)
    for name, rows in data.run.generators.items():
        _write_csv(folder / f"{name}.csv", rows)
    _write_csv(folder / "explainable.csv", [row.model_dump() for row in data.explainable])
    _write_csv(folder / "evaluation.csv", [vars(result) for result in data.evals])


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    flat = [_flatten(row) for row in rows]
    if not flat:
        path.unlink(missing_ok=True)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in flat for name in row)))
        writer.writeheader()
        writer.writerows(flat)


def _flatten(row: Row) -> Row:
    flat: Row = {}
    for name, value in row.items():
        if isinstance(value, list):
            flat |= {f"{name}/{index}": each for index, each in enumerate(value)}
        else:
            flat[name] = value
    return flat
