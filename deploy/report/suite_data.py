"""Runs of a suite, grouped by arm: what is compared, with its spread. Reads run folders; the maths is in numpy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.pass_at_k import mean_interval
from vcppo.common.files.json_lines import read_json_lines
from vcppo.common.run_folder import ADOPTED_FILE, RunFolder
from vcppo.deploy.evaluation.workers import EvalResult, read_result
from vcppo.deploy.run.run_data import TRAINING_STAGE, Row, RunData, column, read_json, series
from vcppo.deploy.run.sweep import CHOICES_FILE, SCORE, late_mean, variant_name

BOOTSTRAP_SEED = 0
COLD_START = "cold start"
NOT_ASKED = "not in this suite"
Float64Array = NDArray[np.float64]


class Curve(NamedTuple):
    """A metric over steps: mean, smallest and largest over the seeds that have the step."""

    steps: list[int]
    mean: Float64Array
    low: Float64Array
    high: Float64Array
    num_seeds: int


@dataclass(frozen=True)
class SeedRun:
    """One run of an arm.

    Attributes:
        result: on the task's held-out problems; `rates`: share of right samples by problem, same order in all runs.
        benchmarks: results of `vcppo eval --benchmark` by name.
        preparation: seconds before RL: start, value pretraining, and that of the run whose critic it took.
    """

    name: str
    seed: int
    data: RunData
    result: EvalResult | None
    rates: tuple[float, ...]
    benchmarks: dict[str, EvalResult]
    preparation: float = 0.0

    @property
    def decision(self) -> Row | None:
        """What value pretraining decided; None: it did not run."""
        return self.data.decision

    @property
    def seconds(self) -> float:
        """Wall time of all stages together."""
        return sum(self.data.stage_seconds().values())


@dataclass(frozen=True)
class ArmData:
    """An arm's finished runs, by seed."""

    name: str
    runs: tuple[SeedRun, ...]

    @property
    def seeds(self) -> list[int]:
        """In the order of `runs`."""
        return [run.seed for run in self.runs]

    @cached_property
    def pass_at_1(self) -> list[float]:
        """One a seed."""
        return [run.result.pass_at_1 for run in self.runs if run.result is not None]

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % of the mean over seeds, by a bootstrap over problems."""
        rates = _stacked([run.rates for run in self.runs])
        return None if rates is None else mean_interval(rates.mean(axis=0), BOOTSTRAP_SEED)

    @property
    def lengths(self) -> list[float]:
        """Mean response length of each evaluated seed, tokens."""
        return [run.result.mean_length for run in self.runs if run.result and run.result.mean_length is not None]

    def curve(self, metric: str) -> Curve | None:
        """The metric at each step, over seeds."""
        columns: dict[int, list[float]] = {}
        for run in self.runs:
            for step, value in zip(*series(run.data.rl, metric), strict=True):
                columns.setdefault(step, []).append(value)
        if not columns:
            return None
        steps = sorted(columns)
        pick = (np.mean, np.min, np.max)
        mean, low, high = (np.array([f(columns[step]) for step in steps]) for f in pick)
        return Curve(steps, mean, low, high, max(map(len, columns.values())))

    def list_at(self, metric: str, step: int) -> Float64Array | None:
        """``[L]`` of a metric that is a list (by position, by distance): mean over seeds, NaN where none is defined."""
        rows = [row[metric] for run in self.runs for row in run.data.rl
                if row["step"] == step and isinstance(row.get(metric), list)]  # fmt: skip
        if not rows:
            return None
        # Masked, because np.nanmean warns where nothing is defined.
        defined = np.ma.masked_invalid(np.array(rows, dtype=float))  # type: ignore[no-untyped-call]
        means: Float64Array = defined.mean(axis=0).filled(np.nan)
        return means


class Difference(NamedTuple):
    """pass@1 of one arm less another's, over the seeds both have.

    Attributes:
        interval: 95 %, bootstrap over problems, paired by problem and seed.
        by_seed: one difference a seed.
        means: both arms' own pass@1 over those seeds; they differ from the arms' means where seeds do.
    """

    mean: float
    interval: tuple[float, float]
    by_seed: list[float]
    means: tuple[float, float]

    @property
    def verdict(self) -> str:
        """``higher`` or ``lower`` where every seed and the interval say so, else ``no difference shown``."""
        if self.interval[0] > 0 and min(self.by_seed) > 0:
            return "higher"
        if self.interval[1] < 0 and max(self.by_seed) < 0:
            return "lower"
        return "no difference shown"


def difference(one: ArmData, other: ArmData) -> Difference | None:
    """`one` less `other`; None without a common seed that both were evaluated with."""
    theirs = {run.seed: run for run in other.runs}
    pairs = [(run.rates, theirs[run.seed].rates) for run in one.runs if run.seed in theirs]
    pairs = [(mine, its) for mine, its in pairs if mine and len(mine) == len(its)]
    if not pairs:
        return None
    table = np.array([np.subtract(mine, its) for mine, its in pairs])
    per_problem = table.mean(axis=0)
    low, high = mean_interval((per_problem + 1) / 2, BOOTSTRAP_SEED)  # to [0, 1] and back
    means = tuple(float(np.mean(rates)) for rates in zip(*pairs, strict=True))
    return Difference(
        float(table.mean()), (2 * low - 1, 2 * high - 1), [float(row.mean()) for row in table], (means[0], means[1])
    )


class SweptArm(NamedTuple):
    """One arm's runs with one value of a sweep, by which the value is chosen.

    Attributes:
        value: of the setting; `chosen`: whether it is the one that the arm is reported with.
        scores: late accuracy in training, one a run; what the choice was made by.
    """

    arm: str
    value: float
    chosen: bool
    runs: ArmData
    scores: list[float]


@dataclass(frozen=True)
class SuiteData:
    """Everything the page of a suite shows.

    Attributes:
        arms: with a sweep, each arm's runs with its best value and fresh seeds.
        swept: with a sweep, the runs by which values were chosen.
        field: the setting that the sweep is over; None: the suite has none.
        reference: the arm that all others are compared with; None: the suite names none.
        cold_start: each seed's starting policy as an arm; None: the runs belong to no suite.
        unfinished: names of runs that are left out.
        missing: arms of the suite of which no run is finished.
    """

    name: str
    description: str
    arms: tuple[ArmData, ...]
    cold_start: ArmData | None
    unfinished: tuple[str, ...]
    missing: tuple[str, ...]
    wanted_seeds: dict[str, int]
    seconds: float
    swept: tuple[SweptArm, ...] = ()
    field: str | None = None
    reference: str | None = None

    def arm(self, name: str) -> ArmData | None:
        """By name; `COLD_START` is one too."""
        known = [*self.arms, *([self.cold_start] if self.cold_start is not None else [])]
        return next((arm for arm in known if arm.name == name), None)

    def absence(self, *names: str) -> str:
        """Why there is nothing about these arms: nobody ran one yet, or the suite doesn't have it."""
        known = {COLD_START, *self.wanted_seeds}
        return "not run" if not self.wanted_seeds or known.issuperset(names) else NOT_ASKED

    @property
    def num_runs(self) -> int:
        """Finished runs of all arms, those of a sweep included."""
        return sum(len(arm.runs) for arm in self.everything)

    @property
    def everything(self) -> list[ArmData]:
        """All arms, then every value of a sweep with the seeds by which it was tried."""
        return [*self.arms, *(tried.runs for tried in self.swept)]


