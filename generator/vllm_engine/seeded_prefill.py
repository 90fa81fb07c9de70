"""A correction for vLLM 0.32 on a CPU: a request with a seed may be prefilled in pieces.

vLLM samples a token at the end of every piece of a prefill and throws away those of all pieces but the last. So that
a thrown-away token costs no randomness, it then winds the request's generator back by 4, which is what one draw takes
on CUDA (`GPUModelRunner._bookkeeping_sync`). A CPU generator has no offset: PyTorch raises "CPU Generator does not use
offset", and the engine is dead. It happens whenever the prompts of one step exceed ``max_num_batched_tokens``, and
when a preempted sequence comes back.

Here the generators of such requests are put aside while vLLM samples. Their thrown-away tokens come from torch's
default generator, and a seed gives the same tokens however the prefill was cut.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

_FAULT = "set_offset(gen.get_offset() - 4)"
_INSTALLED = "vcppo_seeded_prefill"


def is_faulty(runner: type[Any]) -> bool:
    """Whether this runner class winds generators back by an offset."""
    return _FAULT in inspect.getsource(runner._bookkeeping_sync)


def correct(runner: type[Any]) -> bool:
    """Wrap `_sample` and `_bookkeeping_sync` of a runner class: no generator is seen whose token will be thrown away.

    True if the class needed it: nothing is done twice, nor where vLLM is mended. The class is vLLM's `CPUModelRunner`;
    it needs ``input_batch.generators`` (row → generator, the dictionary that its sampler reads) and
    ``discard_request_mask.np``, as `GPUModelRunner` has them.
    """
    if getattr(runner, _INSTALLED, False) or not is_faulty(runner):
        return False
    sample, bookkeeping = runner._sample, runner._bookkeeping_sync

    def _sample(self: Any, *arguments: Any, **named: Any) -> Any:
        with _Aside(self):
            return sample(self, *arguments, **named)

    def _bookkeeping_sync(self: Any, *arguments: Any, **named: Any) -> Any:
        with _Aside(self):
            return bookkeeping(self, *arguments, **named)

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync
    setattr(runner, _INSTALLED, True)
    return True


class _Aside:
    """While it holds, the rows whose token will be thrown away have no generator of their own."""

    def __init__(self, runner: Any) -> None:
        self._generators = runner.input_batch.generators
        mask = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        self._rows = [int(row) for row in np.nonzero(mask)[0]]
        self._aside: dict[int, Any] = {}

    def __enter__(self) -> None:
        self._aside = {row: self._generators.pop(row) for row in self._rows if row in self._generators}

    def __exit__(self, *_: object) -> None:
        self._generators.update(self._aside)
