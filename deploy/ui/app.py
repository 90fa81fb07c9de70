"""The pages: what each address shows. Everything comes from run folders; nothing is written."""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles

from vcppo.common.errors import VcppoError
from vcppo.common.telemetry.log_render import printable
from vcppo.deploy.logs.log_lines import LEVELS
from vcppo.deploy.logs.logs_command import LogFilter, newest_from_folder
from vcppo.deploy.report.markup import templates_in
from vcppo.deploy.report.run_page import all_settings
from vcppo.deploy.report.write import read_evals
from vcppo.deploy.run.measured_accuracy import all_of, metrics_of
from vcppo.deploy.run.run_data import LEDGER_STATES, RunData, is_exact
from vcppo.deploy.samples.sample_choices import ALL_STEPS, parse_steps
from vcppo.deploy.samples.sources import steps_of
from vcppo.deploy.samples.token_view import LINE_HEIGHT, LINE_WIDTH, turning_point, turning_text, value_line
from vcppo.deploy.ui import beliefs, charts, rollouts
from vcppo.deploy.ui.guard import Guard
from vcppo.deploy.ui.run_charts import or_none, rl_rows, run_charts
from vcppo.deploy.ui.runs import Runs, UnknownRun, processes, signature
from vcppo.deploy.ui.token_colours import COLOURS, MEANINGS, SCALES, ColourBy, coloured

log = structlog.get_logger(__name__)

_HERE = Path(__file__).parent
_EVERY_SECONDS = 1.0
_SIGN_EVERY = 15
_TOKENS_A_PAGE = 4000
_LINES = 300
_LOG_BYTES = 4 << 20
_MOST_LOG_BYTES = 256 << 20
_UPDATES = 10
Run = Annotated[str, Query(max_length=400)]
Text = Annotated[str, Query(max_length=400)]
Page = Annotated[int, Query(ge=1, le=10**6)]


def make_app(root: Path, token: str | None = None) -> FastAPI:
    """The pages of the runs under `root`; with a `token` nothing is shown without it."""
    runs = Runs(root)
    app = FastAPI(title="vcppo", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_reading_ahead(runs))
    app.middleware("http")(Guard(token))
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")
    app.exception_handler(VcppoError)(_refused)
    for add in (_add_lists, _add_run, _add_samples, _add_critic, _add_rest, _add_live):
        add(app, runs)
    return app


def _reading_ahead(runs: Runs) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What runs have written so far takes a second to read where they are long: that begins before anybody asks."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=lambda: list(runs.lines()), name="read_ahead", daemon=True).start()
        yield

    return lifespan


def _add_lists(app: FastAPI, runs: Runs) -> None:
    @app.get("/")
    def index() -> HTMLResponse:
        return _page("runs.html.j2", runs=list(runs.lines()), root=str(runs.root))

    @app.get("/compare")
    def compare(run: Annotated[list[str], Query(max_length=12)] = []) -> HTMLResponse:  # noqa: B006  (FastAPI's form)
        found = {key: runs.data(key) for key in run}
        return _page("compare.html.j2", runs=found, differences=_differences(found))

    @app.get("/api/compare")
    def compared(run: Annotated[list[str], Query(max_length=12)] = []) -> JSONResponse:  # noqa: B006
        found = {key: rl_rows(runs.data(key)) for key in run}
        some = [chart for chart in charts.COMPARED if any(charts.drawn(chart, rows) for rows in found.values())]
        return JSONResponse([charts.overlaid(chart, found) for chart in some])


def _add_run(app: FastAPI, runs: Runs) -> None:
    @app.get("/run")
    def overview(run: Run) -> HTMLResponse:
        data, folder = runs.data(run), runs.folder(run)
        rule = data.config.reward_rule
        judged = partial(rollouts.judged, least=rule.low, greatest=rule.high)
        return _page(
            "run.html.j2", run=run, line=runs.line(run), data=data, ledger=_ledger(data),
            processes=processes(folder), judged=or_none(judged, folder), updates=runs.updates(run),
            newest_updates=runs.updates(run).updates[: -_UPDATES - 1 : -1],
        )  # fmt: skip

    @app.get("/api/run")
    def series(run: Run) -> JSONResponse:
        return JSONResponse(run_charts(runs, run))


