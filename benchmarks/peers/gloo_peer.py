"""Bare gloo: two processes, and broadcasts of bytes from one to the other as fast as gloo does it.

`python -m benchmarks.peers.gloo_peer PORT CORE` is the receiving process: sizes come first, then buffers, for ever.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from benchmarks import REPOSITORY

_DEADLINE = timedelta(seconds=300)
_SIZES = 4096  # int64: number of chunks, then bytes of each


class GlooPeer:
    """The sending side, with a receiver on `core`. Use it as a context manager."""

    def __init__(self, core: int) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=_DEADLINE, wait_for_workers=False)
        self._receiver = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.gloo_peer", str(self._store.port), str(core)], cwd=REPOSITORY
        )

    def __enter__(self) -> Self:
        self._group = _join(self._store, 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._receiver.kill()
        self._receiver.wait(30)
        self._group.abort()

    def seconds(self, buffers: Sequence[torch.Tensor]) -> float:
        """To send all buffers, each posted before the one before it has gone, until the receiver has them."""
        header = torch.zeros(_SIZES, dtype=torch.int64)
        header[: len(buffers) + 1] = torch.tensor([len(buffers), *(buffer.numel() for buffer in buffers)])
        _broadcast(self._group, [header])
        _broadcast(self._group, [torch.zeros(1)])  # it has its buffers ready
        began = time.perf_counter()
        _broadcast(self._group, [*buffers, torch.zeros(1)])
        self._group.barrier(dist.BarrierOptions()).wait(_DEADLINE)
        return time.perf_counter() - began


def _join(store: Any, rank: int) -> Any:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # in torch, missing in its stubs
    options._timeout = _DEADLINE
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return dist.ProcessGroupGloo(dist.PrefixStore("bare", store), rank, 2, options)


def _broadcast(group: Any, buffers: Sequence[torch.Tensor]) -> None:
    first, *others = buffers
    sending: Any = group.broadcast([first], dist.BroadcastOptions())
    for buffer in others:
        following = group.broadcast([buffer], dist.BroadcastOptions())
        sending.wait(_DEADLINE)
        sending = following
    sending.wait(_DEADLINE)


def _receive(port: int, core: int) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=_DEADLINE, wait_for_workers=False)
    group = _join(store, 1)
    buffers: dict[tuple[int, ...], list[torch.Tensor]] = {}
    while True:
        header = torch.zeros(_SIZES, dtype=torch.int64)
        _broadcast(group, [header])
        sizes = tuple(header[1 : 1 + int(header[0])].tolist())
        if sizes not in buffers:
            buffers[sizes] = [torch.zeros(size, dtype=torch.uint8) for size in sizes]  # zeros: its pages are there
        _broadcast(group, [torch.zeros(1)])
        _broadcast(group, [*buffers[sizes], torch.zeros(1)])
        group.barrier(dist.BarrierOptions()).wait(_DEADLINE)


if __name__ == "__main__":
    _receive(int(sys.argv[1]), int(sys.argv[2]))
