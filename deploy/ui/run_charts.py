"""What the page of a run draws: its metrics, evaluations, explainable variance and weight updates, as charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import structlog

from vcppo.common.errors import VcppoError
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.evaluation.explainable_results import read_rows
from vcppo.deploy.report.write import EVAL_NAMES, read_evals
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.ui import charts
from vcppo.deploy.ui.runs import Runs

log = structlog.get_logger(__name__)

T = TypeVar("T")


def run_charts(runs: Runs, run: str) -> list[dict[str, Any]]:
    """Accuracy and the critic first, what is before RL last."""
    data, folder = runs.data(run), runs.folder(run)
    explainable = or_none(read_rows, folder) or []
    rl = charts.together(rl_rows(data), _evaluated(folder, data), charts.explainable_by_version(explainable))
    first = (charts.accuracy_chart(data.evaluations), charts.EXPLAINED_VARIANCE)
    before_rl = (
        (charts.VALUE_PRETRAINING_CHARTS, charts.thinned(data.value_pretraining)),
        (charts.COLD_START_CHARTS, charts.thinned(runs.cold_start(run))),
    )
    found = [
        *_drawn(first, rl),
        charts.explainable_chart(explainable),
        *_drawn(charts.RL_CHARTS, rl),
        charts.updates_chart(runs.updates(run).updates),
        *(chart for some, rows in before_rl for chart in _drawn(some, rows)),
    ]
    return [chart for chart in found if chart is not None]


def rl_rows(data: RunData) -> charts.Rows:
    """Steps of RL, few enough to draw, and what was evaluated of the versions that they made."""
    return charts.together(charts.thinned(data.rl), charts.thinned(data.evaluations))


def _drawn(some: Sequence[charts.Chart], rows: charts.Rows) -> list[dict[str, Any]]:
    return [charts.for_browser(chart, rows) for chart in some if charts.drawn(chart, rows)]


def _evaluated(folder: RunFolder, data: RunData) -> list[dict[str, float]]:
    """What `vcppo eval` found of the run's own models: the cold start is version 0, the export the last one."""
    ends = {EVAL_NAMES["cold_start"]: 0, EVAL_NAMES["export"]: data.rl[-1]["step"] if data.rl else 0}
    return [
        {
            "step": ends[each.name], charts.EVALUATED.metric: each.pass_at_1, charts.EVALUATED.low: each.low,
            charts.EVALUATED.high: each.high,
        }
        for each in or_none(read_evals, folder) or []
        if each.name in ends and data.rl
    ]  # fmt: skip


def or_none(read: Callable[[RunFolder], T], folder: RunFolder) -> T | None:
    """What a file says that the page can do without; what is wrong with it is a log line."""
    try:
        return read(folder)
    except (VcppoError, OSError) as error:
        log.warning("page_without_part", run=str(folder.path), error=str(error))
        return None
