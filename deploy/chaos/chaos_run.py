"""`vcppo chaos` from its config to its verdict: a run of its own, the storm over it, the evidence, the table."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, VcppoError
from vcppo.common.run_folder import RunFolder
from vcppo.common.tasks import task_class
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.common.transport.ports import free_endpoint
from vcppo.deploy.chaos.chaos_page import Outcome, print_outcome, write_outcome
from vcppo.deploy.chaos.evidence import Check, checks, collect, process_checks
from vcppo.deploy.chaos.faults.hanging_task import FLAG_OPTION
from vcppo.deploy.chaos.faults.hanging_task import NAME as HANGING_TASK
from vcppo.deploy.chaos.faults.peers import ROLE as PEER_ROLE
from vcppo.deploy.chaos.faults.scene import Scene, freeze_seconds
from vcppo.deploy.chaos.injector import Injector
from vcppo.deploy.chaos.proxy import Address, Link, Links
from vcppo.deploy.chaos.schedule import Kind, schedule
from vcppo.deploy.chaos.storm import Storm
from vcppo.deploy.chaos.watch import Watch
from vcppo.deploy.demo import run_sft
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.supervisor import Interrupted
from vcppo.deploy.run.run_config import exclusive, write_config
from vcppo.deploy.terminal.session import Session, open_session

RECIPE = Path(__file__).parents[1] / "configs" / "chaos.yaml"
CLIENTS = ("learner", "generator", "buffer")  # of redis; each has a link of its own
PLAIN_TASK = "chain_arithmetic"
_MANY = 1_000_000
_RESTARTS = 20  # in a row
_BYTES_PER_TOKEN = 16  # of a message, as vcppo.common.config.checks counts


def chaos_config(path: Path, overrides: Sequence[str], seed: int) -> VcppoConfig:
    """The config as given, in a run folder of chaos' own, restarting without end, with a spool that can be filled."""
    given = load_config(path, overrides)
    name = _free_name(given.run.folder, f"{given.run.name}-chaos-{seed}")
    conversations = given.task.max_segments if task_class(given.task.name).is_agent else 1
    message_mib = conversations * given.generator.max_model_len * _BYTES_PER_TOKEN / 2**20
    own = [
        f"run.name={name}",
        f"rl.num_steps={_MANY}",
        *(f"launcher.{role}_restarts={_RESTARTS}" for role in ("generator", "learner", "buffer", "redis")),
        f"transport.max_message_mib={message_mib}",
        f"transport.spool_memory_mib={message_mib}",
        f"transport.spool_disk_mib={message_mib / 2}",
        f"transport.endpoints=[{', '.join(free_endpoint() for _ in given.transport.endpoints or [''])}]",
    ]
    if given.task.name == PLAIN_TASK:
        own += [f"task.name={HANGING_TASK}", f"task.options.{FLAG_OPTION}={given.run.folder / name / 'hang'}"]
    if not Path(given.model.path).expanduser().exists() and given.sft.phases:
        own.append(f"model.path={given.run.folder / name / 'cold_start'}")
    return load_config(path, [*overrides, *own])


def _free_name(folder: Path, base: str) -> str:
    """`base`, or with the next number behind it: chaos never touches a run that exists."""
    numbers = (
        int(m[1] or 1) for p in folder.glob(f"{base}*") if (m := re.fullmatch(rf"{re.escape(base)}(?:-(\d+))?", p.name))
    )
    last = max(numbers, default=0)
    return base if last == 0 else f"{base}-{last + 1}"


def possible_kinds(config: VcppoConfig, limit_seconds: float) -> list[Kind]:
    """Without an embedded server there is no redis process to hit; only a task of ours hangs when it is told to; and a
    frozen child must be noticed within the limit, which an agents' child is by ``task.max_rollout_seconds``."""
    without = set()
    if freeze_seconds("verifier", config) >= limit_seconds:
        without.add(Kind.FREEZE_VERIFIER)
    if config.redis.url is not None:
        without |= {kind for kind in Kind if kind.target == "redis"}
    if config.task.name not in (PLAIN_TASK, HANGING_TASK):
        without.add(Kind.HANG_VERIFIER)
    return [kind for kind in Kind if kind not in without]