def load_suite_data(folders: Sequence[RunFolder], suite_folder: Path | None) -> SuiteData:
    """Group `folders` by arm, in the order of the suite's file where there is one."""
    suite = (read_json(suite_folder / "suite.json") if suite_folder else None) or {}
    order, sweep = [arm["name"] for arm in suite.get("arms", [])], suite.get("sweep")
    wanted = {arm["name"]: len(arm["seeds"] or suite["seeds"]) for arm in suite.get("arms", [])}
    arms: dict[str, list[SeedRun]] = {name: [] for name in order}
    unfinished, seconds = [], 0.0
    for folder in folders:
        run = load_run(folder)
        seconds += run.seconds
        if run.data.finished and run.result is not None:
            arms.setdefault(arm_of(run), []).append(run)
        else:
            unfinished.append(run.name)
    swept: list[SweptArm] = []
    if sweep and suite_folder:
        wanted = dict.fromkeys(order, len(sweep["best_seeds"]))
        swept, arms = _apart(arms, order, sweep, read_json(suite_folder / CHOICES_FILE) or {})
    found = tuple(_arm(name, runs) for name, runs in arms.items() if runs)
    return SuiteData(
        name=suite.get("name") or "comparison",
        description=suite.get("description", ""),
        arms=found,
        cold_start=_cold_start(suite_folder, found, suite.get("cold_start_seed")) if suite_folder else None,
        unfinished=tuple(unfinished),
        missing=tuple(name for name in order if not arms[name]),
        wanted_seeds=wanted,
        seconds=seconds + (_preparation(suite_folder) if suite_folder else 0.0),
        swept=tuple(swept),
        field=sweep["field"] if sweep else None,
        reference=suite.get("reference"),
    )


