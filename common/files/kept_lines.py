"""Lines that may wait for room: what can't be written is kept in memory, and written first when it can.

For logs and metrics, whose writers must not end, nor wait, because of a full disk.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path

from vcppo.common.files.json_lines import LineFile

MAX_KEPT_BYTES = 4 << 20


class KeptLines:
    """The end of one file. No method raises OSError.

    Attributes:
        lost: lines that were kept for too long: the oldest go when those that are kept pass the limit.
    """

    def __init__(self, path: Path, max_kept_bytes: int = MAX_KEPT_BYTES) -> None:
        self.lost = 0
        self._file = LineFile(path)
        self._max_kept_bytes = max_kept_bytes
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def write(self, line: bytes) -> OSError | None:
        """Append a line, which ends in a newline. Returns why it is kept instead; None when it is in the file."""
        self._kept.append(line)
        self._kept_bytes += len(line)
        return self.flush()

    def flush(self) -> OSError | None:
        """Try again what is kept. Returns why it still is; None when nothing is."""
        while self._kept:
            try:
                self._file.write(self._kept[0])
            except OSError as error:
                self._drop_oldest()
                return error
            self._kept_bytes -= len(self._kept.popleft())
        return None

    def close(self) -> None:
        """Try again, and let the file go; what is kept then counts as lost."""
        self.flush()
        self.lost += len(self._kept)
        self._kept.clear()
        self._kept_bytes = 0
        try:
            self._file.close()
        except OSError:
            return  # it was written without a buffer: nothing is in doubt

    def _drop_oldest(self) -> None:
        while self._kept_bytes > self._max_kept_bytes:
            self._kept_bytes -= len(self._kept.popleft())
            self.lost += 1
