"""The run's critic, and what it says of given states: for `vcppo explainable`.

    python -m vcppo.learner.critic_values --config FILE --folder DIR --plan PLAN --positions 8,40 --output FILE.json
                                          [--checkpoint RUN/checkpoints/step-000020]

Reads responses (`vcppo.common.evaluation.continuations`) and writes V of the state after each number of tokens:
problem → position → value. With a checkpoint its critic, otherwise the one RL starts from. Under torchrun every rank
computes its share, as in training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.continuations import ContinuationFiles, Response
from vcppo.common.files.whole_file import write_whole
from vcppo.common.process.end_process import end_process
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.records.trajectory import Trajectory, VersionSpan
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.critic_model.critic_engine import make_rl_critic
from vcppo.learner.engine.checkpoint import verify
from vcppo.learner.engine.deepspeed_engine import (
    TrainEngine,
    init_distributed,
    num_ranks,
    rank,
    shutdown_distributed,
)
from vcppo.learner.engine.distributed import share_sequences
from vcppo.learner.engine.forward import compute_values
from vcppo.learner.models.base_model import check_base_models

log = structlog.get_logger(__name__)


def values_at(
    critic: TrainEngine, responses: Sequence[Response], positions: Sequence[int], share: Share
) -> dict[int, dict[int, float]]:
    """problem → position → V of the state after so many tokens of its response; none beyond its last token."""
    batch = Batch([_trajectory(each) for each in responses], version=0)
    values, _ = compute_values(critic, Packer(batch, share))
    return {
        response.problem: {
            position: float(values[start + position]) for position in positions if position < len(response.tokens)
        }
        for response, start in zip(responses, batch.action_cu_seqlens, strict=False)
    }


def _trajectory(response: Response) -> Trajectory:
    """As a critic sees it: tokens matter, and what they were sampled with where it is known."""
    name, length = str(response.problem), len(response.tokens)
    return Trajectory(
        id=name,
        prompt_id=name,
        group_id=name,
        sample_index=0,
        task="",
        prompt_token_ids=np.array(response.prompt, np.int32),
        response_token_ids=np.array(response.tokens, np.int32),
        action_mask=np.ones(length, np.bool_),
        behaviour_log_probs=np.array(response.log_probs or np.zeros(length), np.float32),
        version_spans=(VersionSpan(0, length),),
        finish_reason=response.finish_reason,
        reward=response.reward,
        outcome=response.outcome,
        generator_id="",
        issue_version=0,
    )


def write_values(config: VcppoConfig, given: argparse.Namespace) -> None:
    """Load the critic, compute, write the file.

    Raises:
        VcppoError: there are no responses, or the critic sees log-probs and one has none, or the checkpoint can't be
            loaded.
    """
    found = ContinuationFiles(given.folder, given.plan).read().responses
    if not found:
        raise VcppoError(f"{given.folder} has no responses of plan {given.plan}: vcppo explainable makes them first")
    if config.critic.sees_log_probs and any(each.log_probs is None for each in found.values()):
        raise VcppoError(
            f"{given.folder}: responses of plan {given.plan} are of an earlier version and have no log-probs, which"
            f" critic.sees_log_probs = true needs: remove {given.folder / given.plan}.*.jsonl, and vcppo explainable"
            " makes them anew"
        )
    init_distributed(config.learner.device)
    critic = make_rl_critic(config)
    if given.checkpoint is not None:
        verify(given.checkpoint)
        check_base_models(given.checkpoint, config, "critic")
        critic.load(given.checkpoint / "critic")
    learner = config.learner
    share_sequences(learner.sequence_parallel_size)
    share = Share(rank(), num_ranks(), learner.micro_batch_tokens, learner.sequence_parallel_size)
    values = values_at(critic, [found[problem] for problem in sorted(found)], given.positions, share)
    if rank() == 0:
        write_whole(given.output, json.dumps(values) + "\n")
        log.info("critic_values_done", responses=len(values), output=str(given.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = process_parser("python -m vcppo.learner.critic_values", "what the critic says of given states")
    parser.add_argument("--folder", type=Path, required=True, help="where the responses are")
    parser.add_argument("--plan", required=True, help="which of them")
    parser.add_argument("--positions", type=lambda text: [int(each) for each in text.split(",")], required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="a folder of <run>/checkpoints; default: the critic before RL")
    given = parser.parse_args(arguments)
    return run_process(
        given, "critic_values", lambda config: write_values(config, given), at_end=shutdown_distributed, holds_run=False
    )


if __name__ == "__main__":
    end_process(main())
