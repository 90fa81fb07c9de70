"""Freezes one process for so long and wakes it, whatever happens to this one: ``freezer.py PID SECONDS``.

A frozen process can't wake itself. Only the standard library: it must be up before anything has changed.
"""

import os
import signal
import sys
import time


def main(pid: int, seconds: float) -> int:
    """Exit code 0: it stood still all the time."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        with open(f"/proc/{pid}/stat") as file:
            is_stopped = file.read().rpartition(")")[2].split()[0] == "T"
    finally:
        os.kill(pid, signal.SIGCONT)
    return 0 if is_stopped else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2])))
