"""The live view: what the run is doing right now, on one screen. Reads metrics files and the store's ledger only."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import Ledger, Member
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.logs.log_lines import LEVELS, Record, level_of
from vcppo.deploy.run.measured_accuracy import held_out_text, metrics_of, newest
from vcppo.deploy.run.run_data import JsonLinesTail, Row, RunData, column
from vcppo.deploy.terminal import outcomes_view, recorded_view
from vcppo.deploy.terminal.display import clock, number

REFRESH_SECONDS = 1.0
BLOCKS = "▁▂▃▄▅▆▇█"
STATE_COLOURS = {
    "queued": "bright_black", "leased": "yellow", "buffered": "cyan", "claimed": "magenta",
    "trained": "green", "rejected": "red", "expired": "red",
}  # fmt: skip


def sparkline(values: Sequence[float], width: int, low: float | None = None, high: float | None = None) -> str:
    """The last `width` numbers as blocks; `low` and `high` fix the scale."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    bottom = min(shown) if low is None else low
    top = max(shown) if high is None else high
    span = (top - bottom) or 1.0
    scaled = [(value - bottom) / span for value in shown]
    return "".join(BLOCKS[min(len(BLOCKS) - 1, max(0, int(share * len(BLOCKS))))] for share in scaled)


def age_seconds(row: Row) -> float:
    """Seconds since a metrics row was written."""
    return (datetime.now(UTC) - datetime.fromisoformat(row["time"])).total_seconds()


