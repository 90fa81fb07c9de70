"""The real learner process, which one prompt's trajectory ends: ``python poisoned_learner.py HOW PROMPT --config …``.

HOW: ``raises`` from the models' input, ``nan`` out of the policy, ``kills`` the process, ``together``: raises, but only
when it is not alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.integration.rig.learner_process import NoMemberBroadcaster
from vcppo.common.process.end_process import end_process
from vcppo.learner.__main__ import main
from vcppo.learner.batching import batch
from vcppo.learner.rl import loop, suspects


def poison(how: str, prompt_id: str) -> None:
    build, score = batch.build_packed, suspects.compute_log_probs

    def build_packed(trajectories: Sequence[Any], members: Sequence[int]) -> Any:
        if prompt_id in [trajectories[member].prompt_id for member in members]:
            if how == "kills":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raises" or (how == "together" and len(trajectories) > 1):
                raise IndexError("index out of range in self")
        return build(trajectories, members)

    def compute_log_probs(policy: Any, packer: Any, temperature: float) -> Any:
        found = score(policy, packer, temperature)
        if prompt_id not in packer.batch.prompt_ids:
            return found
        return found._replace(log_probs=np.full_like(found.log_probs, np.nan))

    batch.build_packed = build_packed
    if how == "nan":
        loop.compute_log_probs = suspects.compute_log_probs = compute_log_probs


if __name__ == "__main__":
    poison(sys.argv[1], sys.argv[2])
    end_process(main(sys.argv[3:], NoMemberBroadcaster))
