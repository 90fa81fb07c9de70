"""What a run's own figures say of its critic: whether it is worth it, whether it lags, what λ makes of it. Pure.

Each piece of advice has its figures in it, and says nothing that they don't. What the data leave open is said too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from vcppo.deploy.evaluation.explainable_results import ExplainableRow
from vcppo.deploy.run.run_data import Row, RunData, column

Z_90 = 1.644854
_KEEPS_UP = 0.8
"""A critic that explains this share of what is explainable keeps up."""


class Advice(NamedTuple):
    """A heading, what the data say, and what follows from it; empty: nothing does."""

    topic: str
    found: str
    follows: str = ""


@dataclass(frozen=True)
class Facts:
    """What advice is made from.

    Attributes:
        rows: of the newest version measured by `vcppo explainable`.
        critic, group: explained variance by step of the critic and of the mean of a prompt's other responses, on the
            same responses; the last quarter of steps, pairwise.
        length: mean tokens of a response; None without metrics.
        lambda_actor: that of a response of mean length, where λ is adapted to it.
        wait_seconds, pass_seconds: a step's wait for its batch, and what one pass of the critic takes.
    """

    rows: Sequence[ExplainableRow]
    critic: Sequence[float]
    group: Sequence[float]
    has_critic: bool
    group_size: int
    length: float | None
    lambda_actor: float
    wait_seconds: float | None
    pass_seconds: float | None

    @classmethod
    def of(cls, data: RunData, rows: Sequence[ExplainableRow]) -> Facts:
        """From the metrics of the last quarter of steps."""
        config, last = data.config, data.rl[-max(1, len(data.rl) // 4) :]
        newest = max((row.version for row in rows), default=0)
        names = ("critic_worth/critic/sequence", "critic_worth/prompt_mean/sequence")
        length, algorithm = _mean(column(last, "length/mean")), config.algorithm
        lambda_actor = algorithm.lambda_actor
        if algorithm.length_adaptive_alpha is not None and length:
            lambda_actor = max(0.0, 1 - 1 / (algorithm.length_adaptive_alpha * length))
        pairs = [pair for row in last if len(pair := [*column([row], names[0]), *column([row], names[1])]) == 2]
        return cls(
            rows=[row for row in rows if row.version == newest],
            critic=[critic for critic, _ in pairs],
            group=[group for _, group in pairs],
            has_critic=algorithm.has_critic,
            group_size=config.rl.group_size,
            length=length,
            lambda_actor=lambda_actor,
            wait_seconds=_mean(column(last, "time/claim")),
            pass_seconds=_mean([seconds for row in last if (seconds := _pass_seconds(row)) is not None]),
        )


def advise(facts: Facts) -> list[Advice]:
    """Critic or group, passes, λ: in this order, those that the data say something about."""
    each = (_critic_or_group(facts), _keeps_up(facts), _reach_of_lambda(facts))
    return [advice for advice in each if advice is not None]


def measure_first(facts: Facts, run: str) -> str | None:
    """The command that would let more be said; None when it was given."""
    if facts.rows or facts.length is None:
        return None
    positions = sorted({max(1, round(facts.length * share)) for share in (0.1, 0.4, 0.7, 0.9)})
    return f"vcppo explainable {run} --positions {','.join(map(str, positions))}"


def _critic_or_group(facts: Facts) -> Advice | None:
    topic = "A critic, or a group's mean (GRPO)?"
    if facts.critic:
        differences = [critic - group for critic, group in zip(facts.critic, facts.group, strict=True)]
        critic, group, mean = fmean(facts.critic), fmean(facts.group), fmean(differences)
        found = (
            f"Over the last {len(differences)} steps the critic explains {critic:.2f} of the outcome, the mean of a"
            f" prompt's other responses {group:.2f}."
        )
        if group < 1:
            found += (
                f" As a baseline of whole responses the critic leaves {(1 - critic) / (1 - group):.0%} of the variance"
                " that the group's mean leaves."
            )
        error = _standard_error(differences)
        if error is None or abs(mean) <= Z_90 * error:
            return Advice(topic, found, f"The difference of {mean:+.2f} is within chance over these steps.")
        better = "critic" if mean > 0 else "group's mean"
        return Advice(
            topic, found, f"The {better} is the better baseline: {mean:+.2f}, beyond chance over these steps."
        )
    shares = [row.explainable for row in facts.rows if row.position and row.explainable is not None]
    by_prompt = next((row.group_mean for row in facts.rows if row.group_mean is not None), None)
    if not shares or by_prompt is None:
        return None
    found = (
        f"A perfect critic would explain {min(shares):.2f} to {max(shares):.2f} of the outcome, by position; the mean"
        f" of {facts.group_size - 1} other responses explains {by_prompt:.2f}."
    )
    if max(shares) <= by_prompt:
        return Advice(topic, found, "There is nothing for a critic to gain.")
    return Advice(topic, found, f"So a critic could gain at most {max(shares) - by_prompt:.2f} at one position.")


def _keeps_up(facts: Facts) -> Advice | None:
    rows = [row for row in facts.rows if row.position and row.reached is not None and row.reached_interval is not None]
    if not rows:
        return None
    topic = "More passes of the critic?"
    found = "The critic explains " + "; ".join(
        f"{row.explained:.2f} of {row.explainable:.2f} explainable after {row.position} tokens" for row in rows
    )
    lags = [row for row in rows if row.reached_interval is not None and row.reached_interval[1] < _KEEPS_UP]
    if not lags:
        keeps_up = all(row.reached_interval is not None and row.reached_interval[0] >= _KEEPS_UP for row in rows)
        text = "It keeps up: more passes would gain little." if keeps_up else "Whether it lags is within chance."
        return Advice(topic, f"{found}.", text)
    missing = max((row.explainable or 0.0) - (row.explained or 0.0) for row in lags)
    where = ", ".join(str(row.position) for row in lags)
    follows = f"It lags after {where} tokens: up to {missing:.2f} can be gained there. More of critic.passes may do so."
    if facts.wait_seconds is not None and facts.pass_seconds:
        free = int(facts.wait_seconds / facts.pass_seconds)
        follows += (
            f" The learner waits {facts.wait_seconds:.1f} s a step for its batch, and a pass takes at most"
            f" {facts.pass_seconds:.1f} s: {free} fit into the wait."
        )
    return Advice(topic, f"{found}.", follows)


def _reach_of_lambda(facts: Facts) -> Advice | None:
    if not facts.has_critic or facts.length is None:
        return None
    topic = "Another λ?"
    if facts.lambda_actor == 1:
        return Advice(topic, "With a λ of 1 each advantage is the outcome less the critic's value.")
    if facts.lambda_actor == 0:
        return Advice(topic, "With a λ of 0 each advantage is the critic's next value less this one.")
    half = math.log(0.5) / math.log(facts.lambda_actor)
    beyond = max(0.0, 1 - half / facts.length)
    found = (
        f"With a λ of {facts.lambda_actor:g} for advantages the outcome has half its weight {half:.0f} tokens from the"
        f" end. Of a mean response of {facts.length:.0f} tokens, {beyond:.0%} lie farther away, and live by what the"
        " critic knows there."
    )
    far = [
        row for row in facts.rows
        if row.position and row.position < facts.length - half and row.reached_interval is not None
    ]  # fmt: skip
    if not far:
        return Advice(topic, found)
    least = min(far, key=lambda row: row.reached or 0.0)
    known = f"After {least.position} tokens it explains {least.reached:.0%} of what is explainable"
    if least.reached_interval is not None and least.reached_interval[1] < _KEEPS_UP:
        return Advice(topic, found, f"{known}: a λ nearer to 1 would lean on it less, at the price of more variance.")
    if least.reached_interval is not None and least.reached_interval[0] >= _KEEPS_UP:
        return Advice(topic, found, f"{known}: nothing here speaks for a λ nearer to 1.")
    return Advice(topic, found, f"{known}, which is too uncertain to say more.")


def _pass_seconds(row: Row) -> float | None:
    """Of one pass of the critic: of those that were made alone, else of the update, which is more than one."""
    passes, seconds = column([row], "critic/passes"), column([row], "time/critic_passes")
    if passes and seconds and passes[0] > 1:
        return seconds[0] / (passes[0] - 1)
    update = column([row], "time/update")
    return update[0] if update else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None of fewer than two."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
