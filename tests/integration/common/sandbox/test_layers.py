"""Which layers a machine or a user has, and how the verifier pool runs it all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.paths import DATA, ROOT
from tests.processes import in_pool
from vcppo.common.config import TaskConfig
from vcppo.common.sandbox import Isolation, Job, Layer, Layers, SandboxError, probe, run_program
from vcppo.common.tasks import load_task
from vcppo.generator.verifying.verifier_pool import VerifierPool

from .rig import NOTHING, PEEK, PYTHON, SLEEP, SYSTEM_PYTHON, python


def test_what_can_not_be_run_is_the_sandbox_s_failure(layers: Layers) -> None:
    with pytest.raises(SandboxError, match="could not run /no/such/program: FileNotFoundError"):
        run_program(Job(("/no/such/program",)), layers)


def test_probe_says_what_is_refused_and_why() -> None:
    with pytest.raises(SandboxError, match=r"ends with exited 3 \(.*no\)"):
        probe(python("import sys; print('no', file=sys.stderr); sys.exit(3)"))
    # A program that needs what a layer takes away.
    picky = python("import os, sys; os.chmod('program.py', 0o644)")
    found = probe(picky, ["seccomp"])
    assert found.layers == NOTHING and "PermissionError" in found.refused["seccomp"]
    assert found.missing and "NOT PROMISED: no network" in found.describe()


UNPRIVILEGED = """
import json, os, subprocess
from vcppo.common.sandbox import *
from vcppo.common.sandbox import kernel
os.chdir("/")
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
kernel._prctl("dumpable", 4, 1)  # as after an execve
def python(source, **limits):
    return Job(({python!r}, "-S", "-c", source), limits=Limits(wall_seconds=10, memory_bytes=2**34, **limits))
found = probe(python(""))
others = [subprocess.Popen([{sleep!r}, "60"]) for _ in range(20)]
where = "import os; print(os.getuid(), os.getcwd(), os.path.exists('/proc'))"
threads = "import threading, time\\nfor i in range(50): threading.Thread(target=time.sleep, args=(1,)).start()"
print(json.dumps([
    sorted(found.layers),
    run_program(python(where), found.layers).stdout.decode(),
    run_program(python(threads, num_tasks=8), found.layers).exit_code,
    run_program(python(threads, num_tasks=8), found.layers - {{"namespaces"}}).exit_code,
    run_program(python(threads, num_tasks=60), found.layers - {{"namespaces"}}).exit_code,
    run_program(python({peek!r}), frozenset()).stderr.decode(),
]))
for other in others:
    other.kill()
"""


@pytest.mark.skipif(os.geteuid() != 0 or not SYSTEM_PYTHON.exists(), reason="shown by all other tests, or not at all")
def test_layers_of_an_ordinary_user(isolation: Isolation) -> None:
    """All but a user of its own, where the machine allows user namespaces; tasks are counted right with and without."""
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED.format(python=PYTHON, sleep=SLEEP, peek=PEEK)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found, seen, with_namespaces, without, generous, peek = json.loads(done.stdout)
    assert {"landlock", "seccomp"} & isolation.layers <= set(found) and "user" not in found
    assert (with_namespaces, without, generous) == (1, 1, 0)
    assert "PermissionError" in peek
    if "namespaces" in found:
        user, *rest = seen.split()
        assert user not in ("0", "65534") and rest == ["/work", "False"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
@pytest.mark.parametrize(
    ("kept", "layers"),
    [
        # What Docker leaves root by default.
        (["chown", "dac_override", "fowner", "kill", "setgid", "setuid", "setpcap", "sys_chroot", "mknod"], {"user"}),
        ([], set()),
    ],
    ids=["docker", "none"],
)
def test_layers_of_a_container_s_root(kept: list[str], layers: set[Layer], isolation: Isolation) -> None:
    """Fewer capabilities cost layers (a user needs setuid, say), never a promise."""
    script = f"""
from vcppo.common.sandbox import *
found = probe(Job(({PYTHON!r}, "-S", "-c", ""), ({sys.base_prefix!r},)))
print(*found.layers, *found.missing)
"""
    bounding = ",".join(["-all", *(f"+{name}" for name in kept)])
    command = ["setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = set(done.stdout.split())
    assert (
        ({"landlock", "seccomp"} & isolation.layers) | layers <= found <= {"landlock", "seccomp", "namespaces", "user"}
    )


def test_programs_are_judged_in_verifier_children(capfd: pytest.CaptureFixture[str]) -> None:
    """Every outcome through the pool; what the sandbox can do here is one line of the child's log."""
    options = {"path": str(DATA / "programs.jsonl"), "total_seconds": 2.0}
    config = TaskConfig(name="code", options=options, verifier_timeout_seconds=30.0)
    (problem,) = [p for p in load_task(config).problems("train", 0, 0, 11) if "reversed" in str(p.prompt)][:1]
    programs = {
        "correct": "print(input()[::-1])",
        "wrong": "print(input())",
        "timeout": "while True: pass",
        "crash": "import socket; socket.socket()",
    }

    async def body(pool: VerifierPool) -> None:
        for outcome, source in programs.items():
            verdict = await pool.verify(problem.answer, f"```python\n{source}\n```", "stop")
            assert verdict.outcome == outcome, verdict
        assert (await pool.verify(problem.answer, programs["correct"], "stop")).outcome == "unparsable"

    in_pool(body, config)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if '"event":"sandbox"' in line.replace(" ", "")]
    assert "limits, " in json.loads(line)["isolation"]
