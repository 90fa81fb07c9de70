"""Whatever ends a run, and whoever dies: no process and no folder of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from tests.paths import DATA, ROOT
from tests.processes import in_pool
from vcppo.common.config import TaskConfig
from vcppo.common.sandbox import Isolation, Layer, Layers, run_program
from vcppo.common.tasks import load_task
from vcppo.generator.verifying.verifier_pool import VerifierPool

from .rig import FORKING, NOTHING, PYTHON, SLEEP, eventually, marker, processes, python

DAEMON = """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.execv({sleep!r}, ["sleep", {marker!r}])
        os._exit(0)
    os.wait()
    time.sleep({linger})
"""


def test_a_daemon_survives_its_parent_elsewhere() -> None:
    """The control: what the sandbox has to kill does outlive an ordinary parent, in a session of its own."""
    mark = marker()
    subprocess.run([PYTHON, "-c", textwrap.dedent(DAEMON.format(sleep=SLEEP, marker=mark, linger=0))], check=True)
    assert eventually(lambda: len(processes(mark)) == 1)
    for pid in processes(mark):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("linger", [0, 60], ids=["after_its_end", "after_timeout"])
@pytest.mark.parametrize("only", [(), ("namespaces",), None], ids=["no_layer", "namespaces", "all"])
def test_no_daemon_survives(only: tuple[Layer, ...] | None, linger: int, isolation: Isolation) -> None:
    wanted = isolation.layers if only is None else frozenset(only)
    if wanted - isolation.layers:
        pytest.skip(f"not here: {isolation.refused}")
    mark = marker()
    result = run_program(python(DAEMON.format(sleep=SLEEP, marker=mark, linger=linger), FORKING), wanted)
    assert result.ending == ("timeout" if linger else "exited"), result
    assert processes(mark) == []


CALLER = """
import sys
from vcppo.common.sandbox import *
limits = Limits(wall_seconds=100, may_fork=True)
run_program(Job(({python!r}, "-S", "-c", {source!r}), (sys.base_prefix,), limits=limits), frozenset({layers!r}))
"""


@pytest.mark.parametrize("victim", ["caller", "keeper"])
def test_nothing_survives_the_death_of(victim: str, layers: Layers, tmp_path: Path) -> None:
    """Of the caller, which is what the verifier pool kills; of the keeper, if the machine runs out of memory."""
    mark = marker()
    source = textwrap.dedent(DAEMON.format(sleep=SLEEP, marker=mark, linger=60))
    script = CALLER.format(python=PYTHON, source=source, layers=list(layers if victim == "keeper" else NOTHING))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    tmp_path.chmod(0o755)
    caller = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    try:
        assert eventually(lambda: len(processes(mark)) == 1), caller.communicate(timeout=10)
        if victim == "caller":
            caller.kill()
        else:
            if "namespaces" not in layers:
                pytest.skip("only a process namespace dies with its first process")
            (keeper,) = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
            os.kill(int(keeper), signal.SIGKILL)
        assert eventually(lambda: not processes(mark))
        if victim == "caller":
            assert eventually(lambda: not list(tmp_path.iterdir()))  # and its folder is gone
    finally:
        caller.kill()
        caller.communicate(timeout=10)


def test_no_folder_is_left(layers: Layers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for which in (NOTHING, layers):
        run_program(python("open('made', 'w'); import os; os.mkdir('more')"), which)
        assert list(tmp_path.iterdir()) == []


def test_a_program_dies_with_its_verifier() -> None:
    """The pool kills a late verifier by SIGKILL: it can clean up nothing, and nothing is left all the same."""
    mark = marker()
    options = {"path": str(DATA / "programs.jsonl"), "total_seconds": 60.0, "time_limit_seconds": 60.0}
    config = TaskConfig(name="code", options=options, verifier_timeout_seconds=2.0)
    problem = load_task(config).problems("train", 0, 0, 1)[0]
    source = f"import os; os.execv({SLEEP!r}, ['sleep', '{mark}'])"

    async def body(pool: VerifierPool) -> None:
        waiting = asyncio.create_task(pool.verify(problem.answer, f"```\n{source}\n```", "stop"))
        assert await asyncio.to_thread(eventually, lambda: len(processes(mark)) == 1)
        assert (await waiting).outcome == "timeout"
        assert await asyncio.to_thread(eventually, lambda: not processes(mark))

    in_pool(body, config)
