"""What must hold between fields of the config tree. Each problem names fields, values and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.config.tree import VcppoConfig


def config_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction; none means the tree is usable."""
    yield from ()


def config_warnings(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per setting that works but is probably not meant."""
    yield from ()
