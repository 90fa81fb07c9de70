"""The canary: a few tokens' log-probs that generators must reproduce after every weight update."""

from __future__ import annotations

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
