"""When value pretraining stops, and whether its critic is good enough. Pure.

The loss falls in two stages (paper, figure 6): first the values move into the range of the returns, which explains
nothing yet and may even look like a loss of explained variance; then they learn. So patience does not run while the
held-out loss still falls.

The critic kept is the best of several measurements, so its own figure is too high by luck. The gate judges another
one: the critics are compared on one half of the held-out prompts and measured on the other, and the other way round
(`vcppo.learner.critic_quality.explained_variance_interval.choose_and_measure`). It passes when that figure reaches
min_explained_variance.

Where held-out returns do not vary there is no such figure. The critic of the lowest held-out loss is kept, and it
passes only a gate that asks for nothing, one at or below 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from vcppo.common.config import ValuePretrainingConfig
from vcppo.common.evaluation.over_prompts import Figure


@dataclass(frozen=True)
class Measurement:
    """The critic on held-out prompts after ``step`` optimizer steps.

    Attributes:
        low, high: the interval of `explained_variance` over prompts; None where there is none.
    """

    step: int
    held_out_loss: float
    explained_variance: float | None
    explained_variance_sequence: float | None
    explained_variance_within_prompt: float | None
    train_loss: float | None
    low: float | None = None
    high: float | None = None


@dataclass
class Gate:
    """Early stopping on held-out explained variance, and the verdict.

    Attributes:
        best: the measurement with the highest explained variance (by more than min_delta); as long as none has one,
            that with the lowest loss.
        lowest_loss: of all held-out losses.
        num_without_progress: measurements since explained variance last rose or the loss last fell by min_delta.
    """

    config: ValuePretrainingConfig
    history: list[Measurement] = field(default_factory=list)
    best: Measurement | None = None
    lowest_loss: float = float("inf")
    num_without_progress: int = 0

    def add(self, measurement: Measurement) -> bool:
        """Take a measurement; True when it is the new best (by more than min_delta)."""
        self.history.append(measurement)
        loss_fell = measurement.held_out_loss < self.lowest_loss - self.config.min_delta
        if loss_fell:
            self.lowest_loss = measurement.held_out_loss
        found = measurement.explained_variance
        best = self.best.explained_variance if self.best is not None else None
        if found is None:
            is_best = best is None and (loss_fell or self.best is None)
        else:
            is_best = best is None or found > best + self.config.min_delta
        if is_best:
            self.best = measurement
        self.num_without_progress = 0 if is_best or loss_fell else self.num_without_progress + 1
        return is_best

    @property
    def out_of_patience(self) -> bool:
        """Whether ``value_pretraining.patience`` measurements in a row brought no progress."""
        return self.num_without_progress >= self.config.patience

    @property
    def is_cut_short(self) -> bool:
        """Stopped while the last measurement was still better than those before it: max_steps came too early."""
        return len(self.history) > 1 and self.num_without_progress == 0

    def decision(self, judged: Figure | None = None) -> dict[str, Any]:
        """What decision.json holds.

        Args:
            judged: what the gate goes by; None: the best measurement's figure.
        """
        best = self.best.explained_variance if self.best is not None else None
        figure = best if judged is None else judged.value
        interval = judged.interval if judged is not None else None
        return {
            **verdict(figure, interval, self.config.min_explained_variance),
            "best_step": self.best.step if self.best is not None else None,
            "best_explained_variance": best,
            "cut_short": self.is_cut_short,
            "stopped_because": (
                f"no progress above min_delta in {self.config.patience} measurements"
                if self.out_of_patience
                else f"max_steps = {self.config.max_steps} reached"
                + (" while it still got better" if self.is_cut_short else "")
            ),
            "history": [asdict(measurement) for measurement in self.history],
        }


def verdict(figure: float | None, interval: tuple[float, float] | None, threshold: float) -> dict[str, Any]:
    """The part of a decision that depends on the threshold. Without a figure only a gate at or below 0 is passed.

    ``certain``: the interval does not contain the threshold, so that other prompts would hardly decide otherwise.
    """
    low, high = interval if interval is not None else (None, None)
    return {
        "passed": threshold <= 0 if figure is None else figure >= threshold,
        "certain": low is not None and high is not None and not low <= threshold <= high,
        "explained_variance": figure,
        "low": low,
        "high": high,
        "threshold": threshold,
    }
