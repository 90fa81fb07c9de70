"""`vcppo experiment` on the command line."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vcppo.common.errors import EXIT_FAILURE, EXIT_OK

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vcppo.deploy.experiment.suite import Run, Suite

ABOUT = """\
Runs every arm of a suite with every seed: a cold start a seed, then for each arm value pretraining, RL and an
evaluation on held-out problems. Arms of one seed share what they agree on: cold start, reward model, recorded
trajectories and the pretrained critic. The same command again skips finished runs and resumes interrupted ones; a
second one beside it takes runs the first has not begun. Suites: a YAML file, or a name in deploy/configs/suites/.
With a sweep, every arm runs with every value of one setting. The best one is chosen by accuracy in training, and run
again with fresh seeds, which are what the report compares.
"""
EXAMPLES = """\
vcppo experiment quick                       12 minutes on one core; then: vcppo report runs/quick
vcppo experiment --quick                     the same
vcppo experiment paper --dry-run             what would run, what is shared, what is there, and how long it takes
vcppo experiment paper --arm vc_ppo --arm ppo --seed 0
vcppo experiment paper --minutes 10          begins no run after that; again: goes on
vcppo experiment my_suite.yaml rl.num_steps=40 run.folder=/data/runs
"""

Add = Callable[[Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_experiment(add: Add) -> None:
    """Declare the command; `add(function, summary, examples)` makes its parser."""
    parser = add(experiment, "a suite of arms x seeds, resumable; nothing is computed twice", EXAMPLES.rstrip())
    parser.description = ABOUT
    parser.add_argument("suite", nargs="?", type=Path, metavar="SUITE", help="YAML file, or the name of one of ours")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change a setting of all arms")
    parser.add_argument("--quick", action="store_true", help="the suite `quick`")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this arm; repeatable")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="only this seed; repeatable")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="run folders go to DIR/<suite>; default: the suite's"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="begin no run after M minutes")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the runs, their state and how long they take; start nothing"
    )
    parser.add_argument("--steps", action="store_true", help="a line per learner step")


def experiment(arguments: argparse.Namespace) -> int:
    """The command. Returns the exit code: 1 when a run failed or is left."""
    from rich.console import Console

    from vcppo.deploy.experiment.chosen_values import read_choices
    from vcppo.deploy.experiment.suite import load_suite, plan_runs
    from vcppo.deploy.run.run_config import RunError

    given = Path("quick") if arguments.quick else arguments.suite
    overrides = list(arguments.overrides)
    if given is not None and arguments.quick and arguments.suite is not None:
        overrides.insert(0, str(arguments.suite))  # `--quick section.field=value`
    if given is None:
        raise RunError("which suite? `vcppo experiment quick`, `vcppo experiment paper`, or a YAML file of your own")
    suite = load_suite(given)
    if arguments.folder is not None:
        suite = suite.model_copy(update={"folder": arguments.folder})
    best = read_choices(suite)
    runs = plan_runs(suite, arguments.arm, arguments.seed, overrides, best)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.dry_run:
        console.print(table_of(runs, plan_runs(suite, overrides=overrides, best=best)))
        console.print(_outlook(suite, runs, _num_to_choose(suite, arguments, best)), highlight=False, soft_wrap=True)
        return EXIT_OK
    _write_suite(suite)
    return _work(suite, arguments, overrides, console)


def _work(suite: Suite, arguments: argparse.Namespace, overrides: Sequence[str], console: Console) -> int:
    """All runs there are to do; with a sweep then the choice, and the runs of what was chosen."""
    from rich.markup import escape

    from vcppo.deploy.experiment.chosen_values import make_choices, read_choices
    from vcppo.deploy.experiment.runner import Experiment, Tally
    from vcppo.deploy.experiment.suite import plan_runs

    began, best, tally = time.monotonic(), read_choices(suite), Tally()
    begun: set[str] = set()
    while True:
        runs = plan_runs(suite, arguments.arm, arguments.seed, overrides, best)
        siblings = plan_runs(suite, overrides=overrides, best=best)
        new = [run for run in runs if run.config.run.name not in begun]
        begun.update(run.config.run.name for run in new)
        work = Experiment(suite, new, siblings, console, minutes=arguments.minutes, began=began,
                          mode="lines" if arguments.steps else "silent")  # fmt: skip
        tally.add(work.work())
        chosen = make_choices(suite, siblings, tally.failed)
        for arm in sorted(set(chosen) - set(best)):
            assert suite.sweep is not None
            work.say(f"{arm}: {suite.sweep.field} = {chosen[arm]:g} is best with seeds {list(suite.seeds)}")
        if chosen == best:
            break
        best = chosen
    _note_call(suite, time.monotonic() - began, tally.done)
    work.say(f"{len(tally.done)} runs done, {len(tally.failed)} failed, {len(tally.left)} left. "
             f"Results: vcppo report {suite.path}")  # fmt: skip
    for name, text in tally.failed.items():
        console.print(f"[red]{escape(name)}:[/] {escape(text)}", highlight=False, soft_wrap=True)
    return EXIT_FAILURE if tally.failed or tally.left else EXIT_OK


def _num_to_choose(suite: Suite, arguments: argparse.Namespace, best: Mapping[str, float]) -> int:
    """Runs with fresh seeds that are not in the plan yet, because their arms' best values are not known."""
    if suite.sweep is None:
        return 0
    arms = [arm.name for arm in suite.arms if arm.name not in best and (not arguments.arm or arm.name in arguments.arm)]
    seeds = [seed for seed in suite.sweep.best_seeds if not arguments.seed or seed in arguments.seed]
    return len(arms) * len(seeds)


