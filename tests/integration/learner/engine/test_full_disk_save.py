"""DeepSpeed's own writing on a disk that is full: it comes through, says so afterwards, and can be done again.

Run as a script this file is the worker: engines are one process's affair.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.paths import ROOT


def run_worker(folder: Path, disk: Path, stage: int) -> None:
    import torch

    from tests.unit.rig.learner_samples import save_tiny_policy
    from vcppo.common.files.room import shortage_of
    from vcppo.deploy.chaos.shortages import FilledDisk
    from vcppo.learner.engine.checkpoint import save_rng
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, init_distributed, shutdown_distributed
    from vcppo.learner.models.models import load_policy

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=60)
    options = EngineOptions(zero_stage=stage)  # type: ignore[arg-type]
    engine = TrainEngine(load_policy(save_tiny_policy(folder / "model")), learning_rate=1e-3, options=options)
    full = FilledDisk(disk)
    full.strike()
    (disk / ".filled-by-chaos").open("ab").truncate((disk / ".filled-by-chaos").stat().st_size - 8192)  # room for half
    for write in (lambda: engine.save(disk / "actor"), lambda: save_rng(disk, 0)):
        with pytest.raises(Exception) as caught:
            write()
        found = shortage_of(caught.value, disk)
        assert found is not None and found.resource == "disk space", repr(caught.value)
    full.undo()
    shutil.rmtree(disk / "actor", ignore_errors=True)
    engine.save(disk / "actor")
    engine.load(disk / "actor")
    save_rng(disk, 0)
    shutdown_distributed()


@pytest.mark.parametrize("stage", [2])
def test_a_checkpoint_without_room_fails_by_name_and_is_written_again(tmp_path: Path, stage: int) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        command = [sys.executable, str(Path(__file__)), str(tmp_path), str(disk), str(stage)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
