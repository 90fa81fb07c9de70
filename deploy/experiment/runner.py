"""Works a suite off: for each run its cold start, its reward model, value pretraining and RL, its evaluation.

Every stage is skipped when what it makes is there, an interrupted one goes on where it stopped; so the same command
continues after anything. Two of these on one suite share the work: a run another one holds is left to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.demo import run_reward_model, run_sft, run_up
from vcppo.deploy.evaluation.workers import EvalResult, current_result, evaluate, read_result
from vcppo.deploy.experiment.shared import adopt, has_decided, publish_recording
from vcppo.deploy.experiment.suite import Run, Suite, recorded_at
from vcppo.deploy.processes.supervisor import Interrupted
from vcppo.deploy.run.run_config import RunError, RunInUse, exclusive, harmful_changes, write_config
from vcppo.deploy.run.run_data import TRAINING_STAGE, RunData
from vcppo.deploy.terminal.display import clock, number
from vcppo.deploy.terminal.session import Mode, Session, open_session

WAIT_SECONDS = 5.0
SHAPE_COLD_START = ("run.", "model.", "task.", "sampling.", "sft.")
"""How names of settings begin that a cold start is made with. A changed gate, say, costs its run the critic alone."""
SHAPE_REWARD_MODEL = (*SHAPE_COLD_START, "reward_model.")
Stage = Callable[[VcppoConfig, Session], object]


class NotYet(VcppoError):
    """A run has to wait for what another vcppo is making."""


@dataclass
class Tally:
    """What became of the runs, by name."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take in the runs of another call."""
        self.done += other.done
        self.failed |= other.failed
        self.left += other.left


def export_eval(run: Run) -> EvalResult | None:
    """The run's result on held-out problems, of the policy and settings there are now."""
    return _result(run.config, "export", run.folder.export)


def _result(config: VcppoConfig, name: str, model: Path) -> EvalResult | None:
    """None: none, or of other inputs. Of a model whose folder is gone, what was written is all there can be."""
    path = RunFolder(config.run.path).eval / f"{name}.json"
    if not (model / "config.json").exists():
        return read_result(path, config.run.name)
    return current_result(path, config.run.name, config, model)


def is_trained(run: Run) -> bool:
    """All RL steps done, the policy exported."""
    if not run.folder.config.exists():
        return False
    return RunData.load(run.folder).finished and (run.folder.path / "ledger.json").exists()


def is_done(run: Run) -> bool:
    """Trained, and evaluated with the settings there are now."""
    return is_trained(run) and export_eval(run) is not None