class ChaosLauncher(Launcher):
    """The launcher as it is, its processes' connections led through links, its main wait being for the storm."""

    def __init__(self, config: VcppoConfig, sink: LogSink, links: Sequence[Link]) -> None:
        super().__init__(config, sink, self._tick)
        self._ports = {link.name: link.port for link in links}
        self.storm: Storm | None = None
        self.wanted: list[str] = []  # generators, when the storm was over

    def _tick(self) -> None:
        if self.storm is not None:
            self.storm.tick()

    def overrides(self, role: str) -> list[str]:
        """Through the links: to redis everybody, to the buffers the generators."""
        database = urlsplit(self.config.redis.url or "").path or "/0"
        found = [f"redis.url=redis://127.0.0.1:{self._ports[_redis_link(role)]}{database}", JSON_LOGS]
        if role == "generator":
            ports = [self._ports[_buffer_link(endpoint)] for endpoint in endpoints_of(self.config)]
            found.append(f"transport.endpoints=[{', '.join(f'tcp://127.0.0.1:{port}' for port in ports)}]")
        return found

    def follow(self) -> None:
        """Until the storm is over; whatever ends it, nothing stays frozen or cut off."""
        storm = self.storm
        assert storm is not None
        try:
            self.supervisor.wait(lambda: storm.over)
        finally:
            storm.abandon()
            self.wanted = sorted(self.generators())

    def generators(self) -> list[str]:
        """Those that should be up."""
        children = self.supervisor.children.values()
        return [child.spec.name for child in children if child.spec.role == "generator" and not child.stopping]

    def is_whole(self, members: Collection[str]) -> bool:
        """Whether every process that should be up is, and all generators took part in the last broadcast."""
        children = [c for c in self.supervisor.children.values() if not c.stopping and c.spec.role != PEER_ROLE]
        return all(child.alive and child.ready for child in children) and set(members) == set(self.generators())


def _redis_link(role: str) -> str:
    return f"redis-link of {role}"


def _buffer_link(endpoint: str) -> str:
    return f"buffer-link {endpoint}"


def make_links(config: VcppoConfig) -> list[Link]:
    """One link to each buffer, one to redis for each kind of client. VcppoError for a Redis it can't get between."""
    buffers = ((endpoint, urlsplit(endpoint)) for endpoint in endpoints_of(config))
    links = [
        Link(_buffer_link(endpoint), Address(host="127.0.0.1", port=parts.port or 0)) for endpoint, parts in buffers
    ]
    if config.redis.url is None:
        redis = Address(path=str(redis_server.socket_path(RunFolder(config.run.path).redis)))
    else:
        parts = urlsplit(config.redis.url)
        if parts.scheme != "redis" or parts.password:
            raise VcppoError(
                "redis.url: chaos can only cut plain redis:// connections; leave it out for an embedded server"
            )
        redis = Address(host=parts.hostname or "127.0.0.1", port=parts.port or 6379)
    return links + [Link(_redis_link(role), redis) for role in CLIENTS]


