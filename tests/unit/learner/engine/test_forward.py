"""Log-probs and entropy of a batch, packed and in any number of micro-batches, are those of the whole softmax."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.engine.forward import compute_log_probs
from vcppo.learner.models.models import load_policy

TEMPERATURE = 0.8


@pytest.mark.parametrize("token_budget", [40, 1000])
def test_log_probs_and_entropy_are_those_of_the_whole_softmax(tmp_path: Path, token_budget: int) -> None:
    folder = save_tiny_policy(tmp_path / "policy", tied=True)
    made = mixed_batch(seed=3, tool_text=0.3)
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    log_probs, entropy = [], []
    for each in made:
        tokens = torch.from_numpy(np.concatenate([each.prompt_token_ids, each.response_token_ids]).astype(np.int64))
        with torch.no_grad():
            rows = torch.log_softmax(plain(input_ids=tokens[None]).logits[0] / TEMPERATURE, dim=1)
        for place in np.flatnonzero(each.action_mask) + len(each.prompt_token_ids):
            row = rows[place - 1]
            log_probs.append(row[tokens[place]].item())
            entropy.append(-(row.exp() * row).sum().item())

    batch = Batch(made, version=max(each.oldest_version for each in made))
    policy = load_policy(folder, chunk_tokens=4, chunk_vocab=12)
    found = compute_log_probs(policy, Packer(batch, Share(0, 1, token_budget)), TEMPERATURE)

    assert len(set(np.round(entropy, 3))) > 5, "places that are all alike would not show a wrong order"
    assert found.log_probs.tolist() == pytest.approx(log_probs, abs=1e-4)
    assert found.entropy.tolist() == pytest.approx(entropy, abs=1e-4)
