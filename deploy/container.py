"""`python -m vcppo.deploy.container ROLE [section.field=value ...]`: one role of a run in a container of its own.

    prepare           writes <run>/config.yaml; makes the model if it is the run's own cold start, fetches it from a hub
    sft               the cold start, whatever the model is
    buffer            ZeroMQ in, Redis out
    generator         vLLM; its id is the container's host name
    learner           value pretraining and RL, to the end (value-pretraining: only that)
    eval              held-out accuracy of the cold start and the trained policy, then the report

It stands where `vcppo up` stands on one machine, over a single process: its output becomes JSON lines, whoever wrote
it; it is started again as launcher.*_restarts say, never after exit codes 2 and 3; SIGTERM is handed on and waited for.
While the process is up a file is touched every second, which is what the health check looks at.

The config comes from VCPPO_CONFIG, the run's name from VCPPO_RUN, more overrides from VCPPO_SET; the
addresses of the others are their service names. Keys are made by `prepare` and shared out below /keys, unless
VCPPO_KEYS names a folder that holds those of this role already.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import structlog

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, VcppoError
from vcppo.common.files.room import exhausted, shortage_of
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import RunFolder
from vcppo.common.transport.keys import ROLES as ROLES_WITH_KEYS
from vcppo.common.transport.keys import Role, make_keys, private_files
from vcppo.deploy.check.machine import devices_of
from vcppo.deploy.check.quick import CONTAINER, require
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.launch.room_watch import watch_room
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink, Screen, timestamp
from vcppo.deploy.placement.claims import Claim, claim
from vcppo.deploy.placement.place import Part, PlacementError
from vcppo.deploy.processes.cores import available_cores, thread_environment
from vcppo.deploy.processes.supervisor import Interrupted, ProcessFailed, ProcessSpec, Supervisor
from vcppo.deploy.run.run_config import RunError, write_config
from vcppo.deploy.terminal.keys_command import ACL_FILE, PASSWORD_FILE, USER, make_redis_access
from vcppo.deploy.terminal.session import own_logs_to

log = structlog.get_logger(__name__)

RUNS = Path("/runs")
KEYS = Path("/keys")  # all/ is prepare's alone; <role>/ holds what that role needs, and is all its container sees
HEALTHY = Path("/tmp/healthy")  # noqa: S108  (the container's own)
REDIS, BUFFER, LEARNER = "redis", "buffer", "learner"
BUFFER_PORT = 5755
METRICS_PORT = 9400  # deploy/monitoring/prometheus.yml


def main(argv: Sequence[str] | None = None) -> int:
    """Run one role. Returns the exit code of its process."""
    parser = argparse.ArgumentParser(
        prog="python -m vcppo.deploy.container",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", choices=sorted(ROLES), metavar="ROLE", help=", ".join(ROLES))
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    arguments = parser.parse_args(argv)
    run = os.environ.get("VCPPO_RUN", "demo")
    screen = Screen(level="debug", as_json=not sys.stdout.isatty())
    try:
        sink = _open_sink(run, screen)
    except RunError as error:
        record = {
            "time": timestamp(),
            "level": "error",
            "service": arguments.role,
            "event": "fatal",
            "error": str(error),
        }
        screen.show(arguments.role, record)
        return error.exit_code
    with closing(sink), own_logs_to(sink, arguments.role):
        try:
            return ROLES[arguments.role](run, arguments.overrides, sink)
        except VcppoError as error:
            log.error("fatal", error=str(error))
            return error.exit_code
        except OSError as error:
            if (shortage := shortage_of(error)) is None:
                raise
            log.error("fatal", error=f"{error}: {shortage}")
            return exhausted(shortage, arguments.role).exit_code


def _open_sink(run: str, screen: Screen) -> LogSink:
    """The run's log folder. Raises RunError."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", run) is None:
        raise RunError(f"VCPPO_RUN = {run!r} (RUN in .env): letters, digits, '-', '_' and '.', at most 64")
    try:
        return LogSink(RUNS / run / "logs", run, screen.show)
    except OSError as error:
        raise RunError(
            f"{RUNS}/{run}/logs can't be written by user {os.getuid()} ({error.strerror}): if RUNS in .env is "
            f"a folder of the host, make it that user's (chown -R {os.getuid()} FOLDER)"
        ) from None


