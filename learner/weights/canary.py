"""Does a generator compute with the weights it was sent? Its log-probs of fixed tokens against the learner's.

Two engines round differently, so their log-probs differ even on the same weights. By how much depends on the model,
its type and the tokens, so no constant can say. The reference is measured: `CanaryProbe.rounding` is the mean change
of the learner's own log-probs when every intermediate result is off by about one rounding
(`vcppo.learner.models.rounding`). Of one incarnation of a generator's engine:

- *First update.* The engine started with visibly wrong weights, so any tensor that did not reach the numbers shows. The
  mean |difference| must be at most ``noise_factor`` times what rounding explains. What it was, divided by that, is the
  incarnation's ratio.
- *Later ones.* At most ``noise_factor`` times the ratio, times what rounding explains now. The ratio follows slowly.
- *Small steps.* The learner's log-probs may move by less than rounding. But an engine that got other weights cannot
  answer the same question as before to the last bit. If it does (where it does not repeat itself exactly: within twice
  what it differs from itself), and the learner's own answers moved, its weights are old.

Pure: nothing here talks to anybody (`vcppo.learner.weights.weight_proof` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.records.trajectory import Float32Array, Int32Array

_FOLLOW = 0.125  # weight of the newest update in the ratio
_LEAST_RATIO = 1 / 64  # float32 agrees far better than TF32's rounding, which its reference is: don't alarm on nothing
_RELATIVE = 0.01  # of a probe without a measured rounding: of its mean |log-prob|
_MOVED_TOKENS = 0.25  # the learner's own answers have moved when this share of them is not the same bit for bit
_TINY = 1e-30
_MOVED_SHARE = 1e-3  # and when they moved by more than this share of what rounding explains, on average
_NOT_ALL_TAKEN = (
    "; an engine starts with wrong weights on purpose, and some of these seem to be in use still: look for what vLLM "
    "says of weights in its log, and try another model.path"
)
_NO_SCORES = np.zeros(0, np.float32)


class CanaryError(VcppoError):
    """No generator runs the weights it was sent."""

    exit_code = EXIT_REFUSED


class CanaryProbe(NamedTuple):
    """Fixed tokens whose log-probs must agree on both sides.

    Attributes:
        token_ids: ``[N]`` int32, whole sequences end to end.
        prompt_length: tokens at the start of each sequence that are not scored.
        log_probs: ``[T]`` float32, nats: the learner's, of the scored tokens, under the weights being sent and at
            temperature 1.
        rounding: mean |change| of log_probs that rounding explains (nats); None: 1 % of the mean |log-prob|.
        lengths: ``[S]`` int32, of the sequences; None: it is one.
        sampled_log_probs: ``[K]`` of the first sequence's last K tokens at ``sampling.temperature``: asked once for
            each incarnation, through the sampler. Empty at temperature 1.
    """

    token_ids: Int32Array
    prompt_length: int
    log_probs: Float32Array
    rounding: float | None = None
    lengths: Int32Array | None = None
    sampled_log_probs: Float32Array = _NO_SCORES

    @property
    def explained(self) -> float:
        """Mean |difference| that rounding explains (nats)."""
        if self.rounding is not None:
            return self.rounding
        return _RELATIVE * float(np.mean(np.abs(self.log_probs)))

    def asks_the_same(self, other: CanaryProbe) -> bool:
        """Answers to both can be compared."""
        return np.array_equal(self.token_ids, other.token_ids) and self.prompt_length == other.prompt_length


@dataclass(frozen=True)
class Answers:
    """What a generator said.

    Attributes:
        scores: of the probe's tokens; whatever came over the wire.
        again: the same question asked once more, and after it the sampled tokens; None: it was asked once.
    """

    scores: Any
    again: Any = None


@dataclass
class Incarnation:
    """What is known of an engine since it started.

    Attributes:
        ratio: its mean |difference| divided by what rounding explains, of accepted updates.
        repeat: mean |difference| between its answers to one question (nats); 0: it repeats itself exactly.
        probe, answer: of the last accepted update.
        sums: of the tensors of that update.
    """

    ratio: float
    repeat: float
    probe: CanaryProbe
    answer: Float32Array
    sums: Sequence[int]


def mean_difference(answer: Any, log_probs: Float32Array) -> float:
    """Mean |answer - log_probs| (nats) over ``[T]``; infinite when the shapes differ or something is not a number."""
    try:
        found = np.asarray(answer, np.float32)
    except (TypeError, ValueError):
        return float("inf")
    if found.shape != log_probs.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.mean(np.abs(found.astype(np.float64) - log_probs))) if len(found) else 0.0


def limit_of(known: Incarnation | None, probe: CanaryProbe, noise_factor: float) -> float:
    """Largest mean |difference| that passes (nats), of an engine's first update (None) or a later one."""
    ratio = 1.0 if known is None else max(known.ratio, _LEAST_RATIO)
    return noise_factor * ratio * probe.explained


