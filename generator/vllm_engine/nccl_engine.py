"""vLLM's ``nccl`` weight transfer, with sums of what it receives. Registered as ``vcppo_nccl`` (NOT RUN: no GPU)."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from vcppo.generator.vllm_engine.received_weights import ReceivedSums, SummingModel


class SummingNcclEngine(NCCLWeightTransferEngine):
    """The receiving and loading is vLLM's own; sums are computed on the device, in the stream that unpacks."""

    model: Any

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sums = ReceivedSums()

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """As vLLM's engine, each tensor summed on its way to the model."""
        self.sums.begin()
        model = self.model
        self.model = SummingModel(model, self.sums)
        try:
            super().receive_weights(update_info)
        finally:
            self.model = model
