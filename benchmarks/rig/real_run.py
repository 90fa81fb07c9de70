"""A whole run brought up by `vcppo up`: the demo with random weights, for `overlap`, `growth` and `soak` to watch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import REPOSITORY
from benchmarks.rig.real_parts import DEMO, demo_architecture, write_model
from vcppo.common.config import load_config
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_data import RunData

STOPPED = 1  # what `vcppo up` ends with when its learner was stopped from outside
_STOP_SECONDS = 60.0


class RunFailed(RuntimeError):
    """The run under measurement ended badly: figures of it would mean nothing."""


class RealRun:
    """Runs under one temporary folder that share one set of random weights.

    Steps of size 1e-9 leave the weights as they are, and with them the lengths of responses: each step is much the same
    work, whatever the settings compared do to learning.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model"
        self._always = [
            "-c", str(DEMO), f"run.folder={root}", f"model.path={self.model}",
            "value_pretraining.num_trajectories=0", "critic.init=policy", "learner.checkpoint_every=1000",
            "generator.max_in_flight=32",
            "rl.actor_learning_rate=1e-9", "rl.critic_learning_rate=1e-9", "launcher.learner_restarts=0",
        ]  # fmt: skip
        write_model(self.model, demo_architecture(), "float32")

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.root / name)

    def up(
        self,
        name: str,
        *overrides: str,
        on_tick: Callable[[], None] | None = None,
        tick_seconds: float = 1.0,
        stops_early: bool = False,
    ) -> RunData:
        """Bring run `name` up and follow it to its end. Raises RunFailed with its last lines.

        Args:
            on_tick: called about every `tick_seconds`.
            stops_early: `on_tick` ends the run by stopping its learner; that is no failure then.
        """
        good = (0, STOPPED) if stops_early else (0,)
        words = [sys.executable, "-m", "vcppo.deploy.cli", "up", *self._always, f"run.name={name}", *overrides]
        load_config(DEMO, words[6:])  # a wrong setting fails here, by name
        with subprocess.Popen(
            words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_whole_machine()
        ) as up:
            try:
                output = _follow(up, on_tick, tick_seconds)
            except BaseException:
                up.send_signal(signal.SIGINT)
                up.wait(_STOP_SECONDS)
                raise
        if up.returncode not in good:
            raise RunFailed(f"vcppo up ended with {up.returncode}:\n{output[-2000:].decode(errors='replace')}")
        return RunData.load(self.folder(name))


def _follow(up: subprocess.Popen[bytes], on_tick: Callable[[], None] | None, tick_seconds: float) -> bytes:
    while True:
        try:
            return up.communicate(timeout=tick_seconds)[0]
        except subprocess.TimeoutExpired:
            if on_tick is not None:
                on_tick()


def _whole_machine() -> dict[str, str]:
    """Without the thread counts of a benchmark's own process: the launcher gives its children theirs."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