def _outlook(suite: Suite, runs: Sequence[Run], num_to_choose: int) -> str:
    """How many runs there are, and how long those that are left take."""
    from vcppo.deploy.experiment.runner import is_done
    from vcppo.deploy.run.run_data import RunData
    from vcppo.deploy.run.sweep import hours_left

    done = [run for run in runs if is_done(run)]
    minutes = [sum(RunData.load(run.folder).stage_seconds().values()) / 60 for run in done]
    left = len(runs) - len(done) + num_to_choose
    hours = hours_left(minutes, left, suite.minutes_per_run)
    later = f", {num_to_choose} more with fresh seeds once the best values are known" if num_to_choose else ""
    source = "as those that are done took" if minutes else "by the suite's minutes_per_run"
    known = "how long they take is not known" if hours is None else f"about {hours:.1f} hours in a row, {source}"
    return f"{len(runs)} runs, {len(done)} done{later}. {left} are left: {known}."


def table_of(runs: Sequence[Run], siblings: Sequence[Run]) -> Table:
    """A line per run: what it takes from others, and how far it is."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "critic starts from", "shares", "state"):
        table.add_column(heading, no_wrap=heading == "run")
    for run in runs:
        earlier = [other for other in siblings if siblings.index(other) < siblings.index(run)]
        table.add_row(escape(run.config.run.name), _critic_of(run), _shared(run, earlier), _state(run))
    return table


def _critic_of(run: Run) -> str:
    if not run.config.algorithm.has_critic:
        return "no critic"
    return {"value_pretrained": "value pretraining"}.get(run.config.critic.init, run.config.critic.init)


def _shared(run: Run, earlier: Sequence[Run]) -> str:
    mine = [other for other in earlier if run.pretrains and other.pretrains and other.recording == run.recording]
    same = [other for other in mine if other.critic == run.critic]
    if same:
        return f"critic of {same[0].config.run.name}"
    return f"recording of {mine[0].config.run.name}" if mine else f"{run.cold_start.run.name}"


def _state(run: Run) -> str:
    from vcppo.deploy.experiment.runner import is_done, is_trained
    from vcppo.deploy.run.run_data import RunData

    if is_done(run):
        return "done"
    if is_trained(run):
        return "to be evaluated"
    if not run.folder.config.exists():
        return "new"
    rows = RunData.load(run.folder).rl
    return f"resumes after step {rows[-1]['step']}" if rows else "resumes before RL"


def _write_suite(suite: Suite) -> None:
    """For the report: the arms in their order, and what the suite is for."""
    from vcppo.common.files.whole_file import write_whole

    suite.path.mkdir(parents=True, exist_ok=True)
    write_whole(suite.path / "suite.json", json.dumps(suite.model_dump(mode="json"), indent=1) + "\n")


def _note_call(suite: Suite, seconds: float, done: Sequence[str]) -> None:
    """How long this call took, for the reader: runs' own stages do not add up to it when two calls share the work."""
    from vcppo.common.files.json_lines import append_line

    note = {"ended": time.time(), "seconds": round(seconds, 1), "done": list(done)}
    append_line(suite.path / "calls.jsonl", json.dumps(note).encode() + b"\n")
