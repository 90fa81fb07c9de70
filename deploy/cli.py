"""`vcppo`: the command line. Parses and dispatches; the work is in the module each command names.

A command imports what it needs when it runs: a help text or a mistyped option is answered within .2 s.

Exit codes: 0 success, 1 failure, 2 bad usage or config, 75 a resource has run out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vcppo.common.errors import EXIT_EXHAUSTED, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, VcppoError

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig
    from vcppo.deploy.terminal.session import Session

CONFIGS = Path(__file__).parent / "configs"  # in the checkout, or wherever the wheel is installed

Command = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; errors meant for the user are one clear message on stderr."""
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    import structlog

    logging = structlog.get_config()
    _quiet_logging()
    try:
        command: Command = arguments.command
        return command(arguments)
    except VcppoError as error:
        sys.stdout.flush()
        sys.stderr.write(f"vcppo: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `vcppo logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        from vcppo.common.files.room import shortage_of

        if (shortage := shortage_of(error)) is None:
            raise
        sys.stderr.write(f"vcppo: {error}: {shortage}\n")
        return EXIT_EXHAUSTED
    finally:
        structlog.configure(**logging)


def _quiet_logging() -> None:
    """Commands print results on stdout; only warnings are worth a line, on stderr. A session puts its own in place."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


# ---- commands


def _up(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.check.quick import BEFORE_UP, refuse_start
    from vcppo.deploy.demo import run_up
    from vcppo.deploy.launch.start_over import start_over
    from vcppo.deploy.run.run_config import exclusive, write_config
    from vcppo.deploy.terminal.session import open_session

    config = _config(arguments)
    refuse_start(config, BEFORE_UP)
    with exclusive(config.run.path):
        if arguments.start_over is not None and (place := start_over(config, arguments.start_over)):
            print(f"what there was moved to {place}")
        write_config(config)
        with open_session(config, "watch" if arguments.watch else "follow") as session, session.stage("up"):
            ledger = run_up(config, session)
    print(f"{config.run.name} is done: {ledger}. Results: vcppo report {config.run.path}")
    return EXIT_OK if ledger.is_exact else EXIT_FAILURE


def _sft(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.demo import other_cold_start, run_sft

    config = _config(arguments)
    code = _stage_alone(config, "cold start", run_sft)
    if (said := other_cold_start(config)) is not None:
        sys.stderr.write(f"vcppo: {said}\n")
    return code


def _reward_model(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.demo import run_reward_model

    return _stage_alone(_config(arguments), "reward model", run_reward_model)


def _stage_alone(config: VcppoConfig, name: str, run: Callable[[VcppoConfig, Session], None]) -> int:
    """A stage that is one process."""
    from vcppo.deploy.run.run_config import exclusive, write_config
    from vcppo.deploy.terminal.session import open_session

    with exclusive(config.run.path):
        write_config(config)
        with open_session(config, "follow") as session, session.stage(name):
            run(config, session)
    return EXIT_OK


def _ledger(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from vcppo.deploy.terminal.ledger_command import print_ledger
    from vcppo.deploy.terminal.open_store import open_store

    with open_store(_config(arguments)) as store:
        return EXIT_OK if print_ledger(store, Console()) else EXIT_FAILURE


def _logs(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.logs.log_lines import Screen
    from vcppo.deploy.logs.logs_command import LogFilter, from_folder, from_text
    from vcppo.deploy.run.run_config import latest_run, open_run

    wanted = LogFilter(arguments.service, arguments.level, arguments.trajectory, arguments.policy_version)
    if arguments.run is None and not sys.stdin.isatty():
        records = from_text(io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace"))
    else:
        folder = latest_run() if arguments.run is None else open_run(arguments.run)
        records = from_folder(folder.logs, arguments.follow)
    screen = Screen(level="debug", as_json=arguments.json)
    for record in records:
        if wanted.wants(record):
            screen.show(str(record.get("service", "")), record)
    return EXIT_OK


def _reject(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.terminal.open_store import open_store
    from vcppo.deploy.terminal.reject_command import reject

    arguments.overrides += [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    with open_store(_config(arguments), to_write=True) as store:
        lines, were_open = reject(store, names, arguments.why)
    print("\n".join(lines))
    return EXIT_OK if were_open and names else EXIT_FAILURE


def _keys(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from vcppo.deploy.terminal.keys_command import show_keys

    show_keys(arguments.folder or _config(arguments).keys_folder, arguments.rotate, Console(soft_wrap=True))
    return EXIT_OK


def _report(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.report import has_results, write_report
    from vcppo.deploy.report.run_records import pack
    from vcppo.deploy.report.suite_report import is_suite, write_suite_report
    from vcppo.deploy.run.run_config import RunError, latest_run, open_run

    runs = arguments.run
    if arguments.records is not None:
        suite = is_suite(runs[0]) if len(runs) == 1 else None
        if suite is None:
            raise RunError(f"--records packs one suite's records, and {' '.join(runs) or 'the latest run'} is none")
        pack(suite, arguments.records)
    if len(runs) > 1 or (runs and is_suite(runs[0])):
        print(write_suite_report(runs, arguments.output, arguments.markdown))
    else:
        folder = open_run(runs[0]) if runs else latest_run()
        if not has_results(folder):
            raise RunError(
                f"{folder.path} has nothing to report yet: no step, recording or evaluation. `vcppo logs {folder.path}`"
                " says what it did"
            )
        print(write_report(folder))
    return EXIT_OK


def _watch(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.run.run_config import config_of_run, latest_run, open_run
    from vcppo.deploy.terminal.live_view import watch
    from vcppo.deploy.terminal.session import StoreReader

    folder = latest_run() if arguments.run is None else open_run(arguments.run)
    watch(folder, StoreReader(config_of_run(folder)))
    return EXIT_OK


def _show_config(arguments: argparse.Namespace) -> int:
    from vcppo.common.config import config_fields, dump_config, load_config

    if arguments.config is not None:
        print(dump_config(load_config(arguments.config, arguments.overrides)), end="")
        return EXIT_OK
    for each in config_fields():
        if all(word in each.name or word in each.description for word in arguments.overrides):
            print(f"{each.name}  ({each.type}; default {each.default})\n    {each.description}")
    return EXIT_OK


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from vcppo.deploy.demo import TASKS, Demo, demo_config

    config = demo_config(
        arguments.overrides,
        path=arguments.config or TASKS[arguments.task],
        seed=arguments.seed,
        name=arguments.name,
        fresh=arguments.fresh,
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    if not arguments.ui:
        return Demo(config, console).run()
    from vcppo.deploy.ui.beside import pages_beside

    return Demo(config, console, partial(pages_beside, config.run.path)).run()


def _config(arguments: argparse.Namespace, between: Sequence[str] = ()) -> VcppoConfig:
    """The tree of -c CONFIG, or of an existing run, with the overrides applied, those `between` first."""
    from vcppo.common.config import load_config
    from vcppo.deploy.run.run_config import config_of_run, open_run

    overrides = [*between, *arguments.overrides]
    restarts = getattr(arguments, "restart_learner", None)
    if restarts is not None:
        overrides.append(f"launcher.learner_restarts={restarts}")
    run = getattr(arguments, "run", None)
    return load_config(arguments.config, overrides) if run is None else config_of_run(open_run(run), overrides)


# ---- the parser

EXAMPLES = """\
examples:
  vcppo demo                                   the whole pipeline on this machine's CPU
  vcppo sft -c my.yaml                         cold start: supervised training on the task's demonstrations
  vcppo up -c my.yaml run.name=first           value pretraining and RL, to the end; again: resumes
  vcppo up -c my.yaml rl.max_staleness=0       any setting as section.field=value (list them: vcppo config)
  vcppo slurm -c my.yaml --generator-nodes 4   the same on a cluster
  vcppo check -c my.yaml                       model, data, prompts, verifier, machine: would it run?
  vcppo plan -c my.yaml --gpu-memory-gib 80    what it will need, and what won't fit
  vcppo watch                                  live view of the latest run
  vcppo ui                                     pages of all runs in a browser
  vcppo samples runs/first --outcome correct   read its responses
  vcppo logs -f --level warning                follow warnings of all processes
  vcppo eval -c my.yaml --model runs/first/export --model runs/first/cold_start
  vcppo eval -c my.yaml --benchmark aime --model runs/first/export       also gpqa, codeforces, jsonl
  vcppo contamination -c my.yaml --benchmark aime    has it been trained on?
  vcppo explainable runs/first --positions 8,40,80   does the critic lag, or is the task solved?
  vcppo advise runs/first                            is the critic worth it?
  vcppo experiment quick                       arms x seeds, resumable; then vcppo report runs/quick
  vcppo ledger --run runs/first                where every prompt is
  vcppo reject PROMPT --run runs/first         give one up
  vcppo report runs/first                      one page with all figures
  vcppo chaos --minutes 3                      faults over a run of its own, and the proof that nothing was lost
"""


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """argparse, plus: ``section.field=value`` may stand anywhere after a command that takes a config."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    wrong = [word for word in rest if word not in late]
    if wrong or (late and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(wrong or late)}")
    if late:
        arguments.overrides = [*arguments.overrides, *late]
    return arguments


def _parser() -> argparse.ArgumentParser:
    from vcppo.deploy.chaos.chaos_command import add_chaos
    from vcppo.deploy.check.check_command import add_check
    from vcppo.deploy.check.plan_command import add_plan
    from vcppo.deploy.evaluation.advise_command import add_advise
    from vcppo.deploy.evaluation.eval_command import add_evaluation
    from vcppo.deploy.evaluation.explainable_command import add_explainable
    from vcppo.deploy.experiment.experiment_command import add_experiment
    from vcppo.deploy.samples.samples_command import add_samples
    from vcppo.deploy.slurm.slurm_command import add_slurm
    from vcppo.deploy.ui.ui_command import add_ui

    parser = argparse.ArgumentParser(
        prog="vcppo",
        description="PPO for long chains of thought, with a value-calibrated critic (VC-PPO).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_up(commands)
    add_slurm(partial(_add, commands))
    _add_sft(commands)
    _add_reward_model(commands)
    add_evaluation(partial(_add, commands), partial(_takes_config, run=True), _config)
    add_explainable(partial(_add, commands))
    add_advise(partial(_add, commands))
    add_experiment(lambda command, text, examples: _add(commands, "experiment", command, text, examples))
    _add_ledger(commands)
    _add_reject(commands)
    _add_logs(commands)
    add_samples(partial(_add, commands))
    add_ui(partial(_add, commands))
    _add_keys(commands)
    _add_report(commands)
    add_chaos(lambda command, text, examples: _add(commands, "chaos", command, text, examples))
    add_check(partial(_add, commands), partial(_takes_config, run=True), _config)
    add_plan(partial(_add, commands), partial(_takes_config, run=True), _config)
    _add_watch(commands)
    _add_config(commands)
    _add_demo(commands)
    return parser


def _add_up(commands: Commands) -> None:
    up = _add(commands, "up", _up, "start a run on this machine and follow it; the same command resumes it",
              "vcppo up -c my.yaml\nvcppo up -c my.yaml run.name=b rl.batch_size=64 --watch\n"
              "vcppo up --run runs/b rl.num_steps=80        resume a run, for longer\n"
              "vcppo up --run runs/b --start-over rl algorithm.advantage_estimator=gae")  # fmt: skip
    _takes_config(up, run=True)
    up.add_argument(
        "--watch", action="store_true", help="live view instead of log lines; without a terminal, a line per step"
    )
    up.add_argument(
        "--restart-learner",
        type=int,
        metavar="N",
        help="start a crashed learner again up to N times in a row (launcher.learner_restarts); 0: stop, `up` resumes",
    )
    up.add_argument(
        "--start-over",
        choices=["value_pretraining", "rl"],
        metavar="STAGE",
        help="move what value_pretraining or rl and the stages after it have made to <run>/before-N, and make it again",
    )


def _add_sft(commands: Commands) -> None:
    sft = _add(
        commands, "sft", _sft, "cold start: supervised training on the task's demonstrations", "vcppo sft -c my.yaml"
    )
    _takes_config(sft, run=True)


def _add_reward_model(commands: Commands) -> None:
    stage = _add(commands, "reward-model", _reward_model, "a Bradley-Terry reward model, for critic.init to start from",
                 "vcppo reward-model -c my.yaml                       on demonstrations: runs/<name>/reward_model\n"
                 "vcppo reward-model -c my.yaml reward_model.rollouts=runs/a/value_pretraining/trajectories.msgpack\n"
                 "vcppo reward-model -c my.yaml reward_model.prefix_fraction=0    complete responses only\n"
                 "then vcppo up -c deploy/configs/arms/ppo.yaml critic.init=runs/<name>/reward_model")  # fmt: skip
    _takes_config(stage, run=True)


def _add_ledger(commands: Commands) -> None:
    ledger = _add(commands, "ledger", _ledger, "where every prompt of a run is; exit 1 unless exact",
                  "vcppo ledger --run runs/run\nvcppo ledger -c my.yaml redis.url=redis://store:6379/0")  # fmt: skip
    _takes_config(ledger, run=True)


_REJECTED = """
Whatever state a prompt is in, it is rejected, with a dead letter, and replaced by a new one. A step that it was claimed
for is trained without it. The run may be up or down. Exit 1: one of them was not open.
"""


def _add_reject(commands: Commands) -> None:
    reject = _add(commands, "reject", _reject, "give prompts up by hand: those that a learner dies of, say",
                  "vcppo reject rl-00000012-3 --run runs/first\n"
                  "vcppo reject rl-00000012-3 rl-00000014-0 -c my.yaml redis.url=redis://store:6379/0\n"
                  "vcppo reject rl-00000012-3@generator-0.2f1c --run runs/first    the prompt of that trajectory",
    )  # fmt: skip
    reject.epilog = f"{reject.epilog}{_REJECTED}"
    reject.set_defaults(overrides=[])
    reject.add_argument("words", nargs="+", metavar="PROMPT", help="prompt or trajectory ids; section.field=value")
    reject.add_argument("--why", default="", metavar="TEXT", help="for the dead letter")
    source = reject.add_mutually_exclusive_group(required=True)
    source.add_argument("-c", "--config", type=Path, metavar="CONFIG", help="YAML file of the run")
    source.add_argument("--run", metavar="RUN", help="an existing run: its folder, or its name under runs/")


def _add_logs(commands: Commands) -> None:
    logs = _add(commands, "logs", _logs, "log lines of a run or of standard input, filtered and readable",
                "vcppo logs -f --service generator\nvcppo logs runs/run --level warning\n"
                "vcppo logs --trajectory rl-00000012-0     one trajectory's life\n"
                "docker compose logs -f | vcppo logs --level error")  # fmt: skip
    logs.add_argument("run", nargs="?", metavar="RUN", help="run folder, or its name under runs/")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with new lines until Ctrl-C")
    logs.add_argument("--service", metavar="S", help="a process (generator-0) or kind of process (generator)")
    logs.add_argument("--level", choices=["debug", "info", "warning", "error", "critical"], help="lowest level shown")
    logs.add_argument("--trajectory", metavar="ID", help="lines about this trajectory or prompt")
    logs.add_argument("--policy-version", type=int, metavar="V", help="lines about this policy version")
    logs.add_argument("--json", action="store_true", help="JSON lines, for jq")


def _add_keys(commands: Commands) -> None:
    keys = _add(commands, "keys", _keys, "make, show and rotate the keys of a run's services",
                "vcppo keys -c my.yaml                  make what is missing, in the run's folder\n"
                "vcppo keys -c my.yaml --folder secrets     elsewhere, for security.keys\n"
                "vcppo keys --run runs/b --rotate generator --rotate learner")  # fmt: skip
    _takes_config(keys, run=True)
    keys.add_argument("--folder", type=Path, metavar="DIR", help="default: security.keys, or keys/ in the run folder")
    keys.add_argument(
        "--rotate",
        action="append",
        default=[],
        choices=["buffer", "generator", "learner"],
        help="make a new pair; the public key until now is still let in until the next rotation; repeatable",
    )


def _add_report(commands: Commands) -> None:
    report = _add(commands, "report", _report, "one HTML page, PNG and CSV: of a run, or of several compared",
                  "vcppo report                       the latest run: <run>/report\n"
                  "vcppo report runs/run\n"
                  "vcppo report runs/quick            a suite of `vcppo experiment`: the paper's figures and tables\n"
                  "vcppo report runs/a-seed0 runs/a-seed1 runs/b-seed0 --output compared    by name\n"
                  "vcppo report runs/paper --markdown docs/results.md --records paper.tar.xz")  # fmt: skip
    report.add_argument("run", nargs="*", metavar="RUN", help="run folders or names, or a suite; default: the latest")
    report.add_argument("--output", type=Path, metavar="DIR", help="of several runs: where page, figures and data go")
    report.add_argument("--markdown", type=Path, metavar="FILE", help="of several runs: also a Markdown page")
    report.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="of a suite: also its records as .tar.xz, without weights and logs; unpacked it is a suite again",
    )


def _add_watch(commands: Commands) -> None:
    watch = _add(commands, "watch", _watch, "live view of a run", "vcppo watch\nvcppo watch runs/run")
    watch.add_argument("run", nargs="?", metavar="RUN", help="run folder or name; default: the latest")


def _add_config(commands: Commands) -> None:
    config = _add(commands, "config", _show_config, "every setting with its meaning; with -c, the resolved tree",
                  "vcppo config\nvcppo config lambda\nvcppo config -c my.yaml rl.batch_size=64")  # fmt: skip
    config.add_argument("overrides", nargs="*", metavar="WORD", help="only settings with this in their name or text")
    config.add_argument("-c", "--config", type=Path, metavar="CONFIG", help="print this file resolved, with overrides")


def _add_demo(commands: Commands) -> None:
    demo = _add(commands, "demo", _demo, "the whole pipeline: cold start, value pretraining, RL, evaluation, report",
                "vcppo demo                    starts runs/demo, or continues it where it stopped\n"
                "vcppo demo --ui               the same, with its pages open in a browser\n"
                "vcppo demo --fresh            a new one: runs/demo-2\n"
                "vcppo demo --task tools       a model learns to ask a calculator: runs/demo-tools\n"
                "vcppo demo --seed 7           runs/demo-seed7")  # fmt: skip
    demo.add_argument("overrides", nargs="*", metavar="section.field=value", help="change a setting")
    recipe = demo.add_mutually_exclusive_group()
    recipe.add_argument(
        "--task",
        choices=("arithmetic", "tools"),
        default="arithmetic",
        help="what is learnt: careful arithmetic (the default), or asking a calculator in two turns",
    )
    recipe.add_argument(
        "-c", "--config", type=Path, metavar="CONFIG", help="another recipe than deploy/configs/demo.yaml"
    )
    demo.add_argument("--seed", type=int, help="run.seed, and a run folder of its own")
    demo.add_argument("--run", dest="name", metavar="NAME", help="name of the run folder")
    demo.add_argument("--fresh", action="store_true", help="start over in a new run folder")
    demo.add_argument(
        "--ui", action="store_true", help="pages of the run in a browser while the demo goes on (vcppo ui)"
    )


def _add(commands: Commands, name: str, command: Command, text: str, examples: str) -> argparse.ArgumentParser:
    epilog = "examples:\n" + "".join(f"  {line}\n" for line in examples.splitlines())
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


def _takes_config(parser: argparse.ArgumentParser, run: bool) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="CONFIG",
        help=f"YAML file of the run (examples: {CONFIGS})".replace("%", "%%"),
    )
    if run:
        source.add_argument("--run", metavar="RUN", help="an existing run: its folder, or its name under runs/")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change a setting")


if __name__ == "__main__":
    sys.exit(main())
