"""Trainer side of the CPU weight broadcast: vLLM's trainer weight-transfer interface over gloo.

Registered beside vLLM's own ``nccl`` trainer engine, so `vcppo.learner.weights.broadcaster` drives both by the same
calls. The worker side and the wire form are in ``vcppo.generator.vllm_engine.gloo_engine``: parameters in order, cut
into chunks of at most ``buffer_bytes`` (a larger tensor is a chunk of its own), one uint8 buffer and one broadcast per
chunk.

Every trainer rank walks the source; only rank 0 sends. Under ZeRO-3 walking gathers (a collective of the
learner's ranks), so the order is: gather a whole chunk, post its broadcast, gather the next while it travels.
Importing this module imports vLLM's interface classes (seconds, no engine).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, TrainerWeightTransferEngine, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from vcppo.common.tensor_sums import as_ints, byte_sum
from vcppo.learner.weights.fan_out import beside
from vcppo.learner.weights.transport_check import SentWeights

if TYPE_CHECKING:
    from vcppo.learner.weights.broadcaster import WeightEngine


class LockstepSource(WeightSource):
    """A `WeightSource` whose round can always be brought to its end, and which sums what it hands out.

    When sending fails half-way on rank 0, the other ranks still walk their parameters to the end and would wait
    for rank 0's part of the gathers: `complete_round` walks the rest, sending nothing.

    Args:
        sum_on_cpu: receivers hold the tensors on a CPU, whatever they lie on here: both must sum alike.
    """

    def __init__(self, engine: WeightEngine, *, sum_on_cpu: bool = False) -> None:
        self._engine = engine
        self._round: Iterator[tuple[str, torch.Tensor]] | None = None
        self._sum_on_cpu = sum_on_cpu
        self._names: list[str] = []
        self._sums: list[Any] = []

    def metadata(self) -> list[ParamMeta]:
        """As vLLM's trainer wants it: the order in which tensors will come."""
        return [ParamMeta(name, dtype, tuple(shape)) for name, dtype, shape in self._engine.weight_metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        self._names, self._sums = [], []
        self._round = self._summed(self._engine.weight_source())
        return self._round

    @property
    def sent(self) -> SentWeights:
        """Names and sums of the round's tensors, in their order."""
        return SentWeights(tuple(self._names), tuple(as_ints(self._sums)))

    def _summed(self, walk: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in walk:
            self._names.append(name)
            self._sums.append(byte_sum(tensor.cpu() if self._sum_on_cpu else tensor))
            yield name, tensor

    def complete_round(self) -> None:
        """Walk what is left of this round: all of it when it never began."""
        for _ in self._round if self._round is not None else self._engine.weight_source():
            pass
        self._round = None

    def begin_round(self) -> None:
        """Forget the last round; the next iteration walks all weights.

        vLLM's NCCL engine reads them on streams of its own, which wait for nobody: the optimizer's last kernels must
        be through.
        """
        if self._engine.device.type == "cuda":
            torch.cuda.synchronize(self._engine.device)
        self._round = None


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """Weight group of one membership epoch; ``world_size`` counts learner rank 0 and all generator workers."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    world_size: int
    group: str
    deadline_seconds: float
    buffer_bytes: int


class GlooTrainerWeightTransferEngine(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Sends the source's weights to every worker of the weight group. Made and used on every learner rank."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, *, client: Any, source: WeightSource, info: GlooTrainerInitInfo) -> None:
        super().__init__(client=client, source=source, is_sender=info.is_sender)
        self._info = info
        self._deadline = timedelta(seconds=info.deadline_seconds)
        self._group: Any = None
        self._store: Any = None

    @classmethod
    def trainer_init(cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None) -> Self:
        """Rendezvous with all workers, who join by the client's ``init_weight_transfer_engine``.

        Raises what the client raised (a generator that failed to join), or RuntimeError when the deadline passes.
        """
        if source is None:
            raise ValueError("the gloo trainer engine needs a WeightSource")
        engine = cls(client=client, source=source, info=init_info)
        if engine.is_sender:
            engine._join()
        return engine

    def _join(self) -> None:
        info = self._info
        self._store = dist.TCPStore(
            info.master_address, 0, is_master=True, timeout=self._deadline, wait_for_workers=False
        )
        worker_info = {
            "master_address": info.master_address,
            "master_port": self._store.port,
            "rank_offset": 1,
            "world_size": info.world_size,
            "group": info.group,
            "bind_host": "",  # the client fills in each generator's own address
            "deadline_seconds": info.deadline_seconds,
        }
        opening = beside(self._open)
        # A generator that can't join fails here at once; waiting for our own half would take the whole deadline.
        self.client.init_weight_transfer_engine(worker_info)
        self._group = opening.result(self._deadline.total_seconds())

    def _open(self) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # in torch, missing in its stubs
        options._timeout = self._deadline
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._info.master_address)]
        prefixed = dist.PrefixStore(self._info.group, self._store)
        return dist.ProcessGroupGloo(prefixed, 0, self._info.world_size, options)

    def send_weights(self) -> None:
        """One whole update: start, receive beside broadcast, finish. On a non-sender: only walk the source.

        The first chunk is packed before the start, which is when generators stop.
        """
        assert self.source is not None
        meta = self.source.metadata()
        chunks = cut_chunks(meta, self._info.buffer_bytes)
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        update_info = {
            "names": [m.name for m in meta],
            "dtype_names": [str(m.dtype).removeprefix("torch.") for m in meta],
            "shapes": [list(m.shape) for m in meta],
            "chunks": chunks,
        }
        packets = self._packets(meta, chunks)
        first = next(packets, None)
        self.client.start_weight_update()
        receiving = beside(lambda: self.client.update_weights(update_info))
        # The workers' error must surface now, not when our own collective times out: break the collective.
        group = self._group  # ours may be gone by then: the answer is heard of while the group is being left
        receiving.add_done_callback(lambda f: group.abort() if f.exception() else None)
        try:
            self._broadcast(first, packets)
        except RuntimeError as error:
            cause = receiving.exception(self._deadline.total_seconds())
            if cause is not None:  # what a generator said explains more than "connection closed"
                raise cause from error
            raise
        receiving.result(self._deadline.total_seconds())
        self.client.finish_weight_update()

    def _packets(self, meta: list[ParamMeta], chunks: list[int]) -> Iterator[torch.Tensor]:
        """The chunks, each valid until the next but one is asked for."""
        assert self.source is not None
        walk = iter(self.source)
        buffers = (torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8))
        position = 0
        for index, count in enumerate(chunks):
            yield _pack(walk, meta[position : position + count], buffers[index % 2])
            position += count
        for name, _ in walk:
            raise ValueError(f"the weight source yields {name}, which its metadata does not declare")

    def _broadcast(self, first: torch.Tensor | None, packets: Iterator[torch.Tensor]) -> None:
        packet = first
        while packet is not None:
            sending = self._group.broadcast([packet], dist.BroadcastOptions())
            packet = next(packets, None)  # packed while the one before travels
            sending.wait(self._deadline)

    def shutdown(self) -> None:
        """Leave the weight group. Safe to call twice, and when the others are gone."""
        if self._group is not None:
            self._group.abort()
        self._group = self._store = None


def cut_chunks(meta: Sequence[ParamMeta], buffer_bytes: int) -> list[int]:
    """Number of parameters in each buffer; every buffer holds at most ``buffer_bytes``, or one larger tensor."""
    chunks: list[int] = []
    size = 0
    for item in meta:
        num_bytes = math.prod(item.shape) * item.dtype.itemsize
        if chunks and size + num_bytes <= buffer_bytes:
            chunks[-1] += 1
            size += num_bytes
        else:
            chunks.append(1)
            size = num_bytes
    return chunks


def _pack(walk: Iterator[tuple[str, torch.Tensor]], meta: Sequence[ParamMeta], buffer: torch.Tensor) -> torch.Tensor:
    """The next tensors of the walk end to end, as a uint8 view of `buffer`, which grows to hold them.

    Fresh memory would cost more than the copy: the kernel clears every page of it first. Raises ValueError when the
    tensors are not what was declared.
    """
    sizes = [math.prod(m.shape) * m.dtype.itemsize for m in meta]
    if buffer.numel() < sum(sizes):
        buffer.resize_(sum(sizes))
    start = 0
    for expected, size in zip(meta, sizes, strict=True):
        name, tensor = next(walk)
        if (name, tensor.dtype, tuple(tensor.shape)) != (expected.name, expected.dtype, expected.shape):
            raise ValueError(
                f"the weight source yields {name} {tensor.dtype} {tuple(tensor.shape)}, "
                f"its metadata declares {expected.name} {expected.dtype} {expected.shape}"
            )
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        buffer[start : start + size].copy_(flat)
        start += size
    return buffer[:start]


if "gloo" not in WeightTransferTrainerFactory._registry:
    WeightTransferTrainerFactory.register_engine("gloo", GlooTrainerWeightTransferEngine)
