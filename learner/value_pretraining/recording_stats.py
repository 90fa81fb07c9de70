"""What was recorded, in numbers: outcomes, lengths, and how many prompts have both right and wrong responses. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from vcppo.common.records.trajectory import Outcome, Trajectory, mean_components
from vcppo.common.telemetry.metrics import Value

OUTCOMES: tuple[str, ...] = get_args(Outcome)


@dataclass(frozen=True)
class Counts:
    """Responses by outcome.

    Attributes:
        outcomes: outcome → responses, every outcome there is.
        num_cut: responses cut off by the length limit, whatever their outcome.
        num_prompts: prompts with a response; `num_mixed`: those of them with right and not-right ones; `num_repeated`:
            those with two responses or more, the only ones that can be mixed.
        mean_reward, mean_length, max_length: over responses; lengths in action tokens. 0 of none.
        mean_components: of the rewards' parts by name, each over the responses that have it.
    """

    outcomes: dict[str, int]
    num_cut: int
    num_prompts: int
    num_mixed: int
    num_repeated: int
    mean_reward: float
    mean_length: float
    max_length: int
    mean_components: dict[str, float] = field(default_factory=dict)

    @property
    def num_responses(self) -> int:
        """Recorded, whatever their outcome."""
        return sum(self.outcomes.values())

    @property
    def num_right(self) -> int:
        """Responses judged correct."""
        return self.outcomes["correct"]

    @property
    def num_not_right(self) -> int:
        """Every other outcome: wrong, unparsable, timeout, crash."""
        return self.num_responses - self.num_right

    @property
    def num_rarer(self) -> int:
        """Right or not right, whichever there are fewer of."""
        return min(self.num_right, self.num_not_right)

    def rate(self, count: int) -> float:
        """`count` as a share of the responses."""
        return count / self.num_responses if self.num_responses else 0.0

    def metrics(self) -> dict[str, Value]:
        """By metric name; a count beside every share."""
        return {
            "vp/reward": self.mean_reward,
            **{f"vp/reward/{name}": mean for name, mean in self.mean_components.items()},
            "vp/accuracy": self.rate(self.num_right),
            "vp/length/mean": self.mean_length,
            "vp/length/max": self.max_length,
            "vp/cut_fraction": self.rate(self.num_cut),
            "vp/num_cut": self.num_cut,
            "vp/num_prompts": self.num_prompts,
            "vp/num_prompts_with_both": self.num_mixed,
            "vp/prompts_with_both_fraction": self.num_mixed / self.num_repeated if self.num_repeated else 0.0,
            **{f"vp/outcome/{name}": self.rate(count) for name, count in self.outcomes.items()},
            **{f"vp/num_outcome/{name}": count for name, count in self.outcomes.items()},
        }

    def as_text(self) -> dict[str, object]:
        """For a log line: ``correct="14 (5.5 %)"``."""
        shown = {name: self._share(count) for name, count in self.outcomes.items()}
        return {
            **shown,
            "cut_by_length": self._share(self.num_cut),
            "mean_reward": round(self.mean_reward, 4),
            "mean_length": round(self.mean_length, 1),
            "max_length": self.max_length,
            "prompts_with_both": f"{self.num_mixed} of {self.num_repeated}",
        }

    def as_json(self) -> dict[str, Any]:
        """For decision.json."""
        return {
            "num_responses": self.num_responses,
            "num_right": self.num_right,
            "outcomes": self.outcomes,
            "num_cut": self.num_cut,
            "num_prompts": self.num_prompts,
            "num_prompts_with_both": self.num_mixed,
        }

    def _share(self, count: int) -> str:
        return f"{count} ({self.rate(count):.1%})"


def count_responses(trajectories: Iterable[Trajectory]) -> Counts:
    """Count them."""
    found = list(trajectories)
    outcomes = Counter[str](trajectory.outcome for trajectory in found)
    lengths = [trajectory.num_actions for trajectory in found]
    by_prompt: dict[str, list[bool]] = {}
    for trajectory in found:
        by_prompt.setdefault(trajectory.group_id, []).append(trajectory.outcome == "correct")
    return Counts(
        outcomes={name: outcomes[name] for name in OUTCOMES},
        num_cut=sum(trajectory.finish_reason == "length" for trajectory in found),
        num_prompts=len(by_prompt),
        num_mixed=sum(len(set(right)) == 2 for right in by_prompt.values()),
        num_repeated=sum(len(right) > 1 for right in by_prompt.values()),
        mean_reward=_mean([trajectory.reward for trajectory in found]),
        mean_length=_mean(lengths),
        max_length=max(lengths, default=0),
        mean_components=mean_components(found),
    )


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values)) if values else 0.0
