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
    replace_folder(folder, staging)


def replace_folder(folder: Path, staging: Path) -> None:
    """Put the finished `staging` in the place of `folder`, whatever is there. Nothing is fsynced."""
    if folder.exists() or folder.is_symlink():
        remove_path(folder)
    staging.rename(folder)


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with all in it; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
