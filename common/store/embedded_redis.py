"""Where the embedded redis-server of a run listens: a Unix socket that follows from the run's folder.

It lies under the system's temporary folder, since socket paths are limited to about 100 bytes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def socket_path(folder: Path) -> Path:
    """The socket that belongs to the data folder: always the same, so that every tool finds a running server."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"vcppo-{os.getuid()}" / f"{digest}.sock"


def url(folder: Path) -> str:
    """Redis URL of the server on `folder`."""
    return f"unix://{socket_path(folder)}?db=0"
