"""`vcppo demo`: cold start, value pretraining, asynchronous RL with two generators, evaluation, report.

Every stage is skipped when what it makes is there, so the same command continues after any interruption.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import structlog
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, VcppoError
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import Ledger
from vcppo.deploy.check.quick import BEFORE_UP, refuse_start
from vcppo.deploy.evaluation.workers import EvalResult, current_result, evaluate, gain, read_result
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import JSON_LOGS
from vcppo.deploy.processes.cores import available_cores, thread_environment
from vcppo.deploy.processes.supervisor import ProcessSpec, Supervisor
from vcppo.deploy.report import write_report
from vcppo.deploy.report.write import EVAL_NAMES
from vcppo.deploy.run.run_config import RunError, exclusive, harmful_changes, write_config
from vcppo.deploy.run.run_data import TRAINING_STAGE, RunData, is_exact
from vcppo.deploy.terminal import recorded_view
from vcppo.deploy.terminal.display import clock, number
from vcppo.deploy.terminal.session import Mode, Session, open_session, write_ledger

log = structlog.get_logger(__name__)

_UNNAMED = "name-to-be-chosen"  # a run of this name is not named by the user's overrides
_CONFIGS = Path(__file__).parent / "configs"
CONFIG = _CONFIGS / "demo.yaml"
TASKS = {"arithmetic": CONFIG, "tools": _CONFIGS / "demo_tools.yaml"}
"""``--task`` → the recipe."""
_BASE = {TASKS["tools"]: "demo-tools"}


def demo_name(folder: Path, seed: int | None, fresh: bool, name: str | None = None, kind: str = "demo") -> str:
    """The run to work on: `name`, else the last demo of that kind and seed; the next number with `fresh`.

    ``demo``, ``demo-2``, …; with a seed ``demo-seed7``, ``demo-seed7-2``, …; with a name ``x``, ``x-2``, ….
    """
    if name is not None and not fresh:
        return name
    base = name or (kind if seed is None else f"{kind}-seed{seed}")
    numbers = [
        int(m[1] or 1)
        for path in folder.glob(f"{base}*/config.yaml")
        if (m := re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", path.parent.name))
    ]
    last = max(numbers, default=0)
    chosen = last + 1 if fresh or not last else last
    return base if chosen == 1 else f"{base}-{chosen}"


def demo_config(
    overrides: Sequence[str],
    *,
    path: Path = CONFIG,
    seed: int | None = None,
    name: str | None = None,
    fresh: bool = False,
) -> VcppoConfig:
    """The demo's tree for this seed and run, its policy being the cold start of its own run folder.

    Args:
        name: of the run, as ``run.name=…`` among the `overrides` says it too.

    Raises:
        RunError: these two name different runs.
    """
    given = load_config(path, [f"run.name={_UNNAMED}", *overrides])
    if given.run.name != _UNNAMED:
        if name not in (None, given.run.name):
            raise RunError(f"--run {name} and run.name={given.run.name} name two runs: give one of them")
        name = given.run.name
    run = demo_name(given.run.folder, seed, fresh, name, _BASE.get(path, "demo"))
    policy = given.sft.output or RunFolder(given.run.folder / run).cold_start
    own = [f"model.path={policy}", *([f"run.seed={seed}"] if seed is not None else [])]
    return load_config(path, [*own, *overrides, f"run.name={run}"])


def run_sft(config: VcppoConfig, session: Session) -> None:
    """The cold start as a process of its own. Raises VcppoError with its last lines when it fails."""
    _run_alone(config, session, "sft", "vcppo.learner.cold_start.sft")


def run_reward_model(config: VcppoConfig, session: Session) -> None:
    """The reward model, likewise."""
    _run_alone(config, session, "reward_model", "vcppo.learner.cold_start.reward_model")


def _run_alone(config: VcppoConfig, session: Session, name: str, module: str) -> None:
    """One process on all cores, to its end."""
    cores = available_cores()
    command = [sys.executable, "-m", module, "--config", str(RunFolder(config.run.path).config), JSON_LOGS]
    spec = ProcessSpec(
        name,
        command,
        role=name,
        environment=thread_environment(config.learner.num_threads or len(cores), shared=True),
    )
    with Supervisor(
        session.sink,
        stop_deadline_seconds=config.launcher.stop_deadline_seconds,
        start_deadline_seconds=float("inf"),
        on_tick=session.tick,
    ) as supervisor:
        supervisor.start(spec)
        supervisor.wait_exit(name)


def other_cold_start(config: VcppoConfig) -> str | None:
    """What to say where RL starts from another model than the cold start that was made for this run."""
    own = Path(config.sft.output or RunFolder(config.run.path).cold_start)
    if not (own / "config.json").exists() or own.resolve() == Path(config.model.path).expanduser().resolve():
        return None
    return (
        f"model.path = {config.model.path}, but this run has a cold start of its own: to train that, set "
        f"model.path={own}"
    )


def run_up(config: VcppoConfig, session: Session) -> Ledger:
    """Value pretraining and RL to the end; the final ledger is noted in the run folder."""
    if (said := other_cold_start(config)) is not None:
        log.warning("other_cold_start", note=said)
    ledger = Launcher(config, session.sink, session.tick).run()
    write_ledger(config.run.path, ledger)
    return ledger


class Demo:
    """The stages of one demo run.

    Args:
        pages: entered once the run folder is there, left with the demo: `vcppo demo --ui` serves pages meanwhile.
    """

    def __init__(
        self,
        config: VcppoConfig,
        console: Console,
        pages: Callable[[Console], AbstractContextManager[None]] = lambda console: nullcontext(),
    ) -> None:
        self.config, self.console, self.pages = config, console, pages
        self.folder = RunFolder(config.run.path)
        self.started = time.monotonic()
        self.changed = False

    def run(self) -> int:
        """All stages, then the verdict. Returns the exit code."""
        is_made = (Path(self.config.model.path).expanduser() / "config.json").exists()
        refuse_start(self.config, BEFORE_UP if is_made else BEFORE_UP - {"model"})
        with exclusive(self.folder.path):
            self.changed = self.folder.config.exists() and bool(harmful_changes(self.folder, self.config))
            write_config(self.config)
            self.heading(f"run folder {self.folder.path}", "everything this run writes is there")
            with self.pages(self.console):
                self.cold_start()
                self.train()
                self.evaluate()
                self.heading("report", "")
                page = write_report(self.folder)
                return self.verdict(page)

    def heading(self, title: str, text: str) -> None:
        """Begin a stage on the terminal, with the time since the start."""
        self.console.print(
            f"\n[bold]{clock(time.monotonic() - self.started):>5}  {title}[/]  [bright_black]{escape(text)}[/]",
            highlight=False,
        )

    def session(self, mode: Mode = "watch") -> AbstractContextManager[Session]:
        """The processes of one stage, ended when the context is left."""
        return open_session(self.config, mode)

    def cold_start(self) -> None:
        """Supervised training from random weights; left out when its model is there."""
        # With other settings the stage itself looks whether what is there is of them.
        is_there = (Path(self.config.sft.output or self.folder.cold_start) / "config.json").exists()
        if is_there and not self.changed:
            self.heading("cold start", "is there")
            return
        self.heading("cold start", "supervised training on demonstrations, from random weights")
        with self.session("lines") as session, session.stage("cold start"):
            run_sft(self.config, session)

    def train(self) -> None:
        """Value pretraining and RL; goes on where an interrupted demo stopped."""
        if RunData.load(self.folder).finished and (self.folder.path / "ledger.json").exists():
            self.heading("value pretraining and reinforcement learning", "are done")
            return
        self.heading(
            "value pretraining, then reinforcement learning",
            f"{self.config.generator.num_generators} generators, asynchronous",
        )
        with self.session() as session, session.stage(TRAINING_STAGE):
            run_up(self.config, session)

    def evaluate(self) -> None:
        """Held-out accuracy of the cold start and of the exported policy; what has a current result is left out."""
        models = {"cold_start": Path(self.config.sft.output or self.folder.cold_start), "export": self.folder.export}
        missing = {
            name: path
            for name, path in models.items()
            if current_result(self.folder.eval / f"{name}.json", name, self.config, path) is None
        }
        if not missing:
            self.heading("evaluation", "is done")
            return
        self.heading(
            "evaluation",
            f"{self.config.eval.num_problems} held-out problems, " + " and ".join(EVAL_NAMES[n] for n in missing),
        )
        with self.session("lines") as session, session.stage("evaluation"):
            evaluate(self.config, missing, session.sink, session.tick)

    def verdict(self, page: Path) -> int:
        """The table of results; failure when the pipeline did not do what it promises, in words."""
        data = RunData.load(self.folder)
        before, after = (read_result(self.folder.eval / f"{name}.json", text) for name, text in EVAL_NAMES.items())
        if before is None or after is None:  # `evaluate` raised otherwise
            raise VcppoError(f"an evaluation is missing in {self.folder.eval}")
        self.console.print()
        self.console.print(result_table(data, before, after))
        self.console.print(
            f"\nreport   {page}\nfigures  {self.folder.report}/*.png, numbers in *.csv"
            f"\npages    vcppo ui {self.folder.path}   curves, responses token by token, what the critic misjudged",
            highlight=False,
            markup=False,
        )
        problems = find_problems(data, before, after)
        for problem in problems:
            self.console.print(f"[red]not as it should be:[/] {escape(problem)}", highlight=False)
        if not problems:
            self.console.print(
                "[green]All as it should be.[/] Once more from the start: the same command with --fresh",
                highlight=False,
            )
        return EXIT_FAILURE if problems else EXIT_OK


def find_problems(data: RunData, before: EvalResult, after: EvalResult) -> list[str]:
    """What the demo promises and did not show."""
    rise, significant = gain(before, after)
    bound = data.config.rl.max_staleness
    problems = []
    if data.ledger is None or not is_exact(data.ledger):
        problems.append(f"the ledger is not exact: {data.ledger}")
    if data.config.value_pretraining.num_trajectories and not (data.decision or {}).get("passed"):
        problems.append("value pretraining did not pass its gate (value_pretraining.min_explained_variance)")
    if not significant:
        said = f"{before.pass_at_1:.3f} before, {after.pass_at_1:.3f} after ({rise:+.3f})"
        problems.append(f"accuracy did not rise significantly: {said}")
    if (data.max_staleness or 0) > bound:
        problems.append(f"a trajectory of staleness {data.max_staleness} was trained; the bound is {bound}")
    return problems


def result_table(data: RunData, before: EvalResult, after: EvalResult) -> Table:
    """The demo in a dozen lines."""
    rise, _ = gain(before, after)
    decision = data.decision or {}
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    for result in (before, after):
        interval = f"95 %: {result.low:.3f} to {result.high:.3f}, {result.num_problems} held-out problems"
        table.add_row(f"accuracy, {escape(result.name)}", f"[bold]{result.pass_at_1:.3f}[/]  ({interval})")
    table.add_row("gain", f"{rise:+.3f}")
    best, gate = recorded_view.figure(decision), number(decision.get("threshold"), "{:g}")
    passed = "passed" if decision.get("passed") else "not passed"
    table.add_row("critic", f"held-out explained variance {best}, gate {gate}: {passed}")
    table.add_row("weight broadcasts", str(data.num_broadcasts))
    table.add_row("staleness", f"largest {number(data.max_staleness, '{:.0f}')}, bound {data.config.rl.max_staleness}")
    table.add_row("mixed versions", f"{number(data.mixed_version_fraction, '{:.1%}')} of trained trajectories")
    table.add_row("ledger", str(Ledger(**data.ledger)) if data.ledger else "–")
    for stage, seconds in data.stage_seconds().items():
        table.add_row(f"time, {stage}", clock(seconds))
    return table