# ---- config


def run_config(path: Path, run: str, overrides: Sequence[str], *, device: str = "cpu") -> tuple[VcppoConfig, bool]:
    """The tree of a run under compose, and whether its model is its own cold start.

    Args:
        path: the user's file.
        overrides: the user's, which win.
        device: of the image; the CPU one has no compiler, so there vLLM runs eagerly, whatever the config says.
    """
    given = load_config(path, overrides)
    cold_start = given.sft.output or RunFolder(given.run.path).cold_start
    own_cold_start = Path(given.model.path) == Path(cold_start)
    own = [
        f"run.name={run}",
        f"run.folder={RUNS}",
        f"redis.url=redis://{REDIS}:6379/0",
        f"transport.endpoints=[tcp://{BUFFER}:{BUFFER_PORT}]",
        f"broadcast.host={LEARNER}",
        f"metrics.prometheus_port={METRICS_PORT}",
        "security.curve=always",
        f"redis.username={USER}",
        *key_settings("learner"),
    ]
    if own_cold_start:
        own += [f"model.path={RunFolder(RUNS / run).cold_start}", "sft.output=null"]
    users = [text for text in overrides if not (own_cold_start and text.startswith(("model.path=", "sft.output=")))]
    without_compiler = ["generator.enforce_eager=true"] if device == "cpu" else []
    return load_config(path, [*own, *users, *without_compiler]), own_cold_start


def key_settings(role: Role) -> list[str]:
    """Where a role finds its keys and Redis' password."""
    folder = given_keys() or KEYS / role
    return [f"security.keys={folder}", f"redis.password_file={folder / PASSWORD_FILE}"]


def given_keys() -> Path | None:
    """The folder of keys that somebody else made; None when they are ours to make."""
    return Path(found) if (found := os.environ.get("VCPPO_KEYS")) else None


def share_keys(keys: Path) -> None:
    """Make what is missing in ``keys/all`` and give each role's folder what that role needs.

    Its own secret key, the others' public keys, Redis' password; Redis itself gets the password's hash.
    """
    everything = keys / "all"
    make_keys(everything)
    make_redis_access(everything)
    for role in ROLES_WITH_KEYS:
        public = [path.name for path in everything.glob("*.key")]
        for name in (*public, f"{role}.key_secret", PASSWORD_FILE):
            _copy(everything / name, keys / role / name, 0o600)
    _copy(everything / ACL_FILE, keys / REDIS / ACL_FILE, 0o644)  # its user is another than ours


def _copy(source: Path, target: Path, mode: int) -> None:
    with private_files():
        write_whole(target, source.read_text())
    target.chmod(mode)


def _prepared(run: str, overrides: Sequence[str]) -> VcppoConfig:
    path = RunFolder(RUNS / run).config
    if not path.exists():
        raise RunError(f"{path} is not there: start with `docker compose up`, or `docker compose run --rm prepare`")
    return load_config(path, overrides)


# ---- roles


def prepare(run: str, overrides: Sequence[str], sink: LogSink, *, always_sft: bool = False) -> int:
    """The run's config, and the model it starts from."""
    path = Path(os.environ.get("VCPPO_CONFIG", "/config/run.yaml"))
    overrides = [*shlex.split(os.environ.get("VCPPO_SET", "")), *overrides]
    config, own_cold_start = run_config(path, run, overrides, device=os.environ.get("VCPPO_DEVICE", "cpu"))
    is_folder = not own_cold_start and (Path(config.model.path).is_absolute() or os.path.exists(config.model.path))
    require(config, CONTAINER["prepare"] | ({"model"} if is_folder else set()))
    folder = RunFolder(config.run.path)
    write_config(config, rename="RUN in .env")
    if given_keys() is None:
        share_keys(KEYS)
    if always_sft or (own_cold_start and not (folder.cold_start / "config.json").exists()):
        spec = ProcessSpec(
            "sft",
            [sys.executable, "-m", "vcppo.learner.cold_start.sft", "--config", str(folder.config), JSON_LOGS],
            role="sft",
            environment=_threads(None),
        )
        return _supervise(config, sink, spec)
    if not own_cold_start and not is_folder:
        command = [sys.executable, "-m", "vcppo.deploy.launch.fetch_model", config.model.path]
        return _supervise(config, sink, ProcessSpec("fetch", command, role="fetch", environment=_threads(1)))
    return EXIT_OK