class Experiment:
    """The runs of one call.

    Args:
        runs: to be done, in order; `siblings`: all of the suite, to take recordings and critics from.
        minutes: no run is begun after that; None: all are.
        began: from when these count, by the monotonic clock; None: now.
        mode: of the session of each stage, see `open_session`.
    """

    def __init__(
        self, suite: Suite, runs: Sequence[Run], siblings: Sequence[Run], console: Console,
        *, minutes: float | None = None, mode: Mode = "silent", began: float | None = None,
    ) -> None:  # fmt: skip
        self.suite, self.runs, self.siblings = suite, list(runs), list(siblings)
        self.console, self.mode = console, mode
        self.started = time.monotonic() if began is None else began
        self.until = None if minutes is None else self.started + 60 * minutes

    def work(self) -> Tally:
        """All runs, each at its turn; a failure is noted and the next one begun."""
        tally, waiting, told = Tally(), list(self.runs), False
        while waiting:
            later: list[Run] = []
            for run in waiting:
                if self.until is not None and time.monotonic() > self.until and not is_done(run):
                    tally.left.append(run.config.run.name)
                elif not self._try(run, tally):
                    later.append(run)
            if later and len(later) == len(waiting):
                if not told:
                    self.say(f"waiting for another vcppo, at work on {later[0].config.run.name} or on what it needs")
                told = True
                time.sleep(WAIT_SECONDS)
            waiting = later
        return tally

    def _try(self, run: Run, tally: Tally) -> bool:
        """True when there is nothing more to do for it here."""
        name = run.config.run.name
        try:
            self._run(run)
        except Interrupted:
            raise
        except (RunInUse, NotYet):
            return False
        except VcppoError as error:
            tally.failed[name] = str(error)
            self.say(f"[red]{escape(name)} failed:[/] {escape(str(error).splitlines()[0])}")
        else:
            tally.done.append(name)
        return True

    def _run(self, run: Run) -> None:
        began = time.monotonic()
        if is_done(run):
            _check_settings(run.folder, run.config)
            self._say_result(run, "is there")
            return
        self._cold_start(run)
        self._reward_model(run)
        with exclusive(run.folder.path):
            donor = self._value_pretraining(run)
            if not is_trained(run):
                note = f", critic or recording from {donor.config.run.name}" if donor else ""
                self._stage(run.config, TRAINING_STAGE, run_up, note)
            if run.pretrains:
                publish_recording(run, recorded_at(self.suite, run.seed))
            if export_eval(run) is None:
                self._stage(run.config, "evaluation", _evaluation({"export": run.folder.export}))
        self._say_result(run, clock(time.monotonic() - began))

    def _cold_start(self, run: Run) -> None:
        """The seed's own, and its evaluation."""
        config, folder = run.cold_start, RunFolder(run.cold_start.run.path)
        with exclusive(folder.path):
            _check_settings(folder, config, SHAPE_COLD_START)
            write_config(config)
            if not (folder.cold_start / "config.json").exists():
                self._stage(config, "cold start", run_sft)
            if _result(config, "cold_start", folder.cold_start) is None:
                self._stage(config, "evaluation", _evaluation({"cold_start": folder.cold_start}))

    def _reward_model(self, run: Run) -> None:
        config = run.reward_model
        if config is None:
            return
        folder = RunFolder(config.run.path)
        with exclusive(folder.path):
            _check_settings(folder, config, SHAPE_REWARD_MODEL)
            if (folder.reward_model / "config.json").exists():
                return
            wanted = config.reward_model.rollouts
            if wanted is not None and wanted == recorded_at(self.suite, run.seed) and not wanted.exists():
                self._publish(run.seed, wanted)
            self._stage(config, "reward model", run_reward_model)

    def _publish(self, seed: int, place: Path) -> None:
        for other in self.siblings:
            if other.seed == seed and other.pretrains:
                publish_recording(other, place)
        if not place.exists():
            raise RunError(
                f"reward_model.rollouts = recorded: no arm with value pretraining has recorded for seed {seed} yet: "
                "list one before this arm"
            )

    def _value_pretraining(self, run: Run) -> Run | None:
        """Take what a sibling has; wait while another vcppo is making just that."""
        if not run.pretrains or run.folder.value_pretraining.exists():
            return None
        others = [other for other in self.siblings if other.config.run.name != run.config.run.name]
        for other in others:
            if other.pretrains and other.recording == run.recording and not has_decided(other) and _is_held(other):
                raise NotYet(f"{other.config.run.name} records the same")
        return adopt(run, others)

    def _stage(self, config: VcppoConfig, name: str, stage: Stage, note: str = "") -> None:
        """One stage of one run folder, its wall time noted there."""
        self.say(f"{config.run.name}: {name}{note}")
        with open_session(config, self.mode) as session, session.stage(name):
            write_config(config)  # processes read it
            stage(config, session)

    def _say_result(self, run: Run, how_long: str) -> None:
        result, rows = export_eval(run), RunData.load(run.folder).rl
        assert result is not None
        last = rows[-1] if rows else {}
        self.say(
            f"[bold]{escape(run.config.run.name)}[/]: pass@1 {result.pass_at_1:.3f} "
            f"({result.low:.3f} to {result.high:.3f}), "
            f"length {number(result.mean_length, '{:.0f}')}, explained variance "
            f"{number(last.get('explained_variance/token'), '{:.2f}')}  [bright_black]{how_long}[/]"
        )

    def say(self, text: str) -> None:
        """One line on the terminal, with the time since the start."""
        self.console.print(f"\\[{clock(time.monotonic() - self.started):>7}] {text}", highlight=False, soft_wrap=True)


def _check_settings(folder: RunFolder, config: VcppoConfig, shaping: Sequence[str] = ("",)) -> None:
    """What is there was made with these settings, as far as names that begin with `shaping` go.

    Raises RunError, by field.
    """
    if folder.config.exists() and (harmful := harmful_changes(folder, config, shaping)):
        raise RunError(
            f"{folder.path} was made with other settings: {harmful}."
            " Give the suite another name or --folder, or remove that folder."
        )


def _evaluation(models: dict[str, Path]) -> Stage:
    def stage(config: VcppoConfig, session: Session) -> None:
        evaluate(config, models, session.sink, session.tick)

    return stage


def _is_held(run: Run) -> bool:
    """Whether another vcppo works on it now."""
    if not run.folder.path.exists():
        return False
    try:
        with exclusive(run.folder.path):
            return False
    except RunInUse:
        return True