def _add_samples(app: FastAPI, runs: Runs) -> None:
    @app.get("/samples")
    def samples(
        run: Run, steps: Text = "", outcome: Text = "", text: Text = "", group: Text = "", sort: Text = "",
        min_reward: Text = "", max_reward: Text = "", min_length: Text = "", max_length: Text = "", page: Page = 1,
    ) -> HTMLResponse:  # fmt: skip
        folder = runs.folder(run)
        kept = list(steps_of(folder))
        given = {
            "steps": steps or (str(kept[-1]) if kept else ""), "outcome": outcome, "text": text, "group": group,
            "sort": sort, "min_reward": min_reward, "max_reward": max_reward, "min_length": min_length,
            "max_length": max_length,
        }  # fmt: skip
        first, last = parse_steps(given["steps"].strip()) or ALL_STEPS
        wanted = rollouts.Wanted(
            first, last, outcome, text, "", group, _number(min_reward), _number(max_reward), _whole(min_length),
            _whole(max_length),
        )  # fmt: skip
        found = rollouts.find(folder, wanted, sort, page)
        return _page(
            "samples.html.j2", run=run, found=found, kept=kept, given=given, page=page, size=rollouts.PAGE,
            sorts=list(rollouts.SORTS),
        )  # fmt: skip

    @app.get("/sample")
    def sample(
        run: Run, step: int, id: Text, by: ColourBy = "value", begin: Annotated[int, Query(ge=0)] = 0
    ) -> HTMLResponse:
        folder, config = runs.folder(run), runs.data(run).config
        shown = rollouts.show(folder, step, id)
        rule = config.reward_rule
        turning = turning_point(shown.tokens["values"])
        believed = _at_the_end(shown.tokens["values"])
        tokens = coloured(shown.tokens, by, rule.low, rule.high, turning)
        return _page(
            "sample.html.j2", run=run, shown=shown, by=by, colours=COLOURS, meaning=MEANINGS[by], scale=SCALES.get(by),
            begin=begin,
            tokens=tokens[begin : begin + _TOKENS_A_PAGE], num_tokens=len(tokens), size=_TOKENS_A_PAGE,
            turning=turning_text(shown.tokens, turning), turning_page=_page_of(turning),
            mark=_mark(turning, len(tokens)), believed=believed,
            is_misjudged=believed is not None
            and beliefs.is_misjudged(believed, shown.head["reward"], rule.low, rule.high),
            line=value_line(shown.tokens["values"], rule.low, rule.high),
            width=LINE_WIDTH, height=LINE_HEIGHT, least=rule.low, greatest=rule.high,
        )  # fmt: skip


def _on_one_line(text: str) -> str:
    return text.replace("\n", "⏎")


def _page_of(token: int | None) -> int:
    """Where the page with a token begins."""
    return (token or 0) // _TOKENS_A_PAGE * _TOKENS_A_PAGE


def _mark(token: int | None, num_tokens: int) -> float | None:
    """Where a token stands along the line of values."""
    return None if token is None else LINE_WIDTH * token / max(1, num_tokens - 1)


def _at_the_end(values: Sequence[float | None]) -> float | None:
    """What the critic believed before the last token. What it says after that it was never trained for."""
    return next((value for value in reversed(values) if value is not None), None)


def _beside(kept: Sequence[int], step: int) -> tuple[int | None, int | None]:
    """The steps kept before and after one that is kept."""
    place = bisect_left(kept, step)
    return kept[place - 1] if place else None, kept[place + 1] if place + 1 < len(kept) else None


def _add_critic(app: FastAPI, runs: Runs) -> None:
    @app.get("/critic")
    def critic(run: Run, step: int | None = None) -> HTMLResponse:
        folder, config = runs.folder(run), runs.data(run).config
        kept = list(steps_of(folder))
        chosen = step if step is not None else (kept[-1] if kept else None)
        responses = rollouts.believed(folder, chosen) if chosen is not None else []
        rule = config.reward_rule
        older, newer = _beside(kept, chosen) if chosen is not None else (None, None)
        return _page(
            "critic.html.j2", run=run, first=kept[0] if kept else None, last=kept[-1] if kept else None, step=chosen,
            older=older, newer=newer, num_responses=len(responses),
            bins=beliefs.calibration(responses, rule.low, rule.high), minds=beliefs.changed_minds(responses, 20),
            misjudged=beliefs.misjudged(responses, rule.low, rule.high, 20),
        )  # fmt: skip

    @app.get("/api/critic")
    def curves(run: Run, step: int) -> JSONResponse:
        folder, config = runs.folder(run), runs.data(run).config
        responses = rollouts.believed(folder, step)
        rule = config.reward_rule
        places, bins = beliefs.by_place(responses), beliefs.calibration(responses, rule.low, rule.high)
        plain = {"span": None, "is_share": False, "intervals": [None, None], "is_joined": [True, True]}
        tenths = list(range(1, beliefs.NUM_PLACES + 1))
        return JSONResponse(
            [
                {
                    "title": "Value by place", "note": "mean value in each tenth of the response", "across": "tenth",
                    "labels": [f"{name} ({found.num_responses})" for name, found in places.items()], **plain,
                    "points": [tenths, *(found.means for found in places.values())],
                },
                {
                    "title": "Calibration", "note": "up: the reward that came, on average; a calibrated critic is on"
                    " its line", "across": "what was believed",
                    "labels": ["this critic", "a calibrated critic"], **plain,
                    "points": [
                        [each.predicted for each in bins], [each.realised for each in bins],
                        [each.predicted for each in bins],
                    ],
                },
            ]
        )  # fmt: skip


