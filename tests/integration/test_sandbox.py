"""The sandbox: every escape succeeds without the layers and fails behind each layer that is said to stop it."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.config import TaskConfig
from common.sandbox import Isolation, Job, Layer, Layers, Limits, Result, SandboxError, kernel, probe, run_program
from common.tasks import load_task
from generator.verifier_pool import VerifierPool

from .attacks import ATTACKS

ROOT = Path(__file__).parents[2]
# The system's, where there is one: a user of its own may not reach ours in somebody's home folder.
SYSTEM_PYTHON = Path("/usr/bin/python3")
PYTHON = str(SYSTEM_PYTHON) if SYSTEM_PYTHON.exists() else str(getattr(sys, "_base_executable", sys.executable))
NOTHING: Layers = frozenset()
LIMITS = Limits(cpu_seconds=5, wall_seconds=10, memory_bytes=256 * 2**20, output_bytes=2**16)


def python(source: str, limits: Limits = LIMITS, stdin: bytes = b"") -> Job:
    return Job(
        (PYTHON, "-S", "program.py"),
        (sys.base_prefix,),
        files={"program.py": textwrap.dedent(source).encode()},
        stdin=stdin,
        limits=limits,
    )


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return probe(python("print(1)"))


@pytest.fixture(scope="module")
def layers(isolation: Isolation) -> Layers:
    return isolation.layers


def powerless() -> None:
    """What programs are at least, so that the kernel's own rules do not keep them off a process of root's."""
    kernel.no_new_privileges()
    kernel.no_capabilities()


class Target(NamedTuple):
    folder: str
    public: str
    secret: str
    victims_file: str
    victim: int
    tcp_port: int
    udp_port: int
    unix_path: str
    datagram_path: str
    abstract: str
    shared_memory: int


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """What the attacks are after, all of it this user's own."""
    folder = tmp_path_factory.mktemp("target")
    folder.chmod(0o700)
    public = Path(tempfile.mkdtemp(prefix="vcppo-test-public-"))
    public.chmod(0o777)
    (folder / "secret").write_text("swordfish")
    (folder / "secret").chmod(0o600)
    (folder / "victims_file").write_text("precious")
    victim = subprocess.Popen(
        [PYTHON, "-c", "import time; time.sleep(300)"],
        env={"PASSWORD": "swordfish"},
        preexec_fn=powerless,
    )
    abstract = f"vcppo-{secrets.token_hex(8)}"
    libc, key = ctypes.CDLL(None), secrets.randbelow(2**31 - 1) + 1
    segment = libc.shmget(key, 4096, 0o1600)  # IPC_CREAT
    kinds = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
    sockets = [socket.socket(*kind) for kind in [*kinds, *[(socket.AF_UNIX, socket.SOCK_STREAM)] * 2]]
    sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    addresses = [("127.0.0.1", 0)] * 2 + [str(folder / "socket"), f"\0{abstract}", str(folder / "datagrams")]
    for each, address in zip(sockets, addresses, strict=True):
        each.bind(address)
        if each.type == socket.SOCK_STREAM:
            each.listen(64)
    yield Target(
        folder=str(folder),
        public=str(public),
        secret=str(folder / "secret"),
        victims_file=str(folder / "victims_file"),
        victim=victim.pid,
        tcp_port=sockets[0].getsockname()[1],
        udp_port=sockets[1].getsockname()[1],
        unix_path=str(folder / "socket"),
        datagram_path=str(folder / "datagrams"),
        abstract=abstract,
        shared_memory=key,
    )
    libc.shmctl(segment, 0, None)  # IPC_RMID
    victim.kill()
    victim.wait()
    for each in sockets:
        each.close()
    shutil.rmtree(public)


