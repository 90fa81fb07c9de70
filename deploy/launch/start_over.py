"""`vcppo up --start-over STAGE`: what the stage and those after it have made moves aside, into <run>/before-N.

Nothing is deleted. What lies before the stage stays: the cold start, the reward model, keys, and with ``rl`` the
recording and critic of value pretraining. The embedded Redis' data go along, since the open prompts and the ledger in
them are of what was moved; so do the generators' spools.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vcppo.common.config import VcppoConfig
from vcppo.common.files.whole_file import move, write_whole
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_config import RunError, begun, check_config, next_place
from vcppo.deploy.run.run_data import JsonLinesTail

Stage = Literal["value_pretraining", "rl"]
STAGES: tuple[Stage, ...] = ("value_pretraining", "rl")


def start_over(config: VcppoConfig, stage: Stage) -> Path | None:
    """Move it. Returns where to; None when there was nothing. The caller holds the run (`run_config.exclusive`).

    Raises:
        RunError: the store is not the run's own, or still in use; or even what stays was made with other settings.
    """
    folder = RunFolder(config.run.path)
    now = begun(folder)
    check_config(config, replace(now, rl=False, recorded=now.recorded and stage == "rl"))
    if config.redis.url is not None:
        raise RunError(
            f"--start-over {stage}: the prompts of run {config.run.name!r} are in the Redis at redis.url, which is not "
            "this run's own: choose another run.name instead"
        )
    if redis_server.is_running(folder.redis):
        raise RunError(f"--start-over {stage}: a redis-server still serves {folder.redis}: stop that run first")
    made = [
        folder.checkpoints, folder.trained_log, folder.difficulty, folder.export, folder.exports,
        folder.evaluations, folder.redis, folder.spool,
        folder.report, folder.samples, folder.profiles, folder.metrics, folder.tensorboard,
        folder.path / "ledger.json",
        folder.path / "stages.jsonl",
    ]  # fmt: skip
    made += sorted(folder.eval.glob("export*"))
    made += [folder.explainable, folder.explainable_results]
    if stage == "value_pretraining":
        made.append(folder.value_pretraining)
    there = [path for path in made if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    if not there:
        return None
    place = next_place(folder)
    for path in there:
        target = place / path.relative_to(folder.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        move(path, target)
    if folder.config.exists():
        shutil.copyfile(folder.config, place / "config.yaml")
    if stage == "rl":
        _keep_rows_of_value_pretraining(RunFolder(place).metrics_file("learner"), folder)
    return place


def _keep_rows_of_value_pretraining(moved: Path, folder: RunFolder) -> None:
    """The curve of the critic that stays is shown by its metrics."""
    rows = [row for row in JsonLinesTail(moved).read() if row.get("stage") == "value_pretraining"]
    if rows:
        folder.metrics.mkdir(parents=True, exist_ok=True)
        write_whole(folder.metrics_file("learner"), "".join(json.dumps(row) + "\n" for row in rows))
