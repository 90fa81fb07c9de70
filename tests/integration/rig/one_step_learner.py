"""The learner's side of one RL step, for real: it claims what the buffer stored, with a critic that says .5 anywhere.

    python one_step_learner.py CONFIG MODEL OUT        (under torchrun for several ranks)

Rank 0 writes what the step was trained with into the folder OUT, a file a level of ``algorithm.advantage_level``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def constant_critic(folder: Path) -> Any:
    """A real critic whose head is a constant."""
    from vcppo.learner.models.models import load_critic
    from vcppo.learner.models.value_head import ValueHead

    critic = load_critic(folder)
    head = ValueHead(critic.hf_model.score.in_features, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.constant_(head.bias, 0.5)
    critic.hf_model.score = head
    return critic


def main(config_file: Path, model: Path, out: Path) -> None:
    from vcppo.common.config import load_config
    from vcppo.common.store.run_store import RunStore
    from vcppo.learner.batching.batch import Batch, Packer, Share
    from vcppo.learner.engine.deepspeed_engine import (
        EngineOptions,
        TrainEngine,
        broadcast_object,
        init_distributed,
        num_ranks,
        rank,
        shutdown_distributed,
    )
    from vcppo.learner.models.models import load_policy
    from vcppo.learner.rl.loop import Models, RlLoop
    from vcppo.learner.rl.phases import Phases

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    for level in ("token", "turn"):
        config = load_config(config_file, [f"algorithm.advantage_level={level}"])
        claimed = None
        if rank() == 0:
            store = RunStore.connect(config.redis.url, config.run.name, 10.0)
            buffered = sorted(each.prompt_id for each in store.outstanding())
            claimed = store.claim(buffered, 1)  # the same ids for the same step again: as after a crash
        batch = Batch.decode(broadcast_object(claimed), 0)
        options, share = EngineOptions(), Share(rank(), num_ranks(), config.learner.micro_batch_tokens)
        actor = TrainEngine(load_policy(model), learning_rate=1e-3, options=options)
        critic = TrainEngine(constant_critic(model), learning_rate=1e-3, options=options)
        nobody: Any = None  # to send weights to
        loop = RlLoop(config, Models(actor, critic), share, nobody, None)
        found, _ = loop.train(batch, Phases())
        cu = batch.action_cu_seqlens
        written = {
            each.prompt_id: {
                "masked": int((~each.action_mask).sum()),
                "advantages": found.raw_advantages[cu[i] : cu[i + 1]].tolist(),
                "targets": found.value_targets[cu[i] : cu[i + 1]].tolist(),
                "turn_rewards": each.turn_rewards,
            }
            for i, each in enumerate(batch.trajectories)
        }
        if rank() == 0:
            packs = [len(micro.packed.sequence_index) for micro in Packer(batch, share).whole]
            (out / f"{level}_{num_ranks()}.json").write_text(json.dumps({"packs": packs, "trajectories": written}))
    shutdown_distributed()


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:]))
