"""Methods that vLLM's workers get from us (``worker_extension_cls``), called by ``collective_rpc``."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from vcppo.generator.vllm_engine.engine import EXTENSION_VARIABLE


def _users_own() -> type:
    name = os.environ.get(EXTENSION_VARIABLE)
    if not name:
        return object
    module, _, attribute = name.rpartition(".")
    found: type = getattr(import_module(module), attribute)
    return found


class WorkerExtension(_users_own()):  # type: ignore[misc]  # whatever class the user names
    """Becomes a base class of the worker."""

    def received_weight_sums(self) -> Any:
        """`SumsReport` of the last update; None when the weight-transfer engine is not one of ours."""
        sums = getattr(getattr(self, "weight_transfer_engine", None), "sums", None)
        return None if sums is None else sums.report()