def _arm(name: str, runs: Iterable[SeedRun]) -> ArmData:
    return ArmData(name, tuple(sorted(runs, key=lambda run: run.seed)))


def _apart(
    runs: Mapping[str, Sequence[SeedRun]], order: Sequence[str], sweep: Row, choices: Row
) -> tuple[list[SweptArm], dict[str, list[SeedRun]]]:
    """The runs by which values were chosen, and the fresh ones of the value that was, by the arm's own name."""
    swept, fresh = [], set(sweep["best_seeds"])
    best: dict[str, list[SeedRun]] = {name: [] for name in order}
    for arm in order:
        for value in sweep["values"]:
            found, chosen = runs.get(variant_name(arm, value), ()), choices.get(arm, {}).get("value") == value
            tried = [run for run in found if run.seed not in fresh]
            if tried:
                scores = [late_mean(column(run.data.rl, SCORE)) for run in tried]
                kept = [score for score in scores if score is not None]
                swept.append(SweptArm(arm, value, chosen, _arm(variant_name(arm, value), tried), kept))
            if chosen:
                best[arm] = [run for run in found if run.seed in fresh]
    return swept, best


def load_run(folder: RunFolder, model: str = "export") -> SeedRun:
    """A run and the evaluations of `model`."""
    data = RunData.load(folder)
    benchmarks = {
        path.parent.name: result
        for path in sorted(folder.eval.glob(f"*/{model}.json"))
        if (result := read_result(path, path.parent.name)) is not None
    }
    result, rates = read_result(folder.eval / f"{model}.json", model), _rates(folder.eval / f"{model}.jsonl")
    return SeedRun(
        data.config.run.name, data.config.run.seed, data, result, rates, benchmarks, _before_rl(folder, data)
    )


def _before_rl(folder: RunFolder, data: RunData) -> float:
    """Seconds of the stage that trains, less its learner steps. A critic that was taken cost what it cost its maker."""
    note = read_json(folder.value_pretraining / ADOPTED_FILE) or {}
    maker = folder.path.parent / str(note["from"]) if "from" in note else None
    donated = 0.0
    if maker is not None and (maker / "config.yaml").exists():
        other = RunFolder(maker)
        donated = _before_rl(other, RunData.load(other))
    own = data.stage_seconds().get(TRAINING_STAGE, 0.0) - sum(column(data.rl, "time/step"))
    return max(0.0, own, donated)


def arm_of(run: SeedRun) -> str:
    """A run's name without its seed."""
    return re.sub(rf"-seed{run.seed}$", "", run.name)


def runs_in(folder: Path) -> list[RunFolder]:
    """Run folders of a suite that train something, by name."""
    kept = [path.parent for path in sorted(folder.glob("*/config.yaml"))]
    return [RunFolder(path) for path in kept if not path.name.startswith(("cold_start-seed", "reward_model-"))]


def _rates(path: Path) -> tuple[float, ...]:
    """From the per-problem records, in the order of problems."""
    rows = read_json_lines(path)
    try:
        rows.sort(key=lambda row: row["index"])
        return tuple(sum(each == "correct" for each in row["outcomes"]) / len(row["outcomes"]) for row in rows)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise VcppoError(f"{path}: is damaged: delete it and evaluate again") from error


def _stacked(rows: Iterable[tuple[float, ...]]) -> Float64Array | None:
    kept = [row for row in rows if row]
    return np.array(kept) if kept and len({len(row) for row in kept}) == 1 else None


def _cold_start(folder: Path, arms: Sequence[ArmData], shared: int | None) -> ArmData | None:
    """Of the seeds some arm has, and the one that is every seed's."""
    seeds = {seed for arm in arms for seed in arm.seeds} | {shared}
    folders = [RunFolder(path.parent) for path in sorted(folder.glob("cold_start-seed*/config.yaml"))]
    runs = [load_run(each, "cold_start") for each in folders]
    kept = tuple(run for run in runs if run.result is not None and run.seed in seeds)
    return ArmData(COLD_START, kept) if kept else None


def _preparation(folder: Path) -> float:
    """Seconds of cold starts and reward models."""
    paths = [*folder.glob("cold_start-seed*/stages.jsonl"), *folder.glob("reward_model-*/stages.jsonl")]
    return sum(column([row for path in paths for row in read_json_lines(path)], "seconds"), 0.0)
