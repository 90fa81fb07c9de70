"""Which value of a sweep each arm is reported with: made once from finished runs, and kept in the suite's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence

from vcppo.common.errors import ConfigError
from vcppo.common.files.whole_file import write_whole
from vcppo.deploy.experiment.runner import is_done
from vcppo.deploy.experiment.suite import Run, Suite
from vcppo.deploy.run.run_data import RunData, column, read_json
from vcppo.deploy.run.sweep import CHOICES_FILE, SCORE, best_value, late_mean


def read_choices(suite: Suite) -> dict[str, float]:
    """By arm, the value that was chosen. Raises ConfigError where the sweep's values are others now."""
    if suite.sweep is None:
        return {}
    path = suite.path / CHOICES_FILE
    chosen = {arm: float(made["value"]) for arm, made in (read_json(path) or {}).items()}
    for arm, value in chosen.items():
        if value not in suite.sweep.values:
            raise ConfigError(
                f"{path}: {suite.sweep.field} = {value:g} was chosen for {arm}, and is none of the sweep's values now:"
                " put it back, or give the suite another name or --folder"
            )
    return chosen


def make_choices(suite: Suite, runs: Sequence[Run], failed: Collection[str]) -> dict[str, float]:
    """Choose for each arm that has none yet, where all its runs of the sweep are done or have failed.

    A choice stays, whatever happens later: runs with fresh seeds were made with it.

    Args:
        runs: all of the suite.
        failed: names of those that failed in this call.

    Returns:
        The value of each arm, old and new.
    """
    kept = read_choices(suite)
    if suite.sweep is None:
        return kept
    made = read_json(suite.path / CHOICES_FILE) or {}
    for arm in (arm.name for arm in suite.arms if arm.name not in kept):
        scores = {
            value: [
                _score(run, failed)
                for run in runs
                if run.arm == arm and run.value == value and run.seed not in suite.sweep.best_seeds
            ]
            for value in suite.sweep.values
        }
        value = best_value(scores)
        if value is not None:
            kept[arm] = value
            shown = {f"{each:g}": [_shown(score) for score in found] for each, found in scores.items()}
            made[arm] = {"value": value, "field": suite.sweep.field, "score": SCORE, "scores": shown}
    if made:
        write_whole(suite.path / CHOICES_FILE, json.dumps(made, indent=1) + "\n")
    return kept


def _score(run: Run, failed: Collection[str]) -> float | None:
    """Late accuracy in training; ``-inf`` where the run failed, None where it is still to be done."""
    if run.config.run.name in failed:
        return -math.inf
    return late_mean(column(RunData.load(run.folder).rl, SCORE)) if is_done(run) else None


def _shown(score: float | None) -> float | str | None:
    """JSON has no infinity."""
    return "failed" if score == -math.inf else score