def sft(run: str, overrides: Sequence[str], sink: LogSink) -> int:
    """The cold start's container: makes the starting policy anew even where there is one. Returns the exit code."""
    return prepare(run, overrides, sink, always_sft=True)


def buffer(run: str, overrides: Sequence[str], sink: LogSink) -> int:
    """The buffer's container: listens on all addresses, until it is stopped. Returns the exit code."""
    overrides = [*key_settings("buffer"), *overrides]
    config = _prepared(run, overrides)
    require(config, CONTAINER["buffer"])
    everywhere = config.transport.model_copy(update={"endpoints": [f"tcp://*:{BUFFER_PORT}"]})
    config = config.model_copy(update={"transport": everywhere})
    spec = Launcher(config, sink).buffer_specs()[0]
    spec = replace(spec, command=[*spec.command, *overrides])
    return _supervise(config, sink, spec, start_seconds=config.launcher.startup_deadline_seconds)


def generator(run: str, overrides: Sequence[str], sink: LogSink) -> int:
    """One generator's container, named by its host; the learner reaches it at `own_address`. Returns the exit code."""
    overrides = [*key_settings("generator"), *overrides]
    config = _prepared(run, overrides)
    require(config, CONTAINER["generator"])
    name = make_process_name("generator", socket.gethostname())
    claimed = _claim(config, name)
    spec = Launcher(config, sink, part=Part(0, 1), devices=claimed.devices).generator_spec(0)
    command = [name if word == spec.name else word for word in spec.command]
    spec = replace(
        spec,
        name=name,
        command=[*command, f"generator.control_host={own_address()}", *overrides],
        environment={**spec.environment, **_threads(1)},
        cores=None,
        niceness=0,
    )
    with closing(claimed):
        return _supervise(config, sink, spec, start_seconds=config.launcher.startup_deadline_seconds)


def learner(run: str, overrides: Sequence[str], sink: LogSink, *, until: str | None = None) -> int:
    """The learner's container, one a node; `until` names the last stage. Returns the exit code."""
    config = _prepared(run, overrides)
    require(config, CONTAINER["learner"])
    nodes = Nodes.from_environment(os.environ)
    here = config.learner.num_ranks // (1 if nodes is None else nodes.count)
    try:
        spec = Launcher(config, sink, part=Part(here, 0)).learner_spec(nodes)
    except PlacementError as error:
        raise PlacementError(
            f"{error}: give this container more of them (LEARNER_DEVICES in .env, nvidia.com/gpu on Kubernetes)"
        ) from None
    if nodes is not None and nodes.index > 0:
        spec = replace(
            spec, name=make_process_name("learner", f"node{nodes.index}")
        )  # a log file of its own in a folder that all share
    stages = [] if until is None else ["--until", until]
    spec = replace(
        spec,
        command=[*spec.command, *overrides, *stages],
        environment={**spec.environment, **_threads(config.learner.num_threads or None)},
        cores=None,
    )
    return _supervise(config, sink, spec, start_seconds=config.launcher.startup_deadline_seconds)


def value_pretraining(run: str, overrides: Sequence[str], sink: LogSink) -> int:
    """It sends weights too, and `docker compose run` gives its container no name that others could find."""
    return learner(run, [f"broadcast.host={own_address()}", *overrides], sink, until="value_pretraining")


