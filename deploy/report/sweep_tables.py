"""Tables of a suite with a sweep or a reference: how values were chosen, and arms compared at equal steps and time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vcppo.deploy.report.equal_time import WINDOW, Timed, accuracy_at, common_time, paired_interval, timed
from vcppo.deploy.report.suite_data import ArmData, SeedRun, SuiteData, difference
from vcppo.deploy.report.suite_tables import Table, per_cent, spread
from vcppo.deploy.run.run_data import series
from vcppo.deploy.run.sweep import SCORE

ONE_SEED = ", one seed only"


def sweep(data: SuiteData) -> Table | None:
    """Every value that was tried, and which one each arm is reported with."""
    if not data.swept:
        return None
    rows = []
    for tried in data.swept:
        score = per_cent(float(np.mean(tried.scores))) if tried.scores else "–"
        rows.append([
            tried.arm, f"{tried.value:g}", score, spread(tried.scores) if tried.scores else "–",
            per_cent(float(np.mean(tried.runs.pass_at_1))), str(len(tried.runs.runs)), "chosen" if tried.chosen else "",
        ])  # fmt: skip
    headings = ("arm", str(data.field), "accuracy in training, late, %", "lowest – highest seed",
                "held-out pass@1, %", "seeds", "")  # fmt: skip
    return Table("Every value that was tried", headings, rows, SWEEP_NOTE)


SWEEP_NOTE = (
    "Late accuracy in training is the mean of the last quarter of steps; the value of the highest one is chosen."
    " All other tables are of runs with the chosen value and other seeds, so the choice does not flatter them."
    " Held-out pass@1 of the runs here took no part in the choice."
)


def equal_steps(data: SuiteData) -> Table | None:
    """The reference less each other arm, after the same number of steps of the same batch."""
    reference = data.arm(data.reference or "")
    if reference is None:
        return None
    rows = []
    for arm in data.arms:
        found = None if arm is reference else difference(reference, arm)
        if found is None:
            continue
        verdict = found.verdict + (ONE_SEED if len(found.by_seed) == 1 else "")
        rows.append([arm.name, *map(per_cent, found.means), f"{100 * found.mean:+.1f}", _points(found.interval),
                     _points(paired_interval(found.by_seed)), _by_seed(found.by_seed), verdict])  # fmt: skip
    headings = ("other arm", f"{reference.name}: pass@1, %", "other arm: pass@1, %", "difference, points",
                "95 %, problems", "95 %, seeds", "by seed", f"{reference.name} is")  # fmt: skip
    return Table("Equal steps: differences from the reference", headings, rows, EQUAL_STEPS_NOTE) if rows else None


EQUAL_STEPS_NOTE = (
    "Held-out pass@1 after the last step, paired by problem and seed. The first interval is a bootstrap over problems,"
    " the second Student's t over seeds. “Higher” stands where the first is above 0 and every seed agrees."
)


def equal_time(data: SuiteData) -> Table | None:
    """Accuracy in training when the fastest run had ended: RL alone, and with all that comes before it."""
    if data.arm(data.reference or "") is None:
        return None
    views = [_view(data, with_preparation=False), _view(data, with_preparation=True)]
    if any(view is None for view in views):
        return None
    rl, whole = (view for view in views if view is not None)
    rows = [
        [arm.name, _step_seconds(arm), _mean_seconds([run.preparation for run in arm.runs]), *rl[arm.name],
         *whole[arm.name], str(len(arm.runs))]
        for arm in data.arms
    ]  # fmt: skip
    headings = (
        "arm", "seconds a step", "seconds before RL",
        *(f"{view}: {what}" for view in ("RL alone", "with what comes before")
          for what in ("accuracy, %", f"{data.reference} less it, points", "95 %, seeds")), "seeds",
    )  # fmt: skip
    return Table("Equal wall time", headings, rows, EQUAL_TIME_NOTE.format(window=WINDOW))


EQUAL_TIME_NOTE = (
    "Accuracy on fresh training prompts, mean of the last {window} steps that had ended when the fastest run of all"
    " arms was through, so every arm had the same time. A dash: not one step had ended by then. Seconds before RL are"
    " the start and value pretraining, that of the run whose critic was taken included. Differences are paired by seed."
    " Wall time is of one machine, and other work on it counts."
)


def _view(data: SuiteData, *, with_preparation: bool) -> dict[str, list[str]] | None:
    """By arm: accuracy at the common time, the reference less it, and the interval."""
    runs = {
        arm.name: {run.seed: timed_run(run, with_preparation=with_preparation) for run in arm.runs} for arm in data.arms
    }
    at = common_time([run for by_seed in runs.values() for run in by_seed.values()])
    if at is None:
        return None
    reached = {
        arm: {seed: found for seed, run in by_seed.items() if (found := accuracy_at(run, at)) is not None}
        for arm, by_seed in runs.items()
    }
    best = reached[str(data.reference)]
    cells = {}
    for arm, by_seed in reached.items():
        differences = [best[seed] - by_seed[seed] for seed in sorted(best.keys() & by_seed.keys())]
        compared = arm != data.reference and bool(differences)
        cells[arm] = [
            per_cent(float(np.mean(list(by_seed.values())))) if by_seed else "–",
            f"{100 * float(np.mean(differences)):+.1f}" if compared else "–",
            _points(paired_interval(differences)) if compared else "–",
        ]
    return cells


def timed_run(run: SeedRun, *, with_preparation: bool) -> Timed:
    """Its accuracy over seconds of RL, or over all seconds since it was started."""
    seconds, accuracy = (dict(zip(*series(run.data.rl, name), strict=True)) for name in ("time/step", SCORE))
    steps = sorted(seconds.keys() & accuracy.keys())
    before = run.preparation if with_preparation else 0.0
    return timed([seconds[step] for step in steps], [accuracy[step] for step in steps], before)


def _step_seconds(arm: ArmData) -> str:
    return _mean_seconds([seconds for run in arm.runs for seconds in series(run.data.rl, "time/step")[1]])


def _mean_seconds(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds):.0f}" if len(seconds) else "–"


def _points(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f}"


def _by_seed(differences: Sequence[float]) -> str:
    return ", ".join(f"{100 * each:+.1f}" for each in differences)
