"""What the config says of an optimizer, and how it is put back after a checkpoint was loaded.

A checkpoint of torch or DeepSpeed brings back more than state: learning rate, weight decay, betas, the schedule's base
rates, and with ZeRO 1 and 2 the clipping norm. On a resumed run the config counts. What is state stays as loaded:
moments, step counts, and how far the schedule is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

_STATE_KEYS = ("params", "lr", "step")  # lr: the schedule's; step: DeepSpeed keeps one here
_REPORTED = {"initial_lr": "learning_rate"}  # what the log calls it


@dataclass(frozen=True)
class Configured:
    """The settings an optimizer was made with.

    Attributes:
        groups: of each parameter group, every setting but those of `_STATE_KEYS`; ``initial_lr`` is the peak of the
            schedule.
        max_grad_norm: gradients are clipped to this global norm.
    """

    groups: tuple[dict[str, Any], ...]
    max_grad_norm: float

    @classmethod
    def of(cls, optimizer: Optimizer, max_grad_norm: float) -> Configured:
        """Read them from a new optimizer, before anything was loaded."""
        groups = tuple(
            {"initial_lr": group["lr"]} | {name: value for name, value in group.items() if name not in _STATE_KEYS}
            for group in optimizer.param_groups
        )
        return cls(groups, max_grad_norm)

    def restore(self, optimizer: Any, scheduler: LambdaLR) -> dict[str, str]:
        """Put them back into `optimizer` (torch's, or DeepSpeed's around it) and `scheduler`.

        Returns:
            setting → ``old → new``, of what the checkpoint had otherwise.
        """
        changed: dict[str, str] = {}
        for group, configured in zip(optimizer.param_groups, self.groups, strict=True):
            for name, value in configured.items():
                if (loaded := group.get(name)) != value:
                    changed[_REPORTED.get(name, name)] = f"{_shown(loaded)} → {_shown(value)}"
                group[name] = value
        scheduler.base_lrs = [configured["initial_lr"] for configured in self.groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        rates = [base * factor for base, factor in zip(scheduler.base_lrs, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
        if (loaded := getattr(optimizer, "clip_grad", None)) is not None:
            if loaded != self.max_grad_norm:
                changed["max_grad_norm"] = f"{_shown(loaded)} → {_shown(self.max_grad_norm)}"
            optimizer.clip_grad = self.max_grad_norm
        return changed


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
