"""Where everything of one run lies. Paths only: nothing is created but by `create`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# In the folder of value pretraining.
RECORD_FILE = "trajectories.msgpack"
RECORDED_WITH_FILE = "recorded_with.json"
DECISION_FILE = "decision.json"
CRITIC_FOLDER = "critic"
ADOPTED_FILE = "adopted.json"

_CHECKPOINT = re.compile(r"step-(\d{6,18})", re.ASCII)


def checkpoint_step(folder: Path) -> int | None:
    """The step in the name of a published checkpoint's folder; None: it is none."""
    found = _CHECKPOINT.fullmatch(folder.name)
    return None if found is None else int(found[1])


def checkpoints_in(root: Path) -> dict[int, Path]:
    """Step -> published checkpoint, in the order of steps. Other names in the folder are not looked at."""
    steps = ((checkpoint_step(path), path) for path in root.glob("step-*"))
    return dict(sorted((step, path) for step, path in steps if step is not None))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The layout below ``<run.folder>/<run.name>``; ask it for a path, never spell one out."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config tree, written by the launcher, read by every process."""
        return self.path / "config.yaml"

    @property
    def cold_start(self) -> Path:
        """Hugging Face folder `vcppo sft` writes."""
        return self.path / "cold_start"

    @property
    def reward_model(self) -> Path:
        """Hugging Face folder `vcppo reward-model` writes."""
        return self.path / "reward_model"

    @property
    def value_pretraining(self) -> Path:
        """Recorded trajectories, the best critic and decision.json."""
        return self.path / "value_pretraining"

    @property
    def checkpoints(self) -> Path:
        """Learner checkpoints, one folder per step."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """Hugging Face folder of the trained policy."""
        return self.path / "export"

    @property
    def exports(self) -> Path:
        """Hugging Face folders of versions on the way: ``step-N``, ``best`` and ``last``."""
        return self.path / "exports"

    @property
    def evaluations(self) -> Path:
        """JSON lines: figures of each evaluation during training (`vcppo.common.evaluation.on_the_way`)."""
        return self.path / "evaluations.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON-lines file per service."""
        return self.path / "metrics"

    @property
    def tensorboard(self) -> Path:
        """One folder of event files per service."""
        return self.path / "tensorboard"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def eval(self) -> Path:
        """pass@k results, one JSON file per evaluated model."""
        return self.path / "eval"

    @property
    def explainable(self) -> Path:
        """Responses and continuations of `vcppo explainable`."""
        return self.path / "explainable"

    @property
    def explainable_results(self) -> Path:
        """What `vcppo explainable` has found, a row a policy version and position."""
        return self.path / "explainable.json"

    @property
    def report(self) -> Path:
        """The page of results and its figures."""
        return self.path / "report"

    @property
    def redis(self) -> Path:
        """Data of the embedded redis-server: append-only file, socket, pid."""
        return self.path / "redis"

    @property
    def spool(self) -> Path:
        """Unacknowledged trajectories of generators, one folder per sender."""
        return self.path / "spool"

    @property
    def processes(self) -> Path:
        """A note of each process that works on the run and lives (`vcppo.common.process.living`)."""
        return self.path / ".processes"

    @property
    def devices(self) -> Path:
        """Which generator container has which GPU, as locks (`vcppo.deploy.placement.claims`)."""
        return self.path / ".devices"

    @property
    def trained_log(self) -> Path:
        """JSON lines: step, trained prompt and trajectory ids, staleness."""
        return self.path / "trained.jsonl"

    @property
    def difficulty(self) -> Path:
        """JSON lines: which problem each group asks, and what each step has shown of them (rl.difficulty)."""
        return self.path / "difficulty.jsonl"

    @property
    def samples(self) -> Path:
        """Some responses of each RL step, one file a step (`vcppo samples`)."""
        return self.path / "samples"

    @property
    def profiles(self) -> Path:
        """Traces and flame graphs of the steps in learner.profile_steps."""
        return self.path / "profiles"

    @property
    def endpoints(self) -> Path:
        """Where the buffers of the last launch listen, when the launcher chose (`vcppo.common.transport.endpoints`)."""
        return self.path / "endpoints.json"

    @property
    def has_trained(self) -> bool:
        """Whether a step of RL was done."""
        log = self.trained_log
        return (log.exists() and log.stat().st_size > 0) or any(self.checkpoints.glob("step-*"))

    def create(self) -> RunFolder:
        """Make the folders every process writes to; existing ones are kept."""
        for folder in (self.path, self.metrics, self.logs, self.checkpoints, self.eval):
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def log_file(self, process: str) -> Path:
        """Log of one process, e.g. ``generator-0``."""
        return self.logs / f"{process}.jsonl"

    def stacks_file(self, process: str) -> Path:
        """Where the watchdog writes the stacks of a process that is stuck."""
        return self.logs / f"{process}.stacks.txt"

    def metrics_file(self, service: str) -> Path:
        """Metrics of one service, e.g. ``learner``."""
        return self.metrics / f"{service}.jsonl"

    def tracker_position(self, service: str, tracker: str) -> Path:
        """How far a tracker has been told of a service's metrics; beside them, so that it goes where they go."""
        return self.metrics / "trackers" / f"{service}.{tracker}.json"