def _add_rest(app: FastAPI, runs: Runs) -> None:
    @app.get("/evaluation")
    def evaluation(run: Run) -> HTMLResponse:
        evals, rows = read_evals(runs.folder(run)), runs.data(run).evaluations
        on_the_way = [(name, each) for name, one in metrics_of(rows).items() for each in all_of(rows, one)[:-_LINES:-1]]
        return _page(
            "evaluation.html.j2", run=run, evals=evals, any_k=any(each.k > 1 for each in evals), on_the_way=on_the_way
        )

    @app.get("/logs")
    def logs(
        run: Run, service: Text = "", level: Text = "", trajectory: Text = "", version: Text = "", all: bool = False
    ) -> HTMLResponse:
        folder = runs.folder(run)
        wanted = LogFilter(service or None, level if level in LEVELS else None, trajectory or None, _whole(version))
        newest = newest_from_folder(folder.logs, _MOST_LOG_BYTES if all else _LOG_BYTES)
        records = [each for each in newest.records if wanted.wants(each)]
        given = {"service": service, "level": level, "trajectory": trajectory, "version": version}
        return _page(
            "logs.html.j2", run=run, records=records[-_LINES:], num_matching=len(records), given=given,
            num_read=len(newest.records), is_all=newest.is_all, can_read_more=not (newest.is_all or all),
            services=sorted(path.stem for path in folder.logs.glob("*.jsonl")), levels=list(LEVELS),
        )  # fmt: skip

    @app.get("/config")
    def config(run: Run) -> HTMLResponse:
        return _page("config.html.j2", run=run, settings=list(all_settings(runs.data(run).config)))


def _add_live(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/events")
    async def events(run: Run, request: Request) -> StreamingResponse:
        folder = runs.folder(run)

        async def changes() -> AsyncIterator[str]:
            """A line when there is something new; a comment now and then, so that proxies keep the connection."""
            before, seconds = signature(folder), 0
            while not await request.is_disconnected():
                await asyncio.sleep(_EVERY_SECONDS)
                seconds += 1
                if (now := signature(folder)) != before:
                    before = now
                    yield "event: grown\ndata: {}\n\n"
                elif seconds % _SIGN_EVERY == 0:
                    yield ": still here\n\n"

        return StreamingResponse(changes(), media_type="text/event-stream")


def _refused(request: Request, error: Exception) -> HTMLResponse:
    status = 404 if isinstance(error, UnknownRun | rollouts.NoSamples) else 500
    return HTMLResponse(_render("refused.html.j2", error=str(error)), status)


def _ledger(data: RunData) -> dict[str, Any] | None:
    counts = data.ledger
    if counts is None:
        return None
    return {"states": [(name, counts[name]) for name in LEDGER_STATES], "is_exact": is_exact(counts)}


def _differences(found: Mapping[str, RunData]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs."""
    settings = {key: {name: value for name, value, _ in all_settings(data.config)} for key, data in found.items()}
    names = dict.fromkeys(name for each in settings.values() for name in each)
    rows = [(name, [each.get(name, "") for each in settings.values()]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _page(template: str, **values: object) -> HTMLResponse:
    return HTMLResponse(_render(template, **values))


def _render(template: str, **values: object) -> str:
    return _ENVIRONMENT.get_template(template).render(values)


def _share(value: float | None) -> str:
    """In percent, halves upwards: as the charts' script rounds."""
    return "–" if value is None else f"{100 * value + 1e-9:.1f} %"


def _clock(time: str) -> str:
    """Of a log line's time, in UTC."""
    return time.replace("T", " ").partition(".")[0].removesuffix("Z")


def _signed(value: float) -> str:
    """With a minus sign as wide as the plus."""
    return f"{value:+.2f}".replace("-", "−")


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


_ENVIRONMENT = templates_in(_HERE / "templates")
_ENVIRONMENT.filters |= {
    "printable": lambda text: printable(str(text)), "figure": _figure, "share": _share, "clock": _clock,
    "signed": _signed, "on_one_line": _on_one_line,
}  # fmt: skip
