"""Folders that are either whole or not there, whenever the process dies."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A staging folder beside `folder`, which it replaces by rename when the block ends well; for one writer."""
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)  # of a crash
    yield staging
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
