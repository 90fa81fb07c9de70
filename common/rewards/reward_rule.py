"""How a response's reward is made, in one place. Pure: the generator makes it so, and the buffer checks it so.

    reward = base + sum over k of w_k c_k + soft_overlong(T) + length_cost(T)

    base           the verdict's own number; None: ``task.reward_correct`` or ``task.reward_wrong``, by outcome
    c_k, w_k       the verdict's components and the reward functions', with the weights of ``task.reward_weights`` and
                   ``task.rewards``. A component without a weight is drawn and adds nothing
    soft_overlong  DAPO's (arXiv 2503.14476, equation 13) times p: 0 up to L - C tokens, then falling linearly to -p at
                   L tokens. L is ``sampling.max_response_tokens``, C ``task.soft_overlong_cache``, p
                   ``task.soft_overlong_penalty``
    length_cost    -``task.length_cost`` a token
    T              tokens of the response; of an agent's rollout with several conversations, of the longest response

A sum beyond ``task.reward_range`` is no reward: the outcome is then ``crash``, with the reward of a crash, and the
number is trained nowhere. The base of an environment's rollout is the sum of its turns' rewards. What is still to be
earned at the beginning of a turn is a return that the critic has to predict: it must lie within the range too, or
between it and 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vcppo.common.records.trajectory import Outcome
from vcppo.common.rewards.reward_parts import BASE, LENGTH_COST, SHAPING, SOFT_OVERLONG, parts_of_verdict

NO_VERDICT = ("timeout", "crash")
"""Outcomes whose components may be missing: the verifier's child did not live to give them."""


class Score(NamedTuple):
    """What is trained, and from what.

    Attributes:
        outcome: of the verdict; ``crash`` where its number is none.
        reward: within the rule's range.
        components: unweighted, by name: the verdict's, `BASE` where it gave a number, and the shaping.
        fault: why the verdict's number is none; None: it is one.
    """

    outcome: Outcome
    reward: float
    components: dict[str, float]
    fault: str | None = None


