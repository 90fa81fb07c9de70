"""Responses of RL steps with what the learner made of them, kept for people: ``samples/step-000012.parquet``.

All of a small batch; of a large one some of all kinds: outcomes and finish reasons take turns, the rarest first, so
that the one right response of a batch is among them. Which ones follows from the batch alone, so a step that is done
again keeps the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate, takewhile, zip_longest
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.config import MetricsConfig
from vcppo.common.model_folder.pieces import pieces_of
from vcppo.common.records.sample_table import SampleRow, TokenNumbers, write_samples
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.batching.batch import Batch
from vcppo.learner.rl.estimates import Estimates

log = structlog.get_logger(__name__)


def choose_samples(trajectories: Sequence[Trajectory], count: int, max_tokens: int) -> list[int]:
    """At most `count` of them by place, the kinds (outcome and finish reason) in turn, the rarest first.

    Args:
        max_tokens: of prompts and responses together; the first one is chosen in any case.
    """
    kinds: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number in sorted(range(len(trajectories)), key=lambda number: _place(trajectories[number])):
        kinds[trajectories[number].outcome, trajectories[number].finish_reason].append(number)
    by_rarity = sorted(kinds.values(), key=len)
    in_turn = [each for turn in zip_longest(*by_rarity) for each in turn if each is not None][:count]
    sizes = accumulate(trajectories[number].num_tokens for number in in_turn)
    num_within = sum(1 for _ in takewhile(lambda size: size <= max_tokens, sizes))
    return in_turn[: max(1, num_within)]


class SampleWriter:
    """Rank 0: one file a step, whole or not there. When all of them are too large the oldest but the first go.

    Args:
        tokenizer: the policy's: texts are written, so that whoever reads them needs none.
    """

    def __init__(self, folder: Path, config: MetricsConfig, tokenizer: Any) -> None:
        self._folder, self._config, self._tokenizer = folder, config, tokenizer

    def write(self, step: int, batch: Batch, estimates: Estimates, *, has_critic: bool) -> None:
        """Keep some of the step. A disk that refuses costs the samples, not the step."""
        config = self._config
        if not config.samples_per_step:
            return
        path = self._folder / f"step-{step:06d}.parquet"
        chosen = choose_samples(batch.trajectories, config.samples_per_step, config.samples_tokens)
        rows = [self._row(step, number, batch, estimates, has_critic=has_critic) for number in chosen]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_samples(path, rows)
            self._remove_oldest()
        except OSError as error:
            log.warning("samples_not_written", step=step, file=str(path), error=str(error))

    def _row(self, step: int, number: int, batch: Batch, estimates: Estimates, *, has_critic: bool) -> SampleRow:
        made, cu = batch.trajectories[number], batch.action_cu_seqlens
        here = slice(int(cu[number]), int(cu[number + 1]))
        prompt, response, pieces = self._texts(made)
        return SampleRow(
            step=step,
            trajectory=made,
            numbers=TokenNumbers(
                old_log_probs=estimates.old_log_probs[here],
                values=estimates.values[here] if has_critic else None,
                value_targets=estimates.value_targets[here] if has_critic else None,
                advantages=estimates.advantages[here],
                importance_weights=estimates.importance_weights[here],
                is_trained=estimates.actor_mask[here],
                entropy=None if estimates.entropy is None else estimates.entropy[here],
            ),
            prompt=prompt,
            response=response,
            pieces=pieces,
            last_value=float(estimates.last_values[number]) if has_critic else None,
            segment=number - int(batch.rollout_cu_seqlens[batch.rollout_numbers[number]]),
        )

    def _texts(self, made: Trajectory) -> tuple[str, str, list[str]]:
        """Of prompt, response and each of its tokens. With special tokens: whether a response ended is part of it."""
        ids = made.response_token_ids.tolist()
        try:
            prompt, response = (
                _storable(str(self._tokenizer.decode(tokens, skip_special_tokens=False)))
                for tokens in (made.prompt_token_ids.tolist(), ids)
            )
            return prompt, response, [_storable(piece) for piece in pieces_of(self._tokenizer, ids)]
        except Exception as error:  # noqa: BLE001  (a tokenizer raises nearly anything, and text must not cost the step)
            log.warning("sample_without_text", trajectory_id=made.id, error=one_line(error))
            return "", "", [""] * len(ids)

    def _remove_oldest(self) -> None:
        """The first and the newest stay: where the run began is what people compare with."""
        sizes = [(path, path.stat().st_size) for path in sorted(self._folder.glob("step-*.parquet"))]
        left = sum(size for _, size in sizes)
        for path, size in sizes[1:-1]:
            if left <= self._config.samples_mib * 2**20:
                return
            path.unlink()
            left -= size


def _storable(text: str) -> str:
    """Half a character, which some tokenizers give, is none that a file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _place(trajectory: Trajectory) -> bytes:
    """By chance, but the same chance each time: else the first prompts of a batch would stand for all."""
    return blake2b(trajectory.id.encode(), digest_size=8).digest()