def _rows(*pairs: tuple[str, RenderableType]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(ratio=1)
    for name, value in pairs:
        grid.add_row(name, value)
    return grid


def trajectories_panel(ledger: Ledger | None, bound: int) -> Panel:
    """Where every issued prompt is, as a bar and counts, against the credit bound."""
    if ledger is None:
        return Panel(
            Text("the store does not answer yet", style="bright_black"), title="trajectories", border_style="blue"
        )
    counts = ledger.as_dict()
    flow = Text(" → ", style="bright_black").join(
        Text.assemble((name, "bright_black"), " ", (f"{counts[name]:,}", f"bold {STATE_COLOURS[name]}"))
        for name in ("queued", "leased", "buffered", "claimed", "trained")
    )
    open_prompts = [(name, counts[name]) for name in ("buffered", "leased", "queued")]
    width = 44
    scale = width / max(bound, ledger.credits_used, 1)
    bar = Text().join(Text("█" * round(count * scale), style=STATE_COLOURS[name]) for name, count in open_prompts)
    bar.append("░" * max(0, width - len(bar.plain)), style="bright_black")
    exact = (
        Text("exact", style="bold green")
        if ledger.is_exact
        else Text(f"NOT EXACT, off by {ledger.difference}", style="bold red")
    )
    faulty = counts["rejected"] - counts["without_signal"]
    lost = Text.assemble(f"{faulty} rejected, {counts['expired']} expired")
    if counts["without_signal"]:
        lost.append(f", {counts['without_signal']} left out without signal", style="bright_black")
    body = Group(
        flow,
        Text.assemble(bar, f"  {ledger.credits_used} of {bound} credits"),
        _rows(("issued", Text.assemble(f"{counts['issued']:,}   ledger ", exact, "   ", lost))),
    )
    return Panel(body, title="trajectories", title_align="left", border_style="blue")


def value_pretraining_panel(data: RunData) -> Panel:
    """Held-out explained variance against the gate."""
    settings, rows = data.config.value_pretraining, data.value_pretraining
    measured = column(rows, "vp/held_out_explained_variance")
    best = max(measured, default=None)
    state = (
        Text("passed", style="bold green")
        if best is not None and best >= settings.min_explained_variance
        else Text("not yet", style="yellow")
    )
    if data.decision is not None:  # it goes by another figure than the best measured one
        passed = data.decision.get("passed")
        state = Text("passed", style="bold green") if passed else Text("FAILED", style="bold red")
    behind = recorded_view.behind(data.decision) if data.decision is not None else ""
    interval = [rows[-1].get(f"vp/held_out_explained_variance_{end}") for end in ("low", "high")] if rows else []
    ends = f" (90 %: {number(interval[0], '{:.2f}')} to {number(interval[1], '{:.2f}')})" if any(interval) else ""
    body = _rows(
        ("recorded", Text(f"{data.num_recorded:,} of {settings.num_trajectories:,}")),
        ("outcomes", Text(recorded_view.outcomes_line(data.recorded))),
        ("", Text(recorded_view.lengths_line(data.recorded) if data.recorded else "")),
        ("step", Text(f"{rows[-1]['step'] if rows else 0} of at most {settings.max_steps}")),
        (
            "held-out EV",
            Text.assemble(
                number(measured[-1] if measured else None), ends, "  ", (sparkline(measured, 24, 0.0, 1.0), "green")
            ),
        ),
        ("gate", Text.assemble(f"best {number(best)} ≥ {settings.min_explained_variance:g}  ", state)),
        *((("", Text(behind)),) if behind else ()),
        *(("", Text(text, style="yellow")) for text in recorded_view.why(data.decision or {})),
    )
    return Panel(body, title="value pretraining", title_align="left", border_style="magenta")


def learning_panel(data: RunData) -> Panel:
    """Accuracy, length, explained variance, staleness and speed of the RL stage."""
    rows, settings = data.rl, data.config.rl
    last = rows[-1] if rows else {}
    bar = ProgressBar(total=settings.num_steps, completed=last.get("step", 0), width=24)

    of, rule = settings.batch_size, data.config.reward_rule

    def line(name: str, pattern: str = "{:.3f}", low: float | None = None, high: float | None = None) -> Text:
        return Text.assemble(
            (f"{number(last.get(name), pattern):>7}  ", "bold"), (sparkline(column(rows, name), 30, low, high), "cyan")
        )

    has_mismatch = bool(column(rows, "off_policy/mismatch_kl"))
    mismatch = [("mismatch KL", line("off_policy/mismatch_kl", "{:.1e}"))] if has_mismatch else []
    mean = number(last.get("staleness/mean"), "{:.2f}")
    mixed = number(last.get("staleness/mixed_version_fraction"), "{:.0%}")
    largest = number(data.max_staleness, "{:.0f}")
    body = _rows(
        ("step", Group(Text(f"{last.get('step', 0)} of {settings.num_steps}"), bar)),
        ("accuracy", line("reward/accuracy", low=0.0, high=1.0)),
        ("", Text(f"{outcomes_view.accuracy(last, of)} right, {outcomes_view.accuracy_interval(last, of)}")),
        ("", Text(outcomes_view.others_line(last, of))),
        *_held_out(data.evaluations),
        ("reward", line("reward/mean", low=rule.low, high=rule.high)),
        ("length", line("length/mean", "{:.0f}")),
        ("explained variance", line("explained_variance/token", "{:.2f}", 0.0, 1.0)),
        *mismatch,
        ("staleness", Text(f"mean {mean}, max {largest} of {settings.max_staleness} allowed; mixed versions {mixed}")),
        ("tokens/s", line("tokens/per_second", "{:,.0f}")),
    )  # fmt: skip
    return Panel(body, title="reinforcement learning", title_align="left", border_style="green")


def _held_out(rows: list[Row]) -> list[tuple[str, Text]]:
    """A line a benchmark: its newest accuracy, of which step, and how it grew; nothing where nothing was measured."""
    lines = []
    for label, measured in metrics_of(rows).items():
        found = newest(rows, measured)
        if found is not None:
            grown = sparkline(column(rows, measured.accuracy), 30, 0.0, 1.0)
            text = Text.assemble((f"{held_out_text(found)}", "bold"), f" after step {found.step}  ", (grown, "cyan"))
            lines.append((one_line(label), text))
    return lines


def generators_panel(data: RunData, members: Sequence[Member]) -> Panel:
    """Who is alive, at which policy version, how fast."""
    table = Table.grid(padding=(0, 2))
    for heading in ("generator", "policy", "tokens/s", "in flight", "unacked", ""):
        table.add_column(justify="left" if heading in ("generator", "") else "right")
    table.add_row(
        *(Text(h, style="bright_black") for h in ("generator", "policy", "tokens/s", "in flight", "unacked", ""))
    )
    alive: Mapping[str, Member] = {member.id: member for member in members}
    for name in sorted({*data.generators, *alive}):
        last = (data.generators.get(name) or [{}])[-1]
        version = alive[name].policy_version if name in alive else last.get("generator/policy_version")
        speeds = column(data.generators.get(name, []), "generator/tokens_per_second")
        table.add_row(
            Text.assemble(("● ", "green" if name in alive else "red"), name),
            f"v{number(version, '{:.0f}')}",
            number(speeds[-1] if speeds else None, "{:,.0f}"),
            number(last.get("generator/in_flight"), "{:.0f}"),
            number(last.get("generator/unacked"), "{:.0f}"),
            _pace(speeds, last.get("reward_source/away")),
        )
    return Panel(table, title="generators", title_align="left", border_style="cyan")


def _pace(speeds: Sequence[float], away: float | None) -> Text:
    """Tokens a second over time; while the source of rewards is away, that."""
    if away:
        return Text(f"reward source away for {away:.0f} s, leasing paused", style="yellow")
    return Text(sparkline(speeds, 20, 0.0), style="cyan")


def warnings_panel(warnings: Sequence[tuple[str, Record]]) -> Panel:
    """The last warnings and errors of any process."""
    lines = [
        Text.assemble((f"{str(r.get('time', ''))[11:19]} ", "bright_black"), (f"{process} ", "bold"),
                      (str(r.get("event")), "red" if level_of(r) >= LEVELS["error"] else "yellow"),
                      (f" {one_line(r['error'])}" if r.get("error") else ""), no_wrap=True, overflow="ellipsis")
        for process, r in warnings
    ]  # fmt: skip
    body: RenderableType = Group(*lines) if lines else Text("none", style="bright_black")
    return Panel(body, title="last warnings", title_align="left", border_style="yellow")


class LiveView:
    """A `Display` on a terminal. `read_store` gives (ledger, members), (None, ()) while the store is away."""

    def __init__(
        self,
        data: RunData,
        read_store: Callable[[], tuple[Ledger | None, Sequence[Member]]],
        console: Console | None = None,
    ) -> None:
        self.data, self.read_store = data, read_store
        self.console = console or Console(file=sys.stdout)
        self.warnings: deque[tuple[str, Record]] = deque(maxlen=6)
        self.note = "starting"
        self.started = time.monotonic()
        self._live = Live(console=self.console, auto_refresh=False, screen=False, transient=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tick()
        self._live.stop()

    def show(self, process: str, record: Record) -> None:
        """Remember warnings, note what is going on; the rest is in the log files."""
        if level_of(record) >= LEVELS["warning"] and not record.get("unstructured"):
            self.warnings.append((process, record))
        elif str(record.get("event")).endswith(("ready", "_started", "_stopping")) and not record.get("unstructured"):
            self.note = f"{record.get('process', process)}: {record['event'].replace('_', ' ')}"

    def tick(self) -> None:
        """Read new metrics and draw the screen again."""
        self.data.refresh()
        self._live.update(self.render(), refresh=True)

    def render(self) -> RenderableType:
        """The whole screen; only panels that have something to say."""
        ledger, members = self.read_store()
        if ledger is None and self.data.ledger is not None:  # the run is down: what it wrote last
            ledger = Ledger(**self.data.ledger)
        rl = self.data.config.rl
        bound = (rl.max_staleness + 1) * rl.batch_size
        elapsed = clock(time.monotonic() - self.started)
        name = self.data.config.run.name
        title = Text.assemble(("vcppo ", "bold"), (name, "bold cyan"), f"  {elapsed}  ", (self.note, "bright_black"))
        panels: list[RenderableType] = [title, trajectories_panel(ledger, bound)]
        if self.data.config.value_pretraining.num_trajectories and not self.data.rl:
            panels.append(value_pretraining_panel(self.data))
        if self.data.rl:
            panels.append(learning_panel(self.data))
        return Group(*panels, generators_panel(self.data, members), warnings_panel(self.warnings))


def watch(folder: RunFolder, read_store: Callable[[], tuple[Ledger | None, Sequence[Member]]]) -> None:
    """`vcppo watch`: look at a run another command brought up, until Ctrl-C or its last step."""
    data = RunData.load(folder)
    tails: dict[str, JsonLinesTail] = {}
    never = threading.Event()
    with LiveView(data, read_store) as view:
        while not data.finished:
            for path in sorted(folder.logs.glob("*.jsonl")):
                for record in tails.setdefault(path.stem, JsonLinesTail(path)).read():
                    view.show(path.stem, record)
            view.tick()
            never.wait(REFRESH_SECONDS)  # the pace of the picture, not a wait for anything
