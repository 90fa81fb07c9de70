"""Worker side of the CPU weight broadcast: vLLM's weight-transfer interface over gloo.

vLLM creates this inside each of its workers (``WeightTransferConfig(backend="gloo")``); the trainer's
half is ``vcppo.learner.weights.broadcaster``. Wire form, agreed per update by `GlooUpdateInfo`: the parameters in
order, cut into chunks; each chunk is one uint8 buffer (the tensors' bytes end to end, no padding) and
one gloo broadcast from rank 0. The next chunk's broadcast is posted before this one is loaded, so
receiving and loading overlap. The model is loaded by one call that draws tensor after tensor; each is summed as it
passes (`vcppo.generator.vllm_engine.received_weights`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from vcppo.generator.vllm_engine.received_weights import ReceivedSums

logger = init_logger(__name__)

_Layout = tuple[str, torch.dtype, list[int]]  # name, type and shape of one parameter


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """How a worker joins the weight group of one membership epoch.

    Attributes:
        master_address, master_port: the learner's TCPStore.
        rank_offset: group rank of this generator's first worker.
        world_size: learner rank 0 plus all workers of all generators.
        group: name of the epoch, a prefix in the store; a late packet of an old epoch can't reach a new one.
        bind_host: address of this generator that the others can reach.
        deadline_seconds: of the rendezvous and of every collective.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    group: str
    bind_host: str
    deadline_seconds: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """What one update carries; ``chunks`` holds the number of parameters in each buffer."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    chunks: list[int]

    def __post_init__(self) -> None:
        num = len(self.names)
        if not len(self.dtype_names) == len(self.shapes) == sum(self.chunks) == num:
            raise ValueError(
                f"update_info disagrees with itself: {num} names, {len(self.dtype_names)} dtypes, "
                f"{len(self.shapes)} shapes, chunks that sum to {sum(self.chunks)}"
            )


class _Chunk:
    """One buffer on its way: the posted broadcast and the layout of what it will hold."""

    def __init__(self, group: Any, layout: list[_Layout]) -> None:
        self.layout = layout
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in layout]
        # A fresh buffer each time: layers that span two chunks keep views of the first until they are whole.
        self.buffer = torch.empty(sum(sizes), dtype=torch.uint8)
        self.sizes = sizes
        self.work = group.broadcast([self.buffer], dist.BroadcastOptions())  # from rank 0

    def tensors(self, deadline: timedelta) -> Iterator[tuple[str, torch.Tensor]]:
        self.work.wait(deadline)
        start = 0
        for (name, dtype, shape), size in zip(self.layout, self.sizes, strict=True):
            piece = self.buffer[start : start + size]
            if start % dtype.itemsize:  # an odd-sized bf16 tensor before a float32 one
                piece = piece.clone()
            yield name, piece.view(dtype).view(shape)
            start += size


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives dense weights in Hugging Face names and loads them through vLLM's layerwise reload.

    Attributes:
        sums: of the tensors of the present update, or the last.
    """

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def __init__(self, config: WeightTransferConfig, vllm_config: Any, device: torch.device, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self._group: Any = None
        self._store: Any = None
        self._deadline = timedelta(seconds=60)
        self._unfinished = False
        self.sums = ReceivedSums()
        self._tied_heads: list[tuple[Any, Any]] = []
        self._expert_kernels: list[tuple[Any, Any]] = []
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(self._is_news)

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the weight group; leaves the one of an earlier epoch first. Raises when the deadline passes."""
        self.shutdown()
        self._deadline = timedelta(seconds=init_info.deadline_seconds)
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = dist.TCPStore(
            init_info.master_address,
            init_info.master_port,
            is_master=False,
            timeout=self._deadline,
            wait_for_workers=False,
        )
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # in torch, missing in its stubs
        options._timeout = self._deadline
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=init_info.bind_host)]
        prefixed = dist.PrefixStore(init_info.group, store)
        self._group = dist.ProcessGroupGloo(prefixed, rank, init_info.world_size, options)
        self._store = store
        logger.info("Joined weight group %s as rank %d of %d", init_info.group, rank, init_info.world_size)

    def start_weight_update(self) -> None:
        """Bring the layers into a state that weights can be loaded into, also after an update that broke off."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        if self._unfinished:  # an earlier update broke off: bring the layers back to a loadable state
            self._finalize()
        self._unfinished = True
        self._tied_heads = tied_heads(self.model)  # now: during the reload nothing is shared with anything
        self._expert_kernels = take_expert_kernels(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As the base class, whose accelerator synchronisation raises on a CPU."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Load the announced tensors as they arrive, and sum them.

        Raises RuntimeError outside a group, ValueError when the model leaves some.
        """
        if self._group is None:
            raise RuntimeError("the gloo weight group is not initialised: call init_weight_transfer_engine first")
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        dtypes = [getattr(torch, name) for name in update_info.dtype_names]
        layout = iter(zip(update_info.names, dtypes, update_info.shapes, strict=True))
        layouts = [list(islice(layout, count)) for count in update_info.chunks]
        arriving = self._arriving(layouts)
        self.sums.begin()
        with disable_mtp_completeness_check():
            self.model.load_weights(self.sums.passing(arriving))
        for name, _ in arriving:
            raise ValueError(f"the model's load_weights left {name} and what follows")

    def _arriving(self, layouts: list[list[_Layout]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors in order, as they come."""
        following = _Chunk(self._group, layouts[0]) if layouts else None
        for index in range(len(layouts)):
            chunk, following = following, None
            assert chunk is not None
            if index + 1 < len(layouts):
                following = _Chunk(self._group, layouts[index + 1])
            yield from chunk.tensors(self._deadline)

    def finish_weight_update(self) -> None:
        """Make the loaded layers ready to compute with: vLLM's post-processing, tied heads and expert kernels."""
        self._finalize()
        self._unfinished = False

    def _finalize(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        mark_missing(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        for method, kernel in self._expert_kernels:
            if method.moe_kernel is None:  # nothing came for these experts
                method.moe_kernel = kernel
        self._expert_kernels = []
        for head, owner in self._tied_heads:
            # The tied head shares the embedding's weight, so the reload has nothing to load into it and leaves
            # its prepacked CPU GEMM with the old weights. The embedding's was packed anew, of the same weight.
            head.cpu_linear = owner.cpu_linear
        # In bfloat16 no answer would tell it from a right one for long: so it is looked at, after every update.
        self.sums.stale = sum(head.cpu_linear is not owner.cpu_linear for head, owner in tied_heads(self.model))

    def _is_news(self, record: logging.LogRecord) -> bool:
        """False for vLLM's warning, at every update, about layers that are never sent weights of their own."""
        text = record.getMessage()
        return not ("RotaryEmbedding" in text or ("LMHead" in text and self._tied_heads))

    def shutdown(self) -> None:
        """Leave the weight group. Safe to call twice, and when the others are gone."""
        if self._group is not None:
            self._group.abort()
        self._group = self._store = None


def tied_heads(model: torch.nn.Module) -> list[tuple[Any, Any]]:
    """LM heads with a prepacked CPU GEMM (``cpu_linear``) whose weight another module owns too, each with that one."""
    packed = [module for module in model.modules() if hasattr(module, "cpu_linear")]
    return [
        (head, owner)
        for head in packed
        if isinstance(head, ParallelLMHead)
        for owner in packed
        if owner is not head and owner.weight is head.weight
    ]


def take_expert_kernels(model: torch.nn.Module) -> list[tuple[Any, Any]]:
    """Take the kernels from unquantised experts, each with the method it belongs to, so that a reload makes new ones.

    vLLM's CPU build packs experts for its grouped GEMM only when it makes a kernel. When there is one it would copy
    unpacked weights over packed ones: all experts would compute with their elements out of order.
    """
    methods = {id(method): method for module in model.modules() if (method := getattr(module, "quant_method", None))}
    found = [
        (method, method.moe_kernel)
        for method in methods.values()
        if isinstance(method, UnquantizedFusedMoEMethod) and method.moe_kernel is not None
    ]
    for method, _ in found:
        method.moe_kernel = None
    return found


@torch.no_grad()
def mark_missing(model: torch.nn.Module) -> None:
    """Before a layerwise reload is finished: NaN where a layer got some of its tensors and not others.

    vLLM makes such a layer (fused projections, of which one was not sent) from uninitialised memory, whose values may
    be anything, even plausible ones. Padding is no concern: loaders that pad write it themselves.
    """
    from vllm.model_executor.layers.attention import is_deferred_attention_layer
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import materialize_layer
    from vllm.model_executor.model_loader.reload.utils import get_layer_tensors

    for layer in model.modules():
        info = get_layerwise_info(layer)
        if is_deferred_attention_layer(layer) or not 0 < info.load_numel < (info.load_numel_total or 0):
            continue
        absent = [name for name, tensor in get_layer_tensors(layer).items() if tensor.is_meta]
        materialize_layer(layer, info)
        for name in absent:
            values = getattr(layer, name)
            if values.is_floating_point() and not values.is_meta:
                values.fill_(float("nan"))
