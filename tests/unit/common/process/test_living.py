"""Notes of living processes: there as long as the process is, whatever ends it; a frozen one is no dead one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.paths import ROOT
from vcppo.common.process.living import Living, described, living, noted

HOLDER = """
import sys, time
from pathlib import Path
from vcppo.common.process.living import note_down
note = note_down(Path(sys.argv[1]), "generator-0")
print("noted", flush=True)
time.sleep(60)
"""


def test_a_note_lasts_as_long_as_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "processes"
    assert living(folder) == []
    with noted(folder, "learner"), noted(folder, "odd name/../x"):
        assert living(folder) == [
            Living("learner", os.getpid(), socket.gethostname()),
            Living("odd name/../x", os.getpid(), socket.gethostname()),
        ]
    assert living(folder) == []
    assert list(folder.iterdir()) == []


def test_a_frozen_process_lives_and_a_killed_one_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"noted\n"
        process.send_signal(signal.SIGSTOP)
        assert living(tmp_path) == [Living("generator-0", process.pid, socket.gethostname())]
    finally:
        process.kill()
        process.communicate(timeout=10)
    assert living(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_is_torn_still_names_who_lives(tmp_path: Path) -> None:
    with noted(tmp_path, "learner"):
        (note,) = tmp_path.iterdir()
        note.write_text("{")
        (found,) = living(tmp_path)
        assert found.pid == os.getpid()
        assert found.name.startswith("learner")


def test_how_to_end_them_is_said_for_each_host() -> None:
    here = socket.gethostname()
    text = described([Living("buffer", 7, here), Living("learner", 8, here), Living("generator-0", 9, "far")])
    assert text == (
        f"buffer (pid 7 on {here}), learner (pid 8 on {here}), generator-0 (pid 9 on far)."
        " End what is left of it: kill -9 7 8; kill -9 9 on far"
    )


def test_where_none_can_be_kept_the_process_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with noted(tmp_path / "file" / "processes", "learner"):
        assert living(tmp_path / "file" / "processes") == []
