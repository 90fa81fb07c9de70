"""The critic's last layer: a number, or logits over bins; and what the config.json of a saved critic says of it.

A folder with a head of bins is still a ``...ForSequenceClassification`` of transformers, with a label for each bin.
What the bins stand for is in its config.json under ``vcppo_value_head``. A folder without that entry has a scalar head.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.learner.algorithm.value_bins import ValueBins

_STATED = "vcppo_value_head"


class HeadRefused(VcppoError):
    """A saved critic has another head than the run asks for."""

    exit_code = EXIT_REFUSED


class ValueHead(nn.Linear):
    """Hidden state to a value, or to logits over `bins`; computed in float32 whatever the weights' type."""

    bins: ValueBins | None = None

    def forward(self, input: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., m]`` float32; m is 1 without bins."""
        bias = self.bias.float() if self.bias is not None else None
        return functional.linear(input.float(), self.weight.float(), bias)


def value_of(head: nn.Module, logits: Tensor) -> Tensor:
    """What a head's output ``[A, m]`` says in numbers ``[A]``; a plain linear layer counts as a head without bins."""
    bins: ValueBins | None = getattr(head, "bins", None)
    return logits[:, 0] if bins is None else bins.mean(logits)


def state_head(config: Any, bins: ValueBins | None) -> None:
    """Write it into a transformers config, which is saved with the model."""
    if bins is not None:
        setattr(config, _STATED, bins.as_json())


def check_stated_head(path: str, config: Any, bins: ValueBins | None) -> None:
    """Raise HeadRefused when the folder's config states another head than `bins`."""
    stated, wanted = getattr(config, _STATED, None), None if bins is None else bins.as_json()
    if stated != wanted:
        raise HeadRefused(
            f"the critic at {path} has {_in_words(stated)}, and the run asks for {_in_words(wanted)}: give critic.head"
            " and its bins as the folder has them, or a new head by critic.init=policy"
        )


def _in_words(stated: Any) -> str:
    if not isinstance(stated, dict):
        return "critic.head = scalar"
    shown = {name: value for name, value in stated.items() if value is not None}
    return ", ".join(f"critic.{name} = {value}" for name, value in shown.items())