def first_update(
    answers: Answers, probe: CanaryProbe, noise_factor: float, sums: Sequence[int]
) -> tuple[Incarnation | None, float, str]:
    """(what is known of it from now on, its mean difference, ""), or (None, difference, what is wrong)."""
    difference, limit = mean_difference(answers.scores, probe.log_probs), limit_of(None, probe, noise_factor)
    if not difference <= limit:
        return None, difference, _too_far(difference, limit, probe, noise_factor) + _NOT_ALL_TAKEN
    answer = np.asarray(answers.scores, np.float32)
    repeat = 0.0
    if answers.again is not None:
        again, sampled = _split(answers.again, len(answer))
        repeat = mean_difference(again, answer)
        difference_sampled = mean_difference(sampled, probe.sampled_log_probs)
        if not difference_sampled <= limit:
            return None, difference, _wrong_sampler(difference_sampled, limit, len(probe.sampled_log_probs))
    return Incarnation(_ratio(difference, probe), repeat, probe, answer, list(sums)), difference, ""


def later_update(
    known: Incarnation, answers: Answers, probe: CanaryProbe, noise_factor: float, sums: Sequence[int]
) -> tuple[float, str]:
    """(its mean difference, ""), and `known` is brought up to date; or (difference, what is wrong)."""
    difference, limit = mean_difference(answers.scores, probe.log_probs), limit_of(known, probe, noise_factor)
    if not difference <= limit:
        return difference, _too_far(difference, limit, probe, noise_factor)
    answer = np.asarray(answers.scores, np.float32)
    if stale := _stale(known, answer, probe, sums):
        return difference, stale
    known.ratio += _FOLLOW * (_ratio(difference, probe) - known.ratio)
    known.probe, known.answer, known.sums = probe, answer, list(sums)
    return difference, ""


def num_changed(before: Sequence[int], now: Sequence[int]) -> int:
    """Tensors whose bytes are not those of the update before."""
    if len(before) != len(now):
        return len(now)
    return sum(a != b for a, b in zip(before, now, strict=True))


def _stale(known: Incarnation, answer: Float32Array, probe: CanaryProbe, sums: Sequence[int]) -> str:
    changed = num_changed(known.sums, sums)
    if not changed or not probe.asks_the_same(known.probe):
        return ""
    moved_here = np.abs(probe.log_probs.astype(np.float64) - known.probe.log_probs)
    moved_there = mean_difference(answer, known.answer)
    least = max(4 * known.repeat, _MOVED_SHARE * probe.explained)
    if np.mean(moved_here > 0) < _MOVED_TOKENS or np.mean(moved_here) <= least:
        return ""  # too little has changed to tell: rounding may hide all of it
    if moved_there > 2 * known.repeat:
        return ""
    same = "to the last bit" if moved_there == 0 else f"within {moved_there:.3g} nats, as when nothing changes"
    return (
        f"it answers {len(answer)} tokens as before the update, {same}; but {changed} of {len(sums)} tensors changed, "
        f"and the learner's own answers by {np.mean(moved_here):.3g} nats on average: it goes on with old weights"
    )


def _split(again: Any, count: int) -> tuple[Any, Any]:
    """The second answer: of the probe's tokens, and of those that were sampled."""
    try:
        found = np.asarray(again, np.float32)
        return found[:count], found[count:]
    except (TypeError, ValueError, IndexError):
        return None, None


def _ratio(difference: float, probe: CanaryProbe) -> float:
    return difference / max(probe.explained, _TINY)


def _too_far(difference: float, limit: float, probe: CanaryProbe, noise_factor: float) -> str:
    ratio = limit / max(noise_factor * probe.explained, _TINY)
    measured = "" if ratio == 1.0 else f" x {ratio:.3g}, measured at its updates so far,"
    return (
        f"mean |log-prob difference| {difference:.4g} nats on {len(probe.log_probs)} tokens; rounding explains at most "
        f"{limit:.4g} ({probe.explained:.3g}{measured} x broadcast.noise_factor {noise_factor:g})"
    )


def _wrong_sampler(difference: float, limit: float, count: int) -> str:
    return (
        f"mean |log-prob difference| {difference:.4g} nats on {count} tokens that went through its sampler; rounding "
        f"explains at most {limit:.4g}: it samples at another temperature than sampling.temperature, or something "
        "changes its logits; look at generator.engine_options"
    )
