"""The learner's process group: R ranks under torchrun, or one process that needs no rendezvous at all.

Collectives carry msgpack or numbers, never pickles.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from typing import Any, Literal

import msgpack
import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import distributed

from vcppo.common.errors import VcppoError
from vcppo.learner.kernels.sequence_parallel import use_group

log = structlog.get_logger(__name__)

# gloo's and NCCL's words; they raise nothing more specific than RuntimeError everywhere.
_PEER_ERROR = re.compile(r"gloo|nccl|connection (closed|reset)|timed out", re.IGNORECASE)

Device = Literal["auto", "cpu", "cuda"]


def choose_device(device: Device) -> torch.device:
    """This rank's device; ``auto`` takes CUDA when there is one.

    Raises:
        VcppoError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise VcppoError("learner.device=cuda but torch sees no CUDA device; set learner.device=auto or cpu")
    if device == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def init_distributed(device: Device = "auto", *, timeout_seconds: float = 1800.0) -> torch.device:
    """Join the process group (gloo on a CPU, nccl on CUDA) once; returns this rank's device.

    Under torchrun the environment says who and where. Without it the group is this process alone, on a store in its own
    memory: no port, no address.

    Args:
        timeout_seconds: a collective that takes longer fails. More than rank 0 may wait alone (for a batch to fill).
    """
    chosen = choose_device(device)
    # DeepSpeed picks its accelerator by itself at import; it must be ours.
    os.environ.setdefault("DS_ACCELERATOR", chosen.type)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if distributed.is_initialized():
        return chosen
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        distributed.init_process_group(backend, timeout=timeout)
    else:
        _single_process_environment()
        distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1, timeout=timeout)
    log.info("process_group_joined", backend=backend, rank=rank(), num_ranks=num_ranks(), device=str(chosen))
    return chosen


def share_sequences(size: int) -> None:
    """Let `size` neighbouring ranks share each pack (learner.sequence_parallel_size). Collective; 1 undoes it."""
    use_group(None)
    for first in range(0, num_ranks(), size) if size > 1 else ():
        group = distributed.new_group(list(range(first, first + size)))  # every rank makes every group
        if first <= rank() < first + size:
            use_group(group)


def rank() -> int:
    """This process' number among the learner's; 0 outside a group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def num_ranks() -> int:
    """Learner processes; 1 outside a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def lost_peer(error: RuntimeError) -> str | None:
    """What to say of a collective that failed because another rank is gone or stuck; None: it is another error."""
    if num_ranks() == 1 or _PEER_ERROR.search(str(error)) is None:
        return None
    first_line = str(error).strip().splitlines()[0]
    return f"learner rank {rank()} lost another of the {num_ranks()} ranks in the middle of a collective: {first_line}"


def barrier() -> None:
    """Wait until every rank is here. Every rank must call it."""
    if num_ranks() > 1:
        distributed.barrier()


def shutdown_distributed() -> None:
    """Leave the group; nothing to do outside one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def broadcast_bytes(data: bytes | None) -> bytes:
    """Rank 0's bytes on every rank; the others pass None. Every rank must call it."""
    if num_ranks() == 1:
        return data or b""
    length = torch.tensor([len(data) if data is not None else 0], dtype=torch.int64, device=_collective_device())
    distributed.broadcast(length, src=0)
    if rank() == 0:
        assert data is not None
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
    else:
        buffer = torch.empty(int(length.item()), dtype=torch.uint8)
    if buffer.numel() == 0:
        return b""
    buffer = buffer.to(_collective_device())
    distributed.broadcast(buffer, src=0)
    return buffer.cpu().numpy().tobytes()


def broadcast_object(value: Any = None) -> Any:
    """Rank 0's plain value (what msgpack holds: None, numbers, text, bytes, lists, dicts) on every rank."""
    if num_ranks() == 1:
        return value
    packed = broadcast_bytes(msgpack.packb(value) if rank() == 0 else None)
    return value if rank() == 0 else msgpack.unpackb(packed, strict_map_key=False)


def sum_over_ranks(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Elementwise float64 sum over ranks of equally shaped arrays. Every rank must call it, also with an empty share.

    Also gathers: each rank fills its own slots of a zero array.
    """
    total = np.ascontiguousarray(values, np.float64)
    if num_ranks() == 1:
        return total
    tensor = torch.from_numpy(total.copy()).to(_collective_device())
    distributed.all_reduce(tensor)
    summed: NDArray[np.float64] = tensor.cpu().numpy()
    return summed


def _collective_device() -> torch.device:
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _single_process_environment() -> None:
    """What DeepSpeed looks for in the environment of a launched process."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
