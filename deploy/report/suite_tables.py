"""Tables of a suite in the paper's form, and what its claims look like here. Pure: from `SuiteData` to text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vcppo.deploy.report.paper_numbers import Claim, paper_numbers
from vcppo.deploy.report.suite_data import NOT_ASKED, ArmData, SeedRun, SuiteData, difference
from vcppo.deploy.terminal.display import clock, number


class Table(NamedTuple):
    """The first column is text, the others are numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


PAPER_HEADING = "paper: AIME pass@1 / pass@32 · GPQA · Codeforces, %"


def per_cent(value: float) -> str:
    """A share as per cent with one decimal, without the sign."""
    return f"{100 * value:.1f}"


def spread(numbers: Sequence[float], pattern: str = "{:.1f}", factor: float = 100.0) -> str:
    """``12.0 – 14.5``; one number stands alone."""
    low, high = (pattern.format(factor * f(numbers)) for f in (min, max))
    return low if low == high else f"{low} – {high}"


def paper_tables(data: SuiteData) -> Iterator[Table]:
    """Tables 1 to 4 with this suite's numbers beside the paper's; rows nobody ran say so.

    A table of which the suite has VC-PPO only compares nothing, and is left out.
    """
    headings = ("arm", PAPER_HEADING, "here: pass@1, %", "95 % interval", "lowest – highest seed", "length", "seeds")
    for paper in paper_numbers().tables:
        cells = [[row.label, paper.cell(row), *_figures(data, row.arm)] for row in paper.rows]
        others = (row.arm for row in paper.rows if row.arm != "vc_ppo")
        if any(data.arm(row.arm) for row in paper.rows) and any(data.absence(arm) != NOT_ASKED for arm in others):
            yield Table(paper.title, headings, cells)


def interval(bounds: tuple[float, float] | None) -> str:
    """Both bounds as per cent; a dash: not known."""
    return "–" if bounds is None else f"{per_cent(bounds[0])} – {per_cent(bounds[1])}"


def _figures(data: SuiteData, name: str) -> list[str]:
    arm = data.arm(name)
    if arm is None:
        return [data.absence(name), "–", "–", "–", "0"]
    mean_length = f"{np.mean(arm.lengths):.0f}" if arm.lengths else "–"
    return [per_cent(float(np.mean(arm.pass_at_1))), interval(arm.interval), spread(arm.pass_at_1), mean_length,
            str(len(arm.runs))]  # fmt: skip


def _lowest_accuracy(arm: ArmData) -> str:
    """Of any step of any seed."""
    steps = arm.curve("reward/accuracy")
    return "–" if steps is None else per_cent(float(steps.low.min()))


def results(data: SuiteData) -> Table:
    """Every arm, one line."""
    headings = ("arm", "pass@1, %", "95 % interval", "median seed", "lowest – highest seed", "length",
                "explained variance, last step", "lowest accuracy of any step, %", "seeds")  # fmt: skip
    rows = []
    first = [data.cold_start] if data.cold_start is not None else []
    for arm in [*first, *data.arms]:
        mean, within, between, length, seeds = _figures(data, arm.name)
        quality = arm.curve("explained_variance/token")
        rows.append([
            arm.name, mean, within, per_cent(float(np.median(arm.pass_at_1))), between, length,
            "–" if quality is None else f"{quality.mean[-1]:.2f}", _lowest_accuracy(arm), seeds,
        ])  # fmt: skip
    alike = len({tuple(arm.seeds) for arm in data.arms}) == 1
    return Table("All arms", headings, rows, note=RESULTS_NOTE + ("" if alike else UNLIKE_NOTE))


RESULTS_NOTE = (
    "pass@1 on held-out problems, mean over seeds. The interval is a bootstrap over problems (SciPy) of that mean; it"
    " says nothing of seeds, whose lowest and highest stand beside it."
)
UNLIKE_NOTE = (
    " Not all arms have the same seeds, and a seed (its cold start, its draws) can matter as much as an arm: compare"
    " arms by the paired differences."
)


def by_seed(data: SuiteData) -> Table:
    """Every run: nothing is hidden in a mean."""
    rows = [
        [run.name, per_cent(run.result.pass_at_1), interval((run.result.low, run.result.high)),
         number(run.result.mean_length, "{:.0f}"), _quality(run), clock(run.seconds)]
        for arm in data.everything for run in arm.runs if run.result is not None
    ]  # fmt: skip
    headings = ("run", "pass@1, %", "95 %, problems", "length", "held-out explained variance at start", "wall time")
    return Table("Every run", headings, rows)


def _quality(run: SeedRun) -> str:
    """Of the pretrained critic, held out; a run without one has none."""
    return number((run.decision or {}).get("best_explained_variance"), "{:.2f}")


