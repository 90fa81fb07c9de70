"""The published table, docs/conformance.md: who passes what, and what is behind each failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.conformance.check import Result

SIGNS = {"pass": "✓", "fail": "✗", "not offered": "–"}

HEAD = """\
# Advantage estimators against the paper

Every estimator below gets the same arrays. Each is compared with a float64 transcription of the paper's sums
(`tests/unit/rig/oracle.py`).

- **vcppo** runs the learner's own functions.
- The peers' columns are *their formulas rewritten here* from their sources, linked below, as they were in 2026.
  Where a link has a commit, that version was read. Their packages are not run, and they change.
- Check your own estimator with `python -m tests.conformance my_module:MyEstimator` (`tests/conformance/README.md`).

**The rows about tool text test arrays, not environments.** They show what an estimator does with tokens that the policy
did not write. [Environments](environments.md) has the tasks that make such rollouts. One of these goes through the
whole system in `tests/integration/test_turns_to_advantages.py`: environment, wire, buffer, packing and learner, on one
rank and on two. At λ = 0.95 with V = 0.5 and reward 1, two actions before N tokens of a tool have the same advantages
for N = 10, 50 and 500: the last of them 0.45125.

| mark | meaning |
|---|---|
| ✓ | passes |
| ✗ | differs by more than 1e-4. Several ✗ may have one cause, which is named below the table |
| – | not offered, which is no fault, or not compared here (estimators without a critic) |

Made by `python -m tests.conformance --markdown > docs/conformance.md`.
"""

FINDINGS = (Path(__file__).parent / "findings.md").read_text(encoding="utf-8")


def markdown(names: Sequence[str], results: Sequence[Sequence[Result]]) -> str:
    """``results[estimator][case]`` as the page."""
    rows = [f"| case | must hold | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for each in zip(*results, strict=True):
        case = each[0].case
        rows.append(f"| {case.name} | {case.what} | {' | '.join(SIGNS[result.status] for result in each)} |")
    rows.append(f"| **passed of offered** | | {' | '.join(map(_count, results))} |")
    return "\n".join([HEAD, *rows, "", FINDINGS, _measured(names, results)])


def _count(column: Sequence[Result]) -> str:
    offered = [result for result in column if result.status != "not offered"]
    return f"{sum(result.status == 'pass' for result in offered)} of {len(offered)}"


def _measured(names: Sequence[str], results: Sequence[Sequence[Result]]) -> str:
    lines = ["## Measured", "", "| | case | largest difference |", "|---|---|---|"]
    lines += [
        f"| {name} | {result.case.name} | {result.detail} |"
        for name, column in zip(names, results, strict=True)
        for result in column
        if result.status == "fail"
    ]
    return "\n".join(lines) + "\n"