def attack(name: str, target: Target, layers: Layers) -> str:
    """What it printed; it did run."""
    source = ATTACKS[name].source
    for field, value in target._asdict().items():
        source = source.replace(f"{{{field}}}", str(value))
    may_fork = "seccomp" not in layers  # it is for the filter to refuse
    result = run_program(python("print('TRIED', flush=True)\n" + source, LIMITS._replace(may_fork=may_fork)), layers)
    assert result.stdout.startswith(b"TRIED"), result
    return result.stdout.decode()


CAN_BE_OFF = {
    "ptrace": "/proc/sys/kernel/yama/ptrace_scope",
    "io_uring": "/proc/sys/kernel/io_uring_disabled",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_succeeds_without_layers(name: str, target: Target) -> None:
    """Else the other tests of it show nothing."""
    switch = Path(CAN_BE_OFF.get(name, "/nowhere"))
    if switch.exists() and switch.read_text().strip() != "0":
        pytest.skip(f"this machine refuses it to everyone: {switch}")
    assert "ESCAPED" in attack(name, target, NOTHING)


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, attack in ATTACKS.items() for layer in attack.stopped_by]
)
def test_one_layer_stops_the_attack(name: str, layer: Layer, target: Target, isolation: Isolation) -> None:
    if layer in isolation.refused:
        pytest.skip(f"not here: {isolation.refused[layer]}")
    assert "ESCAPED" not in attack(name, target, frozenset({layer}))


@pytest.mark.parametrize("name", ATTACKS)
def test_all_layers_stop_the_attack(name: str, target: Target, layers: Layers) -> None:
    assert "ESCAPED" not in attack(name, target, layers)
    assert Path(target.victims_file).exists() and Path(target.secret).read_text() == "swordfish"


def test_this_machine_keeps_every_promise(isolation: Isolation) -> None:
    assert isolation.missing == [], isolation.describe()


ORDINARY = {
    "threads": "import threading\nfor i in range(4): threading.Thread(target=print, args=('ok',)).start()",
    "deep_recursion": "import sys, threading\nsys.setrecursionlimit(10**6); threading.stack_size(2**26)\n"
    "def depth(n): return n and 1 + depth(n - 1)\n"
    "t = threading.Thread(target=lambda: print('ok', depth(50_000))); t.start(); t.join()",
    "asyncio": "import asyncio\nasync def main(): await asyncio.sleep(0.01); print('ok')\nasyncio.run(main())",
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('ok')); signal.alarm(1); signal.pause()",
    "itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('ok')); os.kill(os.getpid(), 10)",
    "random": "import os, random, uuid; print('ok', random.random(), os.urandom(4), uuid.uuid4())",
    "terminal": "import os, sys; print('ok', sys.stdout.isatty(), os.cpu_count(), os.getcwd(), os.listdir())",
    "time": "import datetime, time; print('ok', datetime.datetime.now(), time.localtime(), time.process_time())",
    "pool": "from concurrent.futures import ThreadPoolExecutor\nprint('ok', *ThreadPoolExecutor(4).map(abs, range(9)))",
    "big_numbers": "import decimal, fractions, math; print('ok', math.factorial(999), decimal.Decimal(2).sqrt())",
    "limits": "import resource; print('ok', resource.setrlimit(3, resource.getrlimit(3)))",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs_run(name: str, layers: Layers) -> None:
    result = run_program(python(ORDINARY[name]), layers)
    assert result.ending == "exited" and result.exit_code == 0 and b"ok" in result.stdout, result


