"""After an update, on rank 0: which generators run the weights they were sent?

    sums of the received bytes ─▶ log-probs of the probe ─▶ (first update of an engine) once more ─▶ verdict

`vcppo.learner.weights.transport_check` and `vcppo.learner.weights.canary` decide; here generators are asked, and
failures counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from vcppo.common.config import BroadcastConfig
from vcppo.common.transport.generator_calls import Canary
from vcppo.learner.weights.canary import Answers, CanaryProbe, Incarnation, first_update, later_update, mean_difference
from vcppo.learner.weights.fan_out import FanOut
from vcppo.learner.weights.transport_check import SentWeights, transport_fault

log = structlog.get_logger(__name__)

IncarnationId = tuple[str, int]  # generator id, and when its engine started


class ProofVerdict(NamedTuple):
    """Who runs the weights that were sent.

    Attributes:
        difference: largest mean |log-prob difference| of those that pass (nats); None: nobody passes, or no probe.
        faults: what is wrong with the others, by id.
        worn_out: those of them that failed too often in a row.
        is_hopeless: sending again won't help: it failed everywhere at once, or too often at the only one there is.
        text: all faults.
    """

    difference: float | None
    faults: Mapping[str, str]
    worn_out: frozenset[str]
    is_hopeless: bool
    text: str


class WeightProof:
    """Remembers what is known of each engine; counts failures in a row by generator id."""

    def __init__(self, config: BroadcastConfig) -> None:
        self._factor, self._attempts = config.noise_factor, config.attempts
        self._known: dict[IncarnationId, Incarnation] = {}
        self._failures: dict[str, int] = {}

    def check(
        self, fan_out: FanOut, engines: Mapping[str, int], sent: SentWeights, probe: CanaryProbe | None
    ) -> ProofVerdict:
        """Ask the generators of `fan_out` and judge. `engines`: the incarnation of each. Raises MemberError."""
        names = list(fan_out.clients)
        faults = {name: fault for name in names if (fault := transport_fault(fan_out.received.get(name), sent))}
        differences: dict[str, float] = {}
        if probe is not None and (asked := [name for name in names if name not in faults]):
            answers = self._ask(fan_out, asked, probe, engines)
            for name in asked:
                differences[name], fault = self._judge((name, engines[name]), answers[name], probe, sent)
                if fault:
                    faults[name] = fault
        self._forget(engines)
        return self._verdict(names, faults, differences)

    def _ask(
        self, fan_out: FanOut, names: list[str], probe: CanaryProbe, engines: Mapping[str, int]
    ) -> dict[str, Answers]:
        """New engines are asked twice: how exactly do they repeat themselves?"""
        question = Canary(probe.token_ids, int(probe.prompt_length), probe.lengths)
        once = fan_out.ask(question, names)
        new = [name for name in names if (name, engines[name]) not in self._known]
        plausible = [name for name in new if mean_difference(once[name], probe.log_probs) != float("inf")]
        again: dict[str, Any] = {}
        if plausible:
            again = fan_out.ask(replace(question, num_sampled=len(probe.sampled_log_probs)), plausible)
        return {name: Answers(once[name], again.get(name)) for name in names}

    def _judge(
        self, engine: IncarnationId, answers: Answers, probe: CanaryProbe, sent: SentWeights
    ) -> tuple[float, str]:
        known = self._known.get(engine)
        if known is not None:
            return later_update(known, answers, probe, self._factor, sent.sums)
        found, difference, fault = first_update(answers, probe, self._factor, sent.sums)
        if found is not None:
            self._known[engine] = found
            log.info(
                "weights_proven",
                generator_id=engine[0],
                mean_difference=round(difference, 9),
                rounding=round(probe.explained, 9),
                repeats_itself=found.repeat == 0,
                num_tokens=len(probe.log_probs),
            )
        return difference, fault

    def _forget(self, engines: Mapping[str, int]) -> None:
        """Earlier incarnations of those that are there."""
        self._known = {key: known for key, known in self._known.items() if engines.get(key[0], key[1]) == key[1]}

    def _verdict(self, names: list[str], faults: dict[str, str], differences: dict[str, float]) -> ProofVerdict:
        for name in names:
            self._failures[name] = self._failures.get(name, 0) + 1 if name in faults else 0
        worn_out = frozenset(name for name in faults if self._failures[name] >= self._attempts)
        self._failures |= dict.fromkeys(worn_out, 0)
        is_hopeless = len(faults) == len(names) and (len(names) > 1 or bool(worn_out))
        difference = max((differences[name] for name in differences if name not in faults), default=None)
        text = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        return ProofVerdict(difference, faults, frozenset() if is_hopeless else worn_out, is_hopeless, text)
