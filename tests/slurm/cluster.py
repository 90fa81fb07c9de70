"""A real Slurm on this machine: slurmctld, a slurmd a node and munged, all of its own in one folder.

    python -m tests.slurm.cluster FOLDER     four nodes until Ctrl-C; `export SLURM_CONF=FOLDER/slurm.conf` to use it

The system's services, their configuration and their ports are not touched. It takes Debian's packages slurmctld,
slurmd, slurm-client and munge, and root (Slurm starts jobs as their users). Each node is a slurmd with a name, a
loopback address and a port of its own; a node is killed with all that runs on it, as a power cut would.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from vcppo.common.transport.ports import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
T = TypeVar("T")

# cred_expire: a job that is queued again waits as long before it may start; 120 s by default.
# proctrack/pgid: signals reach a step's task and not its children, as with proctrack/cgroup on a real cluster.
CONF = """\
ClusterName=vcppo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=10
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SwitchType=switch/none
MpiDefault=none
SlurmctldDebug=verbose
SlurmdDebug=verbose
{gres}
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=60
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def why_none() -> str | None:
    """Why no cluster can be started here; None: one can."""
    missing = [name for name in PROGRAMS if _which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here (Debian: apt-get install slurmctld slurmd slurm-client munge)"
    return "only root can start slurmd with jobs of other users" if os.getuid() != 0 else None


def _which(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Cluster:
    """Started and ended by `cluster`.

    Args:
        folder: everything of it lies there; short, since socket paths are.
        nodes: how many.
        gpus: of each node: devices that nobody opens, so that Slurm deals them out.
    """

    def __init__(self, folder: Path, nodes: int, cpus: int = 2, gpus: int = 0) -> None:
        self.folder, self.names = folder, [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool", "log", "run"):
            (folder / name).mkdir(parents=True)
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        first, host = free_port("127.0.0.1", nodes + 1), socket.gethostname()
        extra = f" Gres=gpu:{gpus}" if gpus else ""
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.{10 + number} Port={first + number} CPUs={cpus}"
            f" RealMemory=4000{extra}"
            for number, name in enumerate(self.names, start=1)
        ]
        gres = "GresTypes=gpu" if gpus else ""
        (folder / "gres.conf").write_text(self._gres(gpus))
        (folder / "slurm.conf").write_text(
            CONF.format(host=host, port=first, folder=folder, nodes="\n".join(lines), gres=gres)
        )

    def _gres(self, gpus: int) -> str:
        files = [self.folder / f"gpu{number}" for number in range(gpus)]
        for file in files:
            os.mknod(file, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # /dev/null's numbers: Slurm wants a device
        return "".join(f"NodeName={name} Name=gpu File={file}\n" for name in self.names for file in files)

    # ---- its life

    def start(self) -> None:
        """Up, all nodes idle."""
        run, log = self.folder / "run", self.folder / "log"
        self._start(
            "munged", "--foreground", f"--key-file={self.folder}/munge.key", f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed",
        )  # fmt: skip
        self.wait("munged", lambda: (run / "munge.socket").exists(), 20)
        self._start("slurmctld", "-D")
        for name in self.names:
            self.start_node(name)
        self.wait("all nodes idle", lambda: self.states() == dict.fromkeys(self.names, "idle"), 60)

    def start_node(self, name: str) -> None:
        """Its slurmd."""
        self._start("slurmd", "-D", "-N", name, key=name)

    def _start(self, program: str, *words: str, key: str = "") -> None:
        path = _which(program)
        assert path is not None
        output = (self.folder / "log" / f"{key or program}.out").open("ab")
        with output:
            self._processes[key or program] = subprocess.Popen(
                [path, *words], env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def stop(self) -> None:
        """Down: jobs cancelled, nothing of it left."""
        with suppress(subprocess.SubprocessError, OSError, AssertionError):
            self.slurm("scancel", "--user", "root")
            self.wait("no job left", lambda: not self.slurm("squeue", "--noheader").strip(), 40)
        for name in self.names:
            self._kill_all_of(name)
        for process in reversed(list(self._processes.values())):
            process.terminate()
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)

    def kill_node(self, name: str) -> None:
        """Everything of it at once: slurmd, the daemons of its steps and their tasks."""
        self._kill_all_of(name)
        self._processes.pop(name).wait(10)

    def _kill_all_of(self, name: str) -> None:
        """By what is theirs alone: the variable that Slurm gives its tasks, and the arguments of its daemons."""
        daemon = self._processes.get(name)
        marks = (f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.folder}/slurm.conf".encode())
        for _ in range(2):  # what was started meanwhile
            for entry in Path("/proc").glob("[0-9]*"):
                pid = int(entry.name)
                with suppress(OSError):
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    is_task = marks[0] in variables and marks[1] in variables
                    if is_task or self._is_step_daemon(entry, name):
                        os.kill(pid, signal.SIGKILL)
        if daemon is not None and daemon.poll() is None:
            daemon.kill()

    def _is_step_daemon(self, entry: Path, name: str) -> bool:
        """slurmstepd says in its arguments nothing of its node; its log is that of its slurmd."""
        if not (entry / "cmdline").read_bytes().startswith(b"slurmstepd"):
            return False
        log = str(self.folder / "log" / f"{name}.log")
        return any(os.path.realpath(link) == log for link in (entry / "fd").iterdir())

    # ---- asking it

    def slurm(self, *command: str) -> str:
        """Output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=self.folder
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """Node -> state."""
        with suppress(AssertionError):
            lines = self.slurm("sinfo", "--noheader", "--Node", "--partition", "main", "--format", "%N %T")
            return dict(line.split() for line in lines.splitlines())  # type: ignore[misc]
        return {}

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        words = self.slurm("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)  # type: ignore[misc]

    def wait(self, what: str, condition: Callable[[], T], seconds: float) -> T:
        """Until `condition()` is true."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for: {what}\n{self.evidence()}")
            time.sleep(0.3)
        return found

    def evidence(self) -> str:
        """Queue and last lines of the controller, for a failure."""
        with suppress(OSError, subprocess.SubprocessError, AssertionError):
            queue = self.slurm("squeue", "--long") + self.slurm("sinfo", "--Node")
            log = (self.folder / "log" / "slurmctld.log").read_text().splitlines()[-15:]
            return queue + "\n".join(log)
        return "slurmctld does not answer"


@contextmanager
def cluster(nodes: int, cpus: int = 2, gpus: int = 0, folder: Path | None = None) -> Iterator[Cluster]:
    """Up within the block. Its folder, by default one that goes with it, must be one that all users may enter."""
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
            folder.chmod(0o755)  # munged wants it so
        one = Cluster(folder, nodes, cpus, gpus)
        stack.callback(one.stop)
        one.start()
        yield one


if __name__ == "__main__":
    if (reason := why_none()) is not None:
        sys.exit(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster(nodes=4, folder=Path(sys.argv[1]).absolute()) as started:
        sys.stdout.write(f"up: export SLURM_CONF={started.environment['SLURM_CONF']}\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            signal.pause()
