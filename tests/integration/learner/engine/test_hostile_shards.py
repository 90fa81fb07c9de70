"""DeepSpeed's files, exchanged for ones that run code or are damaged, at every ZeRO stage: refused, and nothing runs.

The manifest's sums come first (`tests/unit/learner/engine/test_hostile_checkpoints.py`). This is what stands behind
them. Run as a script this file is the worker: engines are one process's affair.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.paths import ROOT

NUM_DAMAGES = 25


class Intruder:
    """Unpickling it runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def run_worker(folder: Path, stage: int) -> None:
    import torch

    from tests.unit.rig.learner_samples import save_tiny_policy
    from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, init_distributed, shutdown_distributed
    from vcppo.learner.models.models import load_policy

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=60)
    options = EngineOptions(zero_stage=stage)  # type: ignore[arg-type]
    engine = TrainEngine(load_policy(save_tiny_policy(folder / "model")), learning_rate=1e-3, options=options)
    saved, broken, trace = folder / "saved", folder / "broken", folder / "ran"
    engine.save(saved)
    engine.load(saved)
    files = sorted(saved.rglob("*.pt"))
    assert len(files) >= (2 if stage else 1)
    for file in files:
        name = file.relative_to(saved)
        torch.save({"module": Intruder(trace)}, folder / "zipped")
        (folder / "plain").write_bytes(pickle.dumps({"module": Intruder(trace)}))
        for kind in ("zipped", "plain"):
            must_refuse(engine, exchanged(saved, broken, name, (folder / kind).read_bytes()))
        rng = Random(f"{stage} {name}")
        for _ in range(NUM_DAMAGES):
            may_refuse(engine, exchanged(saved, broken, name, damaged(rng, file.read_bytes())))
        assert not trace.exists(), f"{name} ran code"
    with pytest.raises(Exception, match=r"[Ww]eights[ _]only"):
        torch.load(folder / "zipped", weights_only=False)  # as DeepSpeed asks in places
    assert not trace.exists()
    engine.load(saved)
    shutdown_distributed()


def exchanged(saved: Path, broken: Path, name: Path, data: bytes) -> Path:
    shutil.rmtree(broken, ignore_errors=True)
    shutil.copytree(saved, broken)
    (broken / name).write_bytes(data)
    return broken


def must_refuse(engine: Any, folder: Path) -> None:
    from vcppo.common.errors import VcppoError

    with pytest.raises(VcppoError, match=r"checkpoint .*broken can't be loaded"):
        engine.load(folder)


def may_refuse(engine: Any, folder: Path) -> None:
    """A changed weight is for the manifest to see; any error must be ours."""
    from vcppo.common.errors import VcppoError

    with suppress(VcppoError):
        engine.load(folder)


def damaged(rng: Random, data: bytes) -> bytes:
    buffer = bytearray(data)
    kind = rng.randrange(4)
    if kind == 0:
        del buffer[rng.randrange(len(buffer)) :]
    elif kind == 1:
        at = rng.randrange(len(buffer))
        del buffer[at : at + rng.choice((1, 64, 4096))]
    else:
        for _ in range(rng.choice((1, 8, 64))):
            buffer[rng.randrange(min(len(buffer), 4096) if kind == 2 else len(buffer))] ^= 1 << rng.randrange(8)
    return bytes(buffer)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shards_cannot_run_code(tmp_path: Path, stage: int) -> None:
    command = [sys.executable, str(Path(__file__)), str(tmp_path), str(stage)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), int(sys.argv[2]))
