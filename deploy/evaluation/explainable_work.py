"""The processes of `vcppo explainable`, each started only for what is not there yet.

checkpoint ─▶ vcppo.learner.export ─▶ vcppo.generator.evaluation.continue_responses ×N ─▶ continuations
           └─▶ vcppo.learner.critic_values ─▶ values of the same prefixes
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.continuations import ContinuationFiles, Continued, Wanted
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.evaluation.evaluation_inputs import continuation_inputs
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.evaluation.explainable_results import Values
from vcppo.deploy.evaluation.policy_weights import PolicyWeights
from vcppo.deploy.evaluation.workers import run_to_their_ends, sampling_specs
from vcppo.deploy.logs.log_lines import JSON_LOGS
from vcppo.deploy.processes.cores import available_cores, thread_environment
from vcppo.deploy.processes.supervisor import ProcessSpec, Supervisor
from vcppo.deploy.run.run_config import RunError
from vcppo.deploy.run.run_data import read_json
from vcppo.deploy.terminal.session import Session

POSITIONS, CRITIC = "positions", "critic"


@dataclass(frozen=True)
class ExplainableWork:
    """What is to be there, and where it is."""

    config: VcppoConfig
    weights: PolicyWeights
    wanted: Wanted
    workers: int

    @property
    def folder(self) -> Path:
        """Of records, settings and the exported policy."""
        return RunFolder(self.config.run.path).explainable

    @property
    def files(self) -> ContinuationFiles:
        """The records of these weights and settings."""
        return ContinuationFiles(self.folder, plan_key(continuation_inputs(self.config, self.weights.name)))

    def continued(self, session: Session) -> Continued:
        """Responses and continuations, all that is wanted.

        Raises:
            RunError: no response goes on beyond any of the positions.
            VcppoError: a process failed, by name, or its records are damaged.
        """
        files, found = self.files, self.files.read()
        if not found.is_complete(self.wanted):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._settings, dump_config(self.config))
            with self._supervisor(session) as supervisor:
                self._export(supervisor)
                run_to_their_ends(supervisor, sampling_specs(self.config, "continue", self._commands()), self.config)
            found = files.read()
            if not found.is_complete(self.wanted):
                raise VcppoError(f"{self.folder}: records are missing or damaged: the same command makes them again")
        self._remove_export()
        lengths = found.lengths(self.wanted)
        if not any(length > position for length in lengths for position in self.wanted.positions if position):
            raise RunError(
                f"--{POSITIONS} {','.join(str(each) for each in self.wanted.positions if each)}: no response goes on"
                f" beyond any of them; the longest of {len(lengths)} has {max(lengths, default=0)} tokens. Choose"
                " smaller positions: the responses are kept, so only the continuations are made"
            )
        return found

    def values(self, session: Session, found: Continued) -> Values | None:
        """The critic's V at each position; None for a run without a critic.

        Raises:
            VcppoError: the process failed.
        """
        if self.weights.critic is None:
            return None
        path = self.folder / f"{self.files.plan}.values.json"
        if (there := self._read_values(path, found)) is not None:
            return there
        write_whole(self._settings, dump_config(self.config))
        partial = path.with_suffix(".new")
        positions = ",".join(map(str, self.wanted.positions))
        checkpoint = [] if self.weights.checkpoint is None else ["--checkpoint", str(self.weights.checkpoint)]
        words = [
            "vcppo.learner.critic_values", "--config", str(self._settings), "--folder", str(self.folder), "--plan",
            self.files.plan, "--positions", positions, "--output", str(partial), *checkpoint, JSON_LOGS,
        ]  # fmt: skip
        with self._supervisor(session) as supervisor:
            self._run_learner(supervisor, "critic_values", words, self.config.learner.num_ranks)
        write_whole(path, json.dumps({CRITIC: self.weights.critic, "values": read_json(partial)}) + "\n")
        partial.unlink(missing_ok=True)
        if (made := self._read_values(path, found)) is None:
            raise VcppoError(f"{path}: values are missing: the same command makes them again")
        return made

    def _read_values(self, path: Path, found: Continued) -> Values | None:
        """Those of this critic, if they are of all that is wanted."""
        there = read_json(path) or {}
        values = there.get("values")
        if there.get(CRITIC) != self.weights.critic or not isinstance(values, dict):
            return None
        read: Values = {}
        for position in self.wanted.positions:
            for problem in found.problems_at(position, self.wanted):
                of_problem = values.get(str(problem))
                value = of_problem.get(str(position)) if isinstance(of_problem, dict) else None
                if not isinstance(value, float):
                    return None
                read.setdefault(problem, {})[position] = value
        return read

    @property
    def _settings(self) -> Path:
        return self.folder / "config.yaml"

    def _commands(self) -> dict[str, list[str]]:
        wanted = self.wanted
        words = [
            "vcppo.generator.evaluation.continue_responses", "--config", str(self._settings),
            "--model", self.weights.model, "--weights", self.weights.name, "--folder", str(self.folder),
            "--positions", ",".join(map(str, wanted.positions)), "--responses", str(wanted.num_responses),
            "--continuations", str(wanted.num_continuations), "--num-workers", str(self.workers),
        ]  # fmt: skip
        return {make_process_name("continue", w): [*words, "--worker", str(w)] for w in range(self.workers)}

    def _export(self, supervisor: Supervisor) -> None:
        """The checkpoint's policy as a model folder, which is whole or not there."""
        if self.weights.checkpoint is None or (Path(self.weights.model) / "config.json").exists():
            return
        words = ["vcppo.learner.export", "--checkpoint", str(self.weights.checkpoint), "--output", self.weights.model]
        self._run_learner(supervisor, "export", [*words, "--config", str(self._settings)], num_ranks=1)

    def _remove_export(self) -> None:
        """It is as large as the model, and can be made again."""
        if self.weights.checkpoint is not None:
            shutil.rmtree(self.weights.model, ignore_errors=True)

    def _run_learner(self, supervisor: Supervisor, name: str, words: Sequence[str], num_ranks: int) -> None:
        """A program of the learner."""
        cores = available_cores()
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks), "-m"]
        command = [sys.executable, "-m", *(torchrun if num_ranks > 1 else []), *words]
        threads = self.config.learner.num_threads or max(1, len(cores) // num_ranks)
        supervisor.start(ProcessSpec(name, command, role=name, environment=thread_environment(threads, shared=True)))
        supervisor.wait_exit(name)

    @contextmanager
    def _supervisor(self, session: Session) -> Iterator[Supervisor]:
        with Supervisor(
            session.sink,
            stop_deadline_seconds=self.config.launcher.stop_deadline_seconds,
            start_deadline_seconds=float("inf"),  # they have no `ready`; their own deadlines hold
            on_tick=session.tick,
        ) as supervisor:
            yield supervisor