def claims(data: SuiteData) -> Table:
    """What the paper says, and whether this suite shows it."""
    headings = ("the paper says", "the one it puts first: pass@1, %", "the one it puts below: pass@1, %",
                "difference here, points", "95 % interval", "by seed", "shown here?")  # fmt: skip
    rows = [_claim(data, claim) for claim in paper_numbers().claims]
    return Table("What reproduced, and what did not", headings, rows, CLAIMS_NOTE)


CLAIMS_NOTE = (
    "Differences of held-out pass@1, paired by problem and seed: both means of a row are of the seeds that both arms"
    " have, so they can differ from the table of all arms. “Yes” stands where the interval is above 0 and every seed"
    " agrees. “No, the order is reversed” stands where the interval is below 0 and every seed agrees. Else the effect"
    " does not show at this scale."
)
VERDICTS = {"higher": "yes", "lower": "no, the order is reversed", "no difference shown": "does not show at this scale"}


def _claim(data: SuiteData, claim: Claim) -> list[str]:
    better, worse = data.arm(claim.better), data.arm(claim.worse)
    found = difference(better, worse) if better is not None and worse is not None else None
    if found is None:
        return [claim.text, "–", "–", "–", "–", "–", data.absence(claim.better, claim.worse)]
    low, high = (f"{100 * each:+.1f}" for each in found.interval)
    seeds = ", ".join(f"{100 * each:+.1f}" for each in found.by_seed)
    verdict = VERDICTS[found.verdict] + (", one seed only" if len(found.by_seed) == 1 else "")
    arms = (claim.better, claim.worse)
    means = [f"{arm}: {per_cent(mean)}" for arm, mean in zip(arms, found.means, strict=True)]
    return [claim.text, *means, f"{100 * found.mean:+.1f}", f"{low} to {high}", seeds, verdict]


def collapse(data: SuiteData) -> Table | None:
    """The sweep of critic initialisations: where each critic starts, and what becomes of PPO on it."""
    arms = [
        arm for arm in data.arms if arm.name.startswith("ppo") or arm.name in ("vc_ppo", "without_value_pretraining")
    ]
    if not any(arm.name.startswith("ppo") for arm in arms):
        return None
    headings = ("arm", "value at start of response, step 1", "at its end", "explained variance, step 1",
                "lowest accuracy of any step, %", "shortest mean length of any step", "pass@1 at the end, %",
                "seeds")  # fmt: skip
    rows = []
    for arm in arms:
        values = arm.list_at("values/by_position", 1)
        quality, lengths = arm.curve("explained_variance/token"), arm.curve("length/mean")
        ends = ["–", "–"] if values is None else [f"{values[0]:+.2f}", f"{values[-1]:+.2f}"]
        rows.append([
            arm.name, *ends, "–" if quality is None else f"{quality.mean[0]:.2f}",
            _lowest_accuracy(arm),
            "–" if lengths is None else f"{lengths.low.min():.0f}", per_cent(float(np.mean(arm.pass_at_1))),
            str(len(arm.runs)),
        ])  # fmt: skip
    return Table("Where the critic starts: the declared sweep", headings, rows, note=SWEEP_NOTE)


SWEEP_NOTE = "Whether PPO collapses depends on the critic it starts from, so every one that was tried is here."


def benchmarks(data: SuiteData) -> Table | None:
    """Results of `vcppo eval --benchmark` where runs have them."""
    names = sorted({name for arm in data.arms for run in arm.runs for name in run.benchmarks})
    if not names:
        return None
    rows = [[arm.name, *(_benchmark(arm, name) for name in names)] for arm in data.arms]
    headings = ("arm", *(f"{name}: pass@1 / pass@k, % (seeds)" for name in names))
    return Table("Benchmarks", headings, rows, note="From `vcppo eval --benchmark NAME --model <run>/export`.")


def _benchmark(arm: ArmData, name: str) -> str:
    found = [run.benchmarks[name] for run in arm.runs if name in run.benchmarks]
    if not found:
        return "–"
    at_k = [each.pass_at_k for each in found if each.pass_at_k is not None]
    second = per_cent(float(np.mean(at_k))) if at_k else "–"
    return f"{per_cent(float(np.mean([each.pass_at_1 for each in found])))} / {second} ({len(found)})"


def left_out(data: SuiteData) -> Iterable[str]:
    """What the reader must know is not here."""
    short = [f"{arm.name} ({len(arm.runs)} of {data.wanted_seeds[arm.name]} seeds)" for arm in data.arms
             if len(arm.runs) < data.wanted_seeds.get(arm.name, 0)]  # fmt: skip
    if short:
        yield f"Fewer seeds than the suite asks for: {', '.join(short)}."
    if data.missing:
        yield f"Not run: {', '.join(data.missing)}."
    if data.unfinished:
        yield f"Begun and not finished, so left out: {', '.join(data.unfinished)}."
