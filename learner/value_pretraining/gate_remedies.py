"""What value pretraining says when it can't pass, or hardly could, and what to do about it. Pure text and arithmetic.

Every remedy here is a setting that may be changed on the same run (`vcppo.common.config.dependents`): the recording
stays, or goes on, and the critic is trained again. tests/unit/test_remedies.py follows each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vcppo.common.config import ValuePretrainingConfig
from vcppo.learner.value_pretraining.recording_stats import Counts

NEEDED_OF_EACH = 20
"""Right and not-right responses, of each at least, among those held out.

With 20 of the rarer kind the 90 % interval of a critic at the default gate, 0.3, is 0.15 to 0.2 to either side
(simulated, rates from 5 to 50 %: docs/value_pretraining.md), so it does not reach 0. With 5 it is over 0.3.
"""

_MOST_TIMES = 32  # more recording than this is no remedy
_UNMEASURED = "set value_pretraining.min_explained_variance to -10 to begin RL with a critic that nobody measured"


def asks_for_counts(config: ValuePretrainingConfig) -> bool:
    """Whether the gate can fail: one at or below 0 lets any critic pass that is better than nothing, or worse."""
    return config.min_explained_variance > 0


def too_few(
    held_out: Counts, recorded: Counts, config: ValuePretrainingConfig, group_size: int, enough_held_out: float | None
) -> str | None:
    """Why explained variance can't be measured on these held-out responses, and what to change; None: it can.

    Args:
        recorded: of the whole recording.
        enough_held_out: the least held_out_fraction that would do with this recording; None: none does.
    """
    if not asks_for_counts(config) or held_out.num_rarer >= NEEDED_OF_EACH:
        return None
    kind = "right" if held_out.num_right <= held_out.num_not_right else "not right"
    return (
        f"value pretraining: {held_out.num_rarer} of {held_out.num_responses} held-out responses are {kind}. The gate, "
        f"value_pretraining.min_explained_variance = {config.min_explained_variance:g}, needs {NEEDED_OF_EACH} of each "
        "kind, or explained variance says nothing. The critic was not trained. What was recorded is kept: "
        + "; or ".join(_more(held_out, recorded, config, group_size, enough_held_out, kind))
    )


def _more(
    held_out: Counts,
    recorded: Counts,
    config: ValuePretrainingConfig,
    group_size: int,
    enough_held_out: float | None,
    kind: str,
) -> list[str]:
    ways = []
    if enough_held_out is not None:
        ways.append(f"raise value_pretraining.held_out_fraction to {enough_held_out:g}, and the same command goes on")
    wanted = _trajectories_for(recorded, config, group_size)
    if wanted is not None:
        ways.append(
            f"raise value_pretraining.num_trajectories to {wanted}, and the same command records what is missing"
        )
    rate = f"now {recorded.num_right} of {recorded.num_responses}, {recorded.rate(recorded.num_right):.1%}"
    often = "more often" if kind == "right" else "less often"
    ways.append(f"start a run, under another run.name, with a model, prompt or task that is right {often} ({rate})")
    return [*ways, _UNMEASURED]


def _trajectories_for(recorded: Counts, config: ValuePretrainingConfig, group_size: int) -> int | None:
    """How much to record so that enough is held out, by chance too (two standard deviations); None: too much."""
    if not recorded.num_rarer:
        return None
    expected = NEEDED_OF_EACH + 2 * math.sqrt(NEEDED_OF_EACH)
    wanted = expected / (recorded.rate(recorded.num_rarer) * config.held_out_fraction)
    wanted = max(wanted, config.num_trajectories + group_size)
    if wanted > _MOST_TIMES * config.num_trajectories:
        return None
    return math.ceil(wanted / group_size) * group_size


def failed(decision: Mapping[str, Any], config: ValuePretrainingConfig) -> str:
    """Why the gate did not open, and what to try on the same run."""
    best = decision["explained_variance"]
    figure = "undefined (held-out returns do not vary)" if best is None else f"{best:.3f}{shown_interval(decision)}"
    counts = decision.get("held_out") or {}
    behind = (
        f", measured on {counts['num_responses']} responses to {counts['num_prompts']} prompts, "
        f"{counts['num_right']} of them right"
        if counts
        else ""
    )
    ways = []
    if decision["cut_short"]:
        ways.append(f"raise value_pretraining.max_steps to {2 * config.max_steps}: it was still getting better")
    else:
        ways.append(
            f"set value_pretraining.learning_rate to {3 * config.learning_rate:.2g} (it is {config.learning_rate:g}) "
            f"or {config.learning_rate / 3:.2g}"
        )
    ways.append(f"raise value_pretraining.num_trajectories to {2 * config.num_trajectories}")
    if best is None:
        ways.append(_UNMEASURED)
    else:
        lower = math.floor(100 * best) / 100
        ways.append(f"lower value_pretraining.min_explained_variance to {lower:g} if such a critic is good enough")
    threshold = f"value_pretraining.min_explained_variance = {config.min_explained_variance:g}"
    return (
        f"value pretraining: held-out explained variance is {figure}{behind}: below {threshold} "
        f"({decision['stopped_because']}). What was recorded is kept, and the same command with one of these trains "
        "the critic again: " + "; ".join(ways)
    )


def cut_short(config: ValuePretrainingConfig, run: str) -> str:
    """The critic passed, but max_steps ended its training early."""
    return (
        f"value_pretraining.max_steps = {config.max_steps} ended the training while held-out explained variance still "
        f"rose or the loss still fell; for a better critic: vcppo up --run {run} --start-over rl "
        f"value_pretraining.max_steps={2 * config.max_steps} (the recording is kept)"
    )


def uncertain(decision: Mapping[str, Any], config: ValuePretrainingConfig, group_size: int) -> str | None:
    """The interval contains the threshold: how much more to record for a certain answer; None: it is certain."""
    low, high, figure = decision["low"], decision["high"], decision["explained_variance"]
    if decision["certain"] or figure is None or not asks_for_counts(config):
        return None
    if low is None:
        return "too few held-out prompts for an interval: raise value_pretraining.num_trajectories"
    distance, half = abs(figure - config.min_explained_variance), (high - low) / 2
    text = f"the 90 % interval, {low:.2f} to {high:.2f}, contains the gate, {config.min_explained_variance:g}"
    if not distance or (half / distance) ** 2 > _MOST_TIMES:
        return text
    wanted = math.ceil(config.num_trajectories * (half / distance) ** 2 / group_size) * group_size
    return f"{text}; about value_pretraining.num_trajectories = {wanted} would tell"


def shown_interval(decision: Mapping[str, Any]) -> str:
    """`` (90 %: 0.21 to 0.40)``; empty without an interval."""
    if decision.get("low") is None:
        return ""
    return f" (90 %: {decision['low']:.2f} to {decision['high']:.2f})"