class Chaos:
    """One `vcppo chaos`."""

    def __init__(
        self,
        config: VcppoConfig,
        console: Console,
        *,
        minutes: float,
        seed: int,
        limit_seconds: float,
        kinds: Collection[Kind] = (),
    ) -> None:
        self.config, self.console = config, console
        self.minutes, self.seed, self.limit = minutes, seed, limit_seconds
        self.kinds = [kind for kind in possible_kinds(config, limit_seconds) if not kinds or kind in kinds]
        self.watch = Watch(RunFolder(config.run.path))

    def run(self) -> int:
        """Bring up, storm, rest, judge. Returns the exit code."""
        with exclusive(self.config.run.path):
            write_config(self.config)
            self._introduce()
            with open_session(self.config, "silent") as session:
                if not Path(self.config.model.path).expanduser().exists() and self.config.sft.phases:
                    self.tell("cold start: training the model the run begins with")
                    run_sft(self.config, session)
                outcome = self._storm(session)
            write_outcome(self.config.run.path, outcome)
            print_outcome(self.console, self.config.run.path, outcome)
        return EXIT_OK if outcome.passed else EXIT_FAILURE

    def tell(self, text: str) -> None:
        """One line on the terminal, as it is: no colours, no markup."""
        self.console.print(text, highlight=False, markup=False)

    def _introduce(self) -> None:
        self.tell(
            f"chaos, seed {self.seed}: {self.minutes:g} minutes of faults over a real run in {self.config.run.path}\n"
            f"after each fault the run must have made {self._steps_needed} new steps within {self.limit:g} s"
        )

    @property
    def _steps_needed(self) -> int:
        return self.config.rl.max_staleness + 2

    def _storm(self, session: Session) -> Outcome:
        all_links = make_links(self.config)
        launcher = ChaosLauncher(self.config, session.sink, all_links)
        session.sink.show = self.watch.see
        with Links(*all_links) as links:
            scene = Scene(self.config, launcher.supervisor, launcher, links, self.watch, self.limit)
            launcher.storm = storm = Storm(
                schedule(self.seed, self.kinds),
                Injector(scene),
                self.watch,
                minutes=self.minutes,
                limit_seconds=self.limit,
                steps_needed=self._steps_needed,
                start_seconds=2 * self.config.launcher.startup_deadline_seconds,
                is_whole=lambda: launcher.is_whole(self.watch.members),
                tell=self.tell,
            )
            self.tell("bringing the run up")
            try:
                launcher.run()
            except Interrupted:
                raise
            except VcppoError as error:
                storm.problems.append(f"the run ended: {error}")
        return self._judge(launcher, storm, scene.spoilt)

    def _judge(self, launcher: ChaosLauncher, storm: Storm, spoilt: Mapping[str, str]) -> Outcome:
        found = [
            Check("the run got over every fault", not storm.problems, "; ".join(storm.problems) or _slowest(storm))
        ]
        ledger = None
        try:
            evidence = collect(self.config)
        except VcppoError as error:
            found.append(Check("store readable", False, str(error)))
        else:
            ledger = evidence.ledger
            found += checks(evidence, self.config, spoilt)
        groups = ("learner",) if self.config.learner.num_ranks > 1 else ()
        bad_ends = self.watch.unexplained_ends({entry.target.split()[0] for entry in storm.entries}, groups)
        found += process_checks(self.watch.tracebacks, bad_ends, self.watch.members, launcher.wanted)
        return Outcome(
            seed=self.seed,
            minutes=self.minutes,
            limit_seconds=self.limit,
            seconds=storm.seconds,
            kinds=tuple(self.kinds),
            entries=tuple(storm.entries),
            checks=tuple(found),
            ledger=ledger,
            steps=self.watch.step,
            restarts={name: child.restarts.total for name, child in launcher.supervisor.children.items()},
        )


def _slowest(storm: Storm) -> str:
    times = [entry.recovered_after for entry in storm.entries if entry.recovered_after is not None]
    return f"{len(storm.entries)} faults, the slowest recovery took {max(times, default=0.0):.0f} s"


def plan(seed: int, kinds: Collection[Kind], count: int) -> list[str]:
    """The first faults of a schedule as lines, for `--plan`."""
    return [
        f"{fault.number:>3}  {fault.kind:<20} after {fault.gap_seconds:.1f} s of calm"
        + (", not waiting for the one before" if fault.overlaps else "")
        for fault in islice(schedule(seed, kinds), count)
    ]
