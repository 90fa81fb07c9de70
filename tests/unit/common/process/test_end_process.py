"""A process ends with its own code, whatever the interpreter's end would do."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, logging, os, sys
from logging.handlers import MemoryHandler
from vcppo.common.process.end_process import end_process

logging.getLogger().addHandler(MemoryHandler(1000, target=logging.StreamHandler(sys.stderr)))
atexit.register(os.abort)  # what gloo's threads do to us there
logging.warning("the last record")
print("the last line")
end_process(3)
"""


def test_ends_with_its_code_and_says_all_it_had_to_say() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert done.stdout == "the last line\n"
    assert "the last record" in done.stderr