def evaluation(run: str, overrides: Sequence[str], sink: LogSink) -> int:
    """Evaluate what there is and was not evaluated, then write the report."""
    from vcppo.deploy.evaluation.workers import current_result, evaluate, print_table
    from vcppo.deploy.report import write_report
    from vcppo.deploy.report.write import read_evals

    config = _prepared(run, overrides)
    folder = RunFolder(config.run.path)
    models = {"cold_start": Path(config.model.path), "export": folder.export}
    if not (folder.export / "config.json").exists():
        raise RunError(f"{folder.export} holds no model yet: the run is not done (`docker compose wait learner`)")
    if not models["cold_start"].exists():
        models.pop("cold_start")  # a hub's model: evaluate it with `vcppo eval` where it is
    missing = {
        name: path
        for name, path in models.items()
        if current_result(folder.eval / f"{name}.json", name, config, path) is None
    }
    if missing:
        evaluate(config, missing, sink)
    page = write_report(folder)
    if sys.stdout.isatty():
        print_table(read_evals(folder))
        print(f"\nreport  {page}")
    return EXIT_OK


ROLES: dict[str, Callable[[str, Sequence[str], LogSink], int]] = {
    "prepare": prepare,
    "sft": sft,
    "buffer": buffer,
    "generator": generator,
    "learner": learner,
    "value-pretraining": value_pretraining,
    "eval": evaluation,
}


# ---- one process


def own_address() -> str:
    """This container's address on the network it shares with Redis, where the learner reaches it too."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((REDIS, 6379))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise VcppoError(
            f"no way to the service {REDIS!r} ({error.strerror or error}): is it up? (`docker compose ps`)"
        ) from None


def _claim(config: VcppoConfig, who: str) -> Claim:
    """GPUs of this generator: of those its service was given, ones that no other container has. None on a CPU."""
    if not (devices := devices_of(config)):
        return Claim((), ())
    return claim(RunFolder(config.run.path).devices, devices, config.generator.tensor_parallel_size, who)


def _threads(default: int | None) -> dict[str, str]:
    """OMP threads: VCPPO_THREADS, else `default`, else one a core. Idle ones sleep: containers share cores."""
    chosen = int(os.environ.get("VCPPO_THREADS") or default or len(available_cores()))
    return thread_environment(chosen, shared=True)


def _supervise(config: VcppoConfig, sink: LogSink, spec: ProcessSpec, *, start_seconds: float = float("inf")) -> int:
    """Run one process to its end, or to SIGTERM and its end. Returns its exit code."""
    supervisor = Supervisor(
        sink,
        stop_deadline_seconds=_stop_deadline(config),
        start_deadline_seconds=start_seconds,
        backoff_seconds=config.launcher.restart_backoff_seconds,
        restart_window_seconds=config.launcher.restart_window_seconds,
    )
    room = watch_room(config)

    def tick() -> None:
        room.tick()
        _note_health(supervisor)

    supervisor.on_tick = tick
    with supervisor:
        child = supervisor.start(spec)
        try:
            supervisor.wait_exit(spec.name)
        except (Interrupted, ProcessFailed) as error:  # leaving stops what runs, in its own time
            log.info("ending", reason=str(error).partition("\n")[0])
    HEALTHY.unlink(missing_ok=True)
    code = EXIT_FAILURE if child.exit_code is None else child.exit_code
    return 128 - code if code < 0 else code


def _stop_deadline(config: VcppoConfig) -> float:
    """A little before the container is killed, so that there is time to say who did not stop."""
    given = os.environ.get("VCPPO_STOP_SECONDS")
    return max(1.0, float(given) - 5.0) if given else config.launcher.stop_deadline_seconds


def _note_health(supervisor: Supervisor) -> None:
    """The file is as old as the last second in which the process was up and ready."""
    if all(child.alive and child.ready for child in supervisor.children.values()):
        HEALTHY.touch()


if __name__ == "__main__":
    sys.exit(main())
