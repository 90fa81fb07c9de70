"""The shards of a pack are the pack: every token, action and end on one rank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.learner.batching.batch import Batch, Share, micro_batches
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.batching.sequence_shard import shard
from vcppo.learner.cold_start.process import refuse_long_sequences
from vcppo.learner.kernels.attention import attention_arguments
from vcppo.learner.kernels.sequence_parallel import check_heads, check_heads_of


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_token_action_and_end_is_on_one_rank(size: int, count: int) -> None:
    packed = build_packed(mixed_batch(count=count))
    slots = np.arange(100, 100 + packed.num_actions)
    shards = [shard(packed, slots, rank, size) for rank in range(size)]
    parts = [part for part, _ in shards]
    assert len({part.num_tokens for part in parts}) == 1
    whole = parts[0].num_tokens * size
    assert 0 <= whole - packed.num_tokens < size
    for name in ("token_ids", "position_ids", "surprise"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together[: packed.num_tokens], getattr(packed, name))
    starts = [rank * parts[0].num_tokens for rank in range(size)]
    states = torch.cat([part.state_index + start for part, start in zip(parts, starts, strict=True)])
    assert torch.equal(states, packed.state_index)
    assert torch.equal(torch.cat([part.actions for part in parts]), packed.actions)
    assert np.array_equal(np.concatenate([own for _, own in shards]), slots)
    ends = torch.cat([part.last_token_index + start for part, start in zip(parts, starts, strict=True)])
    assert torch.equal(ends, packed.last_token_index)
    assert sum((part.sequence_index for part in parts), ()) == packed.sequence_index
    for part in parts:
        assert part.num_shards == size
        assert sum(part.lengths) == int(part.cu_seqlens[-1]) == whole
        assert part.lengths[: len(packed.lengths)] == packed.lengths
        assert ((part.state_index >= 0) & (part.state_index < part.num_tokens)).all()
        assert int(part.action_cu_seqlens[-1]) == part.num_actions == len(part.targets)
        assert attention_arguments(part)["packed_segments"].num_shards == size


def test_an_action_whose_state_is_the_last_token_of_a_shard_stays_with_it() -> None:
    packed = build_packed(mixed_batch())
    num_seen = 0
    for size in range(2, 9):
        parts = [shard(packed, np.arange(packed.num_actions), rank, size)[0] for rank in range(size)]
        for part, following in pairwise(parts):
            if part.num_actions and int(part.action_index[-1]) == part.num_tokens:
                assert int(part.actions[-1]) == int(following.token_ids[0])
                num_seen += 1
    assert num_seen


@pytest.mark.parametrize(("num_ranks", "size"), [(2, 2), (4, 2), (4, 4)])
def test_groups_of_ranks_have_the_packs_of_so_many_ranks_with_larger_ones(num_ranks: int, size: int) -> None:
    batch = Batch(mixed_batch(count=9), 0)
    everyone = range(len(batch))
    seen: list[int] = []
    for rank in range(num_ranks):
        own = list(micro_batches(batch, everyone, Share(rank, num_ranks, 48 // size, size)))
        plain = list(micro_batches(batch, everyone, Share(rank // size, num_ranks // size, 48)))
        assert len(own) == len(plain)
        for mine, theirs in zip(own, plain, strict=True):
            assert len(mine.packed.token_ids) == -(-len(theirs.packed.token_ids) // size)
            assert set(mine.slots) <= set(theirs.slots)
            assert len(mine.slots) == mine.packed.num_actions
            seen += mine.slots.tolist()
    assert sorted(seen) == list(range(batch.num_actions))


@pytest.mark.parametrize(
    ("heads", "key_heads", "size", "fits"),
    [
        (4, 2, 2, True), (4, 2, 4, True), (4, 1, 2, True), (4, 4, 1, True), (9, 3, 3, True), (9, 3, 2, False),
        (8, 6, 4, False),
    ],
)  # fmt: skip
def test_heads_that_ranks_can_not_share_are_refused(heads: int, key_heads: int, size: int, fits: bool) -> None:
    if fits:
        check_heads(heads, key_heads, size, "m")
        return
    with pytest.raises(VcppoError, match=rf"learner.sequence_parallel_size = {size}: m has {heads} attention heads"):
        check_heads(heads, key_heads, size, "m")


def test_the_refusal_names_what_fits() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
    with pytest.raises(VcppoError, match=r"set it to 1 or 3 or 9"):
        check_heads_of(config, 2, "some/model")


def config_of(**sections: object) -> VcppoConfig:
    return VcppoConfig.model_validate({"model": {"path": "-"}, **sections})


def test_what_can_not_be_combined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not divide learner.num_ranks = 3: set it to 1 or 3"):
        config_of(learner={"num_ranks": 3, "sequence_parallel_size": 2})
    with pytest.raises(ValueError, match=r"not with algorithm.objective = gspo"):
        config_of(learner={"num_ranks": 2, "sequence_parallel_size": 2}, algorithm={"objective": "gspo"})


def test_stages_that_share_no_sequences_refuse_what_fits_no_rank() -> None:
    learner = {"num_ranks": 2, "sequence_parallel_size": 2, "micro_batch_tokens": 2000}
    refuse_long_sequences(config_of(learner=learner, generator={"max_model_len": 2000}), "sft")
    with pytest.raises(VcppoError, match=r"ranks share no sequences in sft.* raise the latter to 4000"):
        refuse_long_sequences(config_of(learner=learner, generator={"max_model_len": 4000}), "sft")


def test_the_longest_sequence_must_fit_the_ranks_together() -> None:
    longest = {"generator": {"max_model_len": 4000}}
    config_of(learner={"num_ranks": 2, "sequence_parallel_size": 2, "micro_batch_tokens": 2000}, **longest)
    with pytest.raises(ValueError, match=r"by 2 ranks .learner.sequence_parallel_size.: raise it to 2000 or more"):
        config_of(learner={"num_ranks": 2, "sequence_parallel_size": 2, "micro_batch_tokens": 1999}, **longest)
