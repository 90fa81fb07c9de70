"""One learner rank of `cases.processes`, under torchrun: steps of a fixed batch; rank 0 writes their seconds.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m benchmarks.rig.rank_worker MODEL ROUNDS RESULT
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import cast

import structlog
import torch

from benchmarks.rig.workload import log_normal_lengths, random_trajectories
from vcppo.common.config import VcppoConfig
from vcppo.common.process.end_process import end_process
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.engine.deepspeed_engine import (
    EngineOptions,
    TrainEngine,
    barrier,
    init_distributed,
    num_ranks,
    rank,
    shutdown_distributed,
)
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.rl.loop import Models, RlLoop
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.publish import Broadcaster

NUM_SEQUENCES = 24
NUM_VOCAB = 24


def main(model: Path, rounds: int, result: Path) -> None:
    """Steps of `rig.workload`'s batch; each rank on a core of its own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["LOCAL_RANK"]) % len(cores)]})
    torch.set_num_threads(1)
    init_distributed("cpu")
    config = VcppoConfig.model_validate({"model": {"path": str(model), "dtype": "float32"}, "rl": {"batch_size": 24}})
    options = EngineOptions.from_config(config)
    actor = TrainEngine(load_policy(model, dtype=torch.float32), learning_rate=1e-9, options=options)
    critic = TrainEngine(load_critic(model, dtype=torch.float32), learning_rate=1e-9, options=options)
    share = Share(rank(), num_ranks(), config.learner.micro_batch_tokens)
    loop = RlLoop(config, Models(actor, critic), share, cast(Broadcaster, None), None)
    batch = Batch(random_trajectories(log_normal_lengths(NUM_SEQUENCES), NUM_VOCAB), 0)
    seconds = []
    for _ in range(1 + rounds):
        barrier()
        started = time.perf_counter()
        loop.train(batch, Phases())
        barrier()
        seconds.append(time.perf_counter() - started)
    if rank() == 0:
        result.write_text(json.dumps(seconds[1:]))  # the first warms up
    shutdown_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    end_process(0)
