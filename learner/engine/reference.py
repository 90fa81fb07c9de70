"""The policy that KL is measured from: frozen, whole on every rank, the starting policy or a later version.

With ``lora.rank`` it is a third tree over the base that actor and critic share: adapters of zero are the starting
policy, and those of a later version are all that is copied and kept.

    step of a multiple of algorithm.reference_refresh_steps ─▶ the actor's weights are copied, all ranks
    checkpoint                                              ─▶ its version, and its weights once it was refreshed

waits for: nothing but the collectives of the copy, which all ranks make in the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vcppo.common.text.yaml_text import one_line
from vcppo.learner.engine.checkpoint import CheckpointError
from vcppo.learner.engine.deepspeed_engine import TrainEngine, rank
from vcppo.learner.models.merged_weights import trained_with_adapters
from vcppo.learner.models.models import PolicyModel
from vcppo.learner.models.wire_weights import own_weights

log = structlog.get_logger(__name__)

FILE = "reference.safetensors"
_VERSION = "reference_version"


class Reference:
    """All ranks.

    Attributes:
        model: without gradients.
        version: the policy version it is; 0 is the starting policy.
    """

    def __init__(self, model: PolicyModel, refresh_steps: int | None) -> None:
        self.model = model.requires_grad_(requires_grad=False)
        self.version = 0
        self._refresh_steps = refresh_steps

    def after(self, version: int, actor: TrainEngine) -> None:
        """The policy is at `version` now; become it where that is due. Collective."""
        if self._refresh_steps is None or version % self._refresh_steps:
            return
        actor.copy_weights_to(self.model.hf_model)
        self.version = version
        if rank() == 0:
            log.info("reference_refreshed", policy_version=version)

    def numbers(self) -> dict[str, float]:
        """For a checkpoint's state."""
        return {_VERSION: float(self.version)}

    def save(self, folder: Path) -> None:
        """Rank 0: into a checkpoint's folder. The starting policy is not written: it is at model.path."""
        if self.version:
            weights = {name: tensor.detach().contiguous() for name, tensor in self._weights().items()}
            save_file(weights, folder / FILE)

    def _weights(self) -> Mapping[str, torch.Tensor]:
        """What makes it another policy than the starting one, by the model's own names."""
        return trained_with_adapters(self.model.hf_model) or own_weights(self.model.hf_model)

    def load(self, folder: Path, numbers: Mapping[str, float]) -> None:
        """From a checkpoint with these `numbers`; one without a version has the starting policy.

        Raises:
            CheckpointError: the weights are not there, or not this model's.
        """
        self.version = int(numbers.get(_VERSION, 0))
        if not self.version:
            return
        path = folder / FILE
        own = self._weights()
        try:
            kept = load_file(path)
            if kept.keys() != own.keys():
                raise ValueError(f"{sorted(kept.keys() ^ own.keys())[:3]} are in one of the two only")
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(kept[name].view_as(tensor))  # no broadcast of what has another shape
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: holds no reference policy of this model ({type(error).__name__}: {one_line(error)}); remove"
                " this checkpoint and the one before it is used"
            ) from error