def test_files_in_the_working_folder(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    source = """
        import os, pathlib, tempfile
        with tempfile.NamedTemporaryFile("w", dir=".") as file:
            file.write("ok")
            file.flush()
            os.rename(file.name, "renamed")
            print(open("renamed").read(), os.listdir())
            os.rename("renamed", file.name)
    """
    result = run_program(python(source), layers)
    assert result.exit_code == 0 and result.stdout.startswith(b"ok"), result


def test_processes_where_they_are_allowed(layers: Layers) -> None:
    source = "import subprocess; print(subprocess.check_output(['/bin/sh', '-c', 'echo ok; cat /dev/null']))"
    assert run_program(python(source, LIMITS._replace(may_fork=True)), layers).stdout == b"b'ok\\n'\n"
    assert b"PermissionError" in run_program(python(source), layers).stderr


# --- what is left over ------------------------------------------------------------------------------------------------

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
SLEEP = str(shutil.which("sleep"))


def marker() -> str:
    """A duration that can be found in the list of processes."""
    return f"100.{secrets.randbelow(10**9):09d}"


def processes(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_daemon_survives_its_parent_elsewhere() -> None:
    """The control: what the sandbox has to kill does outlive an ordinary parent, in a session of its own."""
    mark = marker()
    subprocess.run([PYTHON, "-c", textwrap.dedent(DAEMON.format(sleep=SLEEP, marker=mark, linger=0))], check=True)
    assert eventually(lambda: len(processes(mark)) == 1)
    for pid in processes(mark):
        os.kill(pid, signal.SIGKILL)


FORKING = LIMITS._replace(may_fork=True, wall_seconds=2)


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
from common.sandbox import *
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


# --- what it is given -------------------------------------------------------------------------------------------------


def test_no_descriptor_leaks(layers: Layers, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("swordfish")
    with (tmp_path / "open").open() as file:
        os.set_inheritable(file.fileno(), True)
        source = """
            import os
            for descriptor in range(3, 60):
                try:
                    os.fstat(descriptor)
                except OSError:
                    continue
                print(descriptor)
        """
        control = subprocess.run(
            [PYTHON, "-S", "-c", textwrap.dedent(source)], close_fds=False, capture_output=True, check=True
        )
        assert str(file.fileno()).encode() in control.stdout.split()
        for which in (NOTHING, layers):
            result = run_program(python(source), which)
            assert (result.exit_code, result.stdout) == (0, b"")


def test_stdin_can_be_read_and_not_changed(layers: Layers) -> None:
    data = secrets.token_bytes(3 * 2**20)
    source = """
        import hashlib, os, sys
        print(hashlib.md5(sys.stdin.buffer.read()).hexdigest(), sys.stdin.buffer.read())
        os.write(0, b"x")
    """
    result = run_program(python(source, stdin=data), layers)
    assert result.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()
    assert result.exit_code == 1 and b"not permitted" in result.stderr


def test_environment_is_empty(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "swordfish")
    result = run_program(python("import os; print([name for name in os.environ if name != 'LC_CTYPE'])"), layers)
    assert result.stdout == b"[]\n"  # LC_CTYPE is Python's own doing


def test_no_capability(layers: Layers) -> None:
    for which in (layers, layers - {"seccomp", "user"}, NOTHING):
        result = run_program(python("import os; os.chroot('.')"), which)
        assert result.exit_code == 1 and b"PermissionError" in result.stderr, (which, result)


def test_no_terminal_and_no_groups(layers: Layers) -> None:
    """A session of its own has no terminal to type into; the caller's groups would open the caller's files."""
    source = "import os; print(os.getsid(0), os.getgroups())"
    session, _ = run_program(python(source), NOTHING).stdout.split(maxsplit=1)
    assert int(session) != os.getsid(0)
    if "user" in layers:
        assert run_program(python(source), layers).stdout.endswith(b" []\n")


PEEK = "import os, time; time.sleep(0.3); open(f'/proc/{os.getppid()}/environ', 'rb').read()"


def test_no_look_into_the_keeper() -> None:
    """Its memory is a copy of the caller's, with the run's secrets."""
    assert b"PermissionError" in run_program(python(PEEK), NOTHING).stderr


def test_only_the_working_folder_can_be_written(isolation: Isolation) -> None:
    """Also by the user who owns everything else."""
    if "namespaces" in isolation.refused:
        pytest.skip(f"not here: {isolation.refused['namespaces']}")
    source = """
        import os
        for folder in ("/", "/usr", "/usr/lib", "/dev", "/etc", "."):
            try:
                os.mkdir(f"{folder}/vcppo-planted")
            except OSError:
                continue
            os.rmdir(f"{folder}/vcppo-planted")
            print(folder)
    """
    assert run_program(python(source), frozenset({"namespaces"})).stdout == b".\n"


def test_no_better_priority(layers: Layers) -> None:
    for which in (NOTHING, layers):
        assert b"PermissionError" in run_program(python("import os; os.nice(-1)"), which).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program that changes its user")
def test_set_user_id_programs_have_no_effect(layers: Layers) -> None:
    """A copy of `id` that runs as user 1."""
    folder = Path(tempfile.mkdtemp(prefix="vcppo-test-public-"))
    try:
        folder.chmod(0o755)
        program = shutil.copy(str(shutil.which("id")), folder)
        os.chown(program, 1, 1)
        os.chmod(program, 0o4755)
        job = Job((str(program), "-u"), (str(folder),), limits=LIMITS)
        assert subprocess.check_output(job.argv, preexec_fn=kernel.no_capabilities) == b"1\n"
        assert run_program(job, NOTHING).stdout == b"0\n"
        assert run_program(job, layers).stdout != b"1\n"
    finally:
        shutil.rmtree(folder)


# --- limits: each flips the outcome -----------------------------------------------------------------------------------


def test_right_output_and_exit_codes(layers: Layers) -> None:
    result = run_program(python("print(int(input()) + 1)", stdin=b"41\n"), layers)
    assert result[:4] == ("exited", 0, b"42\n", b"")
    assert run_program(python("import sys; sys.exit(3)"), layers)[:2] == ("exited", 3)
    assert run_program(python("import os; os.abort()"), layers).ending == "signalled"


def test_memory(layers: Layers) -> None:
    source = "block = bytearray(150 * 2**20); print(len(block))"
    assert run_program(python(source), layers).exit_code == 0
    little = run_program(python(source, LIMITS._replace(memory_bytes=100 * 2**20)), layers)
    assert little.exit_code == 1 and b"MemoryError" in little.stderr


def test_processor_time(layers: Layers) -> None:
    began = time.monotonic()
    busy = python("while True: pass", LIMITS._replace(cpu_seconds=0.2, wall_seconds=30))
    result = run_program(busy, layers)
    assert result.ending == "timeout" and 0.2 < result.cpu_seconds < 3 and time.monotonic() - began < 20


def test_time_by_the_clock(layers: Layers) -> None:
    began = time.monotonic()
    result = run_program(python("import time; time.sleep(60)", LIMITS._replace(wall_seconds=1)), layers)
    assert result.ending == "timeout" and result.cpu_seconds < 1 and time.monotonic() - began < 10


def test_a_time_limit_of_nothing(layers: Layers) -> None:
    assert run_program(python("print(1)", LIMITS._replace(wall_seconds=0)), layers).ending == "timeout"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output(stream: str, layers: Layers) -> None:
    result = run_program(python(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)"), layers)
    assert result.ending == "flood" and len(getattr(result, stream)) == LIMITS.output_bytes


def count_of(result: Result) -> int:
    """How often it printed a line before it failed."""
    assert result.ending == "exited" and result.exit_code == 1, result
    return result.stdout.count(b"\n")


def test_one_file(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    source = "open('large', 'wb').write(bytes(2 * 2**20)); print('done')"
    assert run_program(python(source), layers).stdout == b"done\n"
    result = run_program(python(source, LIMITS._replace(file_bytes=2**20)), layers)
    assert result.exit_code == 1 and b"File too large" in result.stderr


def test_all_files_together(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    limits = LIMITS._replace(disk_bytes=4 * 2**20)
    source = (
        "for i in range(100):\n  for size in (2**20, 1): open(f'{i}-{size}', 'wb', 0).write(bytes(size))\n  print()"
    )
    assert count_of(run_program(python(source, limits), layers)) < 4
    assert 100 < count_of(run_program(python("for i in range(9999): open(str(i), 'w'); print()"), layers)) < 1024


def test_nothing_can_be_written_without_a_folder_of_its_own(isolation: Isolation) -> None:
    which = isolation.layers & {"landlock", "seccomp"}
    if "landlock" not in which:
        pytest.skip("no Landlock here")
    result = run_program(python("open('file', 'w')"), which)
    assert b"PermissionError" in result.stderr


def test_open_files(layers: Layers) -> None:
    source = "files = []\nfor i in range(200): files.append(open('/dev/null')); print()"
    assert 40 < count_of(run_program(python(source), layers)) < 64


def test_threads(layers: Layers) -> None:
    if os.geteuid() == 0 and "user" not in layers:
        pytest.skip("the kernel does not count root's")
    source = """
        import threading, time
        for i in range({}):
            threading.Thread(target=time.sleep, args=(0.2,)).start()
            print(flush=True)
    """
    few = LIMITS._replace(num_tasks=8)
    assert run_program(python(source.format(5), few), layers).exit_code == 0
    assert count_of(run_program(python(source.format(50), few), layers)) < 8


def test_fork_bomb(layers: Layers) -> None:
    """Bounded while it runs, gone afterwards; without the limit a bounded one has its way."""
    if os.geteuid() == 0 and "user" not in layers:
        pytest.skip("the kernel does not count root's")
    mark = marker()
    source = f"""
        import os, time
        for i in range(20):
            if os.fork() == 0:
                os.execv({SLEEP!r}, ["sleep", {mark!r}])
            print(flush=True)
    """
    limits = FORKING._replace(num_tasks=8)
    assert run_program(python(source, FORKING._replace(num_tasks=100)), layers).exit_code == 0
    assert count_of(run_program(python(source, limits), layers)) < 8
    bomb = f"""
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        {mark}
    """
    result = run_program(python(bomb, limits), layers)
    assert result.ending == "timeout", result
    assert processes(mark) == []


# --- the sandbox itself -----------------------------------------------------------------------------------------------


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
from common.sandbox import *
from common.sandbox import kernel
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
from common.sandbox import *
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


# --- in a run ---------------------------------------------------------------------------------------------------------


def in_pool(body: Callable[[VerifierPool], Awaitable[None]], config: TaskConfig) -> None:
    async def main() -> None:
        pool = VerifierPool(config)
        try:
            await pool.start()
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(main())


def test_programs_are_judged_in_verifier_children(capfd: pytest.CaptureFixture[str]) -> None:
    """Every outcome through the pool; what the sandbox can do here is one line of the child's log."""
    options = {"path": str(ROOT / "tests/data/programs.jsonl"), "total_seconds": 2.0}
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


def test_a_program_dies_with_its_verifier() -> None:
    """The pool kills a late verifier by SIGKILL: it can clean up nothing, and nothing is left all the same."""
    mark = marker()
    options = {"path": str(ROOT / "tests/data/programs.jsonl"), "total_seconds": 60.0, "time_limit_seconds": 60.0}
    config = TaskConfig(name="code", options=options, verifier_timeout_seconds=2.0)
    problem = load_task(config).problems("train", 0, 0, 1)[0]
    source = f"import os; os.execv({SLEEP!r}, ['sleep', '{mark}'])"

    async def body(pool: VerifierPool) -> None:
        waiting = asyncio.create_task(pool.verify(problem.answer, f"```\n{source}\n```", "stop"))
        assert await asyncio.to_thread(eventually, lambda: len(processes(mark)) == 1)
        assert (await waiting).outcome == "timeout"
        assert await asyncio.to_thread(eventually, lambda: not processes(mark))

    in_pool(body, config)
