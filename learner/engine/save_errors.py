"""DeepSpeed's writing of checkpoints, made safe for a rank whose disk is full.

Saving is collective: a rank that left it with an error in the middle would leave the others in DeepSpeed's barriers. So
what its writers raise is kept until all ranks are through, and raised then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SaveErrors:
    """Of one DeepSpeed engine; the first error of a save counts, those that follow from it do not."""

    def __init__(self, engine: Any) -> None:
        self._first: Exception | None = None
        writers = ((engine.checkpoint_engine, "makedirs"), (engine.checkpoint_engine, "save"))
        for owner, name in (*writers, (engine, "_copy_recovery_script")):
            setattr(owner, name, self._keeping(getattr(owner, name)))

    def raise_first(self) -> None:
        """After a save, on each rank: raises what this rank's writers raised in it, if anything."""
        error, self._first = self._first, None
        if error is not None:
            raise error

    def _keeping(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return write(*arguments, **options)
            except Exception as error:  # noqa: BLE001  (raised by `raise_first`)
                self._first = self._first or error

        return call
