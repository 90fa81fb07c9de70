"""Folders that are either whole or not there, whenever the process dies."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A staging folder beside `folder`, which it replaces by rename when the block ends well; for one writer.

    An earlier writer, should he still be at it, finds his staging folder gone and fails.
    """
    for leftover in folder.parent.glob(f".{folder.name}.staging*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = folder.with_name(f".{folder.name}.staging-{secrets.token_hex(4)}")
    yield staging
    replace_folder(folder, staging)


def replace_folder(folder: Path, staging: Path) -> None:
    """Put the finished `staging` in the place of `folder`, whatever is there. Nothing is fsynced.

    Raises FileNotFoundError without `staging`; what was there stays then.
    """
    before = folder.with_name(f".{folder.name}.staging-replaced-{secrets.token_hex(4)}")
    with suppress(FileNotFoundError):
        folder.rename(before)
    try:
        staging.rename(folder)
    except OSError:
        with suppress(OSError):  # another has put his there meanwhile
            before.rename(folder)
        raise
    if before.exists() or before.is_symlink():
        remove_path(before)


def remove_path(path: Path) -> None:
    """Remove a file, or a folder with all in it; of a link only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