@dataclass(frozen=True)
class RewardRule:
    """The rule of one run.

    Attributes:
        correct, wrong: base by outcome: of ``correct``, and of every other.
        low, high: the range of rewards.
        weights: of components by name.
        expected: components that every verdict has but those of `NO_VERDICT`.
        max_response_tokens: L.
        soft_overlong_cache, soft_overlong_penalty: C and p; C = 0 is no such part.
        length_cost: of a token; 0 is no such part.
    """

    correct: float = 1.0
    wrong: float = -1.0
    low: float = -1.0
    high: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)
    expected: frozenset[str] = frozenset()
    max_response_tokens: int = 1
    soft_overlong_cache: int = 0
    soft_overlong_penalty: float = 1.0
    length_cost: float = 0.0

    def by_outcome_alone(self) -> RewardRule:
        """The rule of what another task has judged (`common.evaluation.benchmark_tasks`): no parts, no shaping."""
        return replace(self, weights={}, expected=frozenset(), soft_overlong_cache=0, length_cost=0.0)

    def score(
        self,
        outcome: Outcome,
        number: float | None,
        components: Mapping[str, float],
        num_tokens: int,
        turn_rewards: Sequence[float] = (),
    ) -> Score:
        """The reward of a response.

        Args:
            number: the verdict's reward; None: by outcome.
            components: the verdict's, the reward functions' among them; finite.
            num_tokens: T.
            turn_rewards: what `number` is the sum of; empty with one turn.
        """
        shaping = self.shaping(num_tokens)
        parts = dict(components) | ({} if number is None else {BASE: number}) | shaping
        reward = self.sum(outcome, parts)
        fault = self._beyond(reward, () if number is None else turn_rewards)
        if fault is None:
            return Score(outcome, reward, parts)
        return Score("crash", self.sum("crash", shaping), shaping, fault)

    def sum(self, outcome: Outcome, parts: Mapping[str, float]) -> float:
        """The formula: base and parts as one number, whatever the range. Their order does not matter."""
        by_outcome = self.correct if outcome == "correct" else self.wrong
        weighted = (self.weight_of(name) * value for name, value in parts.items() if name != BASE)
        return math.fsum((parts.get(BASE, by_outcome), *weighted))

    def weight_of(self, name: str) -> float:
        """Of a component; 0: it is drawn only."""
        return 1.0 if name in (BASE, *SHAPING) else self.weights.get(name, 0.0)

    def shaping(self, num_tokens: int) -> dict[str, float]:
        """The parts made from the length alone, by name; none where no setting asks for one."""
        parts = {}
        if self.soft_overlong_cache:
            beyond = num_tokens - (self.max_response_tokens - self.soft_overlong_cache)
            share = min(max(beyond, 0) / self.soft_overlong_cache, 1.0)
            parts[SOFT_OVERLONG] = 0.0 - self.soft_overlong_penalty * share  # never -0
        if self.length_cost:
            parts[LENGTH_COST] = 0.0 - self.length_cost * num_tokens
        return parts

    def _beyond(self, reward: float, turn_rewards: Sequence[float]) -> str | None:
        """What is out of range: the reward, or the part of it that is left before a turn."""
        if not self.low <= reward <= self.high:
            return f"reward {reward:g} is beyond task.reward_range = [{self.low:g}, {self.high:g}]"
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        for turn in range(1, len(turn_rewards)):
            left = math.fsum((reward, *(-each for each in turn_rewards[:turn])))
            if not low <= left <= high:
                return (
                    f"reward {left:g} from turn {turn + 1} on is beyond task.reward_range ="
                    f" [{self.low:g}, {self.high:g}]"
                )
        return None

    def check(
        self,
        outcome: Outcome,
        reward: float,
        components: Mapping[str, float],
        num_tokens: int,
        turn_rewards: Sequence[float] = (),
    ) -> None:
        """Let a reward pass that `score` can have made.

        Raises:
            ValueError: it can't have; begins with the name of the field.
        """
        parts_of_verdict({name: value for name, value in components.items() if name not in (BASE, *SHAPING)})
        missing = self.expected - components.keys() if outcome not in NO_VERDICT else frozenset()
        if missing:
            raise ValueError(f"components: {', '.join(sorted(missing))} missing with outcome {outcome!r}")
        shaping = self.shaping(num_tokens)
        for name in SHAPING:
            if components.get(name) != shaping.get(name):
                raise ValueError(
                    f"components.{name}: {components.get(name)} for {num_tokens} tokens, the settings under task make"
                    f" {shaping.get(name)}"
                )
        if reward != (made := self.sum(outcome, components)):
            raise ValueError(
                f"reward: {reward!r} for outcome {outcome!r}, {self._made_of(outcome, components)} {made!r}"
            )
        if turn_rewards and (total := math.fsum(turn_rewards)) != components.get(BASE):
            raise ValueError(f"turn_rewards: they sum to {total!r}, the reward's base is {components.get(BASE)!r}")
        if (fault := self._beyond(reward, turn_rewards)) is not None:
            raise ValueError(fault.replace("reward", "reward:", 1))

    @staticmethod
    def _made_of(outcome: Outcome, components: Mapping[str, float]) -> str:
        if components:
            return "its components and the settings under task make"
        return f"task.reward_{'correct' if outcome == 'correct' else 'wrong'} ="


def bounds(
    rule: RewardRule, format_weight: float | None, unknown_weights: Mapping[str, float]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """What rewards can be: (where every part is known, with parts of anybody's between -1 and 1).

    Args:
        rule: its base by outcome and its shaping count; its range does not.
        format_weight: of the part that a pattern gives, 0 or 1; None: there is none.
        unknown_weights: of the other components.
    """
    of_format = format_weight or 0.0
    shaping = list(rule.shaping(rule.max_response_tokens).values())
    lows, highs = [rule.wrong, min(of_format, 0.0), *shaping], [rule.correct, max(of_format, 0.0)]
    spread = [abs(weight) for weight in unknown_weights.values()]
    known = math.fsum(lows), math.fsum(highs)
    return known, (math.fsum([*lows, *(-each for each in spread)]), math.fsum([*highs, *spread]))
