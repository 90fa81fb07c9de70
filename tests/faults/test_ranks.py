"""A learner rank that dies: the others' collective ends with a line that says so, not with a traceback or a hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.paths import ROOT
from vcppo.common.transport.ports import free_port

SCRIPT = """
import os, signal, sys
import numpy as np
from vcppo.learner.engine.distributed import init_distributed, lost_peer, num_ranks, rank, sum_over_ranks
init_distributed("cpu", timeout_seconds=60.0)
assert sum_over_ranks(np.ones(3)).tolist() == [2.0] * 3
if rank() == 1:
    os.kill(os.getpid(), signal.{name})
try:
    for _ in range(10):
        sum_over_ranks(np.ones(1_000_000))
except RuntimeError as error:
    print(lost_peer(error), flush=True)
    print(lost_peer(ValueError("shapes do not match")), flush=True)
    os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_survivor_says_that_it_lost_a_rank() -> None:
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(name="SIGKILL")],
            cwd=ROOT, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said, _ = ranks[0].communicate(timeout=100)
    assert ranks[1].wait(10) == -signal.SIGKILL
    assert "learner rank 0 lost another of the 2 ranks" in said
    assert said.splitlines()[-1] == "None"  # another error is not taken for it
