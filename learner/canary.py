"""The canary: a few tokens' log-probs that generators must reproduce after every weight update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from common.errors import EXIT_REFUSED, VcppoError
from common.trajectory import Float32Array, Int32Array


class CanaryError(VcppoError):
    """No generator runs the weights it was sent."""

    exit_code = EXIT_REFUSED


class CanaryProbe(NamedTuple):
    """Fixed tokens whose log-probs must agree on both sides.

    Attributes:
        token_ids: ``[P + T]`` int32, prompt and response.
        prompt_length: P.
        log_probs: ``[T]`` float32, nats: the learner's, of the response tokens, under the weights being sent and
            at ``sampling.temperature`` (no top-p, no top-k).
    """

    token_ids: Int32Array
    prompt_length: int
    log_probs: Float32Array


def canary_difference(answer: Any, probe: CanaryProbe) -> float:
    """Largest |generator - learner| log-prob over the probe's response tokens; infinite when the shapes differ."""
    found = np.asarray(answer, np.float32)
    if found.shape != probe.log_probs.shape:
        return float("inf")
    return float(np.max(np.abs(found - probe.log_probs)))


class CanaryVerdict(NamedTuple):
    """Who runs the weights that were sent.

    Attributes:
        difference: largest |log-prob difference| of those that pass (nats); None: nobody passes.
        failed: ids of the others.
        worn_out: those of them that failed too often in a row.
        is_hopeless: sending again won't help: it failed everywhere at once, or too often at the only one there is.
        text: the differences of those that failed.
    """

    difference: float | None
    failed: tuple[str, ...]
    worn_out: frozenset[str]
    is_hopeless: bool
    text: str


class CanaryJudge:
    """Counts failures in a row by generator id; one that passes, or is worn out, starts anew."""

    def __init__(self, tolerance: float, attempts: int) -> None:
        self._tolerance, self._attempts = tolerance, attempts
        self._failures: dict[str, int] = {}

    def judge(self, answers: Mapping[str, Any], probe: CanaryProbe) -> CanaryVerdict:
        """The verdict on one round of answers, by generator id; at least one."""
        found = {name: canary_difference(answer, probe) for name, answer in answers.items()}
        # Not `> tolerance`: a NaN must fail too.
        failed = tuple(name for name, difference in found.items() if not difference <= self._tolerance)
        for name in found:
            self._failures[name] = self._failures.get(name, 0) + 1 if name in failed else 0
        worn_out = frozenset(name for name in failed if self._failures[name] >= self._attempts)
        self._failures |= dict.fromkeys(worn_out, 0)
        everywhere = len(failed) == len(found)
        is_hopeless = everywhere and (len(found) > 1 or bool(worn_out))
        text = (
            f"largest |log-prob difference| {', '.join(f'{name}: {found[name]:.4g}' for name in failed)} nats, "
            f"tolerance {self._tolerance:g} (broadcast.canary_tolerance)"
        )
        difference = max((found[name] for name in found if name not in failed), default=None)
        return CanaryVerdict(difference, failed, frozenset() if is_hopeless else worn_out, is_hopeless, text)
