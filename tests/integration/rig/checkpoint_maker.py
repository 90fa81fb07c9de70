"""A checkpoint as RL leaves it, without RL: weights moved at random, engines' own files, and plain copies to compare.

python -m tests.integration.rig.checkpoint_maker CONFIG STEP     also RUN/actor_of_step, RUN/critic_of_step
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from vcppo.common.config import load_config
from vcppo.common.process.end_process import end_process
from vcppo.common.run_folder import RunFolder
from vcppo.learner.critic_model.critic_engine import make_rl_critic
from vcppo.learner.engine.checkpoint import CheckpointState, CheckpointStore
from vcppo.learner.engine.deepspeed_engine import init_distributed, shutdown_distributed
from vcppo.learner.export import make_actor
from vcppo.learner.models.models import save_model


def main(config_file: str, step: int) -> int:
    config = load_config(Path(config_file))
    folder = RunFolder(config.run.path)
    init_distributed(config.learner.device)
    engines = {"actor": make_actor(config), "critic": make_rl_critic(config)}
    torch.manual_seed(step)
    store = CheckpointStore(folder.checkpoints, keep=2)
    staging = store.begin(step)
    for name, engine in engines.items():
        with torch.no_grad():
            for parameter in engine.module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        save_model(engine.module, folder.path / f"{name}_of_step")
        engine.save(staging / name)
    store.publish(CheckpointState(step, {}, [], "", 1, config.learner.zero_stage))
    shutdown_distributed()
    return 0


if __name__ == "__main__":
    end_process(main(sys.argv[1], int(sys.argv[2])))
