"""The weight of the entropy bonus: fixed, or one that holds the policy's entropy at a target. No I/O.

Adaptive entropy control of Skywork-OR1 (arXiv 2505.22312, section 4.2)::

    c_{s+1}   = c_s + step   where e_s < target
                c_s - step   where e_s > target       limited to [0, limit], c_1 = 0
    eta_{s+1} = c_{s+1}      where e_s <= target, else 0

e_s is the policy's mean entropy over the actions it was trained on in step s. There it is measured before the updates
of the step that uses it; here in those of the step before, which takes no pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from vcppo.common.config import AlgorithmConfig


def next_coefficient(coefficient: float, entropy: float, target: float, *, step: float, limit: float) -> float:
    """c_{s+1} of c_s and e_s, nats a token."""
    moved = coefficient + step * ((entropy < target) - (entropy > target))
    return min(max(moved, 0.0), limit)


class EntropyWeight:
    """What the bonus weighs from step to step. The same on every rank, for the entropy measured is."""

    def __init__(self, settings: AlgorithmConfig) -> None:
        self._settings = settings
        self._coefficient, self._entropy = 0.0, float("inf")  # the first step has none: nothing is measured yet

    @property
    def in_force(self) -> float:
        """eta of the next step."""
        target = self._settings.entropy_target
        if target is None:
            return self._settings.entropy_coefficient
        return min(self._coefficient, self._settings.entropy_limit) if self._entropy <= target else 0.0

    def after(self, entropy: float | None) -> None:
        """A step is done, with this mean entropy; None: nothing was trained in it."""
        settings = self._settings
        if settings.entropy_target is None or entropy is None:
            return
        self._coefficient = next_coefficient(
            self._coefficient, entropy, settings.entropy_target, step=settings.entropy_step,
            limit=settings.entropy_limit,
        )  # fmt: skip
        self._entropy = entropy

    def numbers(self) -> dict[str, float]:
        """For a checkpoint: what `restore` takes. Empty where nothing adapts, or has not yet."""
        if self._settings.entropy_target is None or self._entropy == float("inf"):
            return {}
        return {"entropy_coefficient": self._coefficient, "entropy": self._entropy}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """From a checkpoint; one without these numbers begins anew."""
        if "entropy_coefficient" in numbers and "entropy" in numbers:
            self._coefficient, self._entropy = numbers["entropy_coefficient"], numbers["entropy"]
