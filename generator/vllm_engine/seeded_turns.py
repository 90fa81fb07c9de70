"""A correction for vLLM 0.32: the next turn of a resumable request has a seed of its own.

vLLM makes a request's generator of random numbers when the request comes, and leaves it as it is when the request goes
on with other sampling parameters. Then what a turn samples would depend on whether its sequence was kept.
"""

from __future__ import annotations

import inspect
from typing import Any

_INSTALLED = "vcppo_seeded_turns"


def correct(runner: type[Any]) -> bool:
    """Wrap `_update_streaming_request` of a runner class: a seed makes the request's generator anew.

    True if the class needed it. The class is vLLM's `CPUModelRunner`; it needs ``device``, and its request states
    ``sampling_params`` and ``generator``, as `GPUModelRunner` has them.
    """
    update = runner._update_streaming_request
    if getattr(runner, _INSTALLED, False) or "manual_seed" in inspect.getsource(update):
        return False

    def _update_streaming_request(self: Any, *arguments: Any, **named: Any) -> Any:
        import torch

        state = update(self, *arguments, **named)
        if state.sampling_params is not None and state.sampling_params.seed is not None:
            state.generator = torch.Generator(device=self.device)
            state.generator.manual_seed(state.sampling_params.seed)
        return state

    runner._update_streaming_request = _update_streaming_request
    setattr(runner, _INSTALLED, True)
    return True
