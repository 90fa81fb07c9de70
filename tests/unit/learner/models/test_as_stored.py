"""A model that is loaded as it is stored: the type of its files, and weights that are the same once they are cast."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.learner.models.model_folder import stored_dtype
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.models.wire_weights import own_weights


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ([torch.float32], torch.float32),
        ([torch.bfloat16, torch.bfloat16], torch.bfloat16),
        ([torch.float16], torch.float16),
        ([torch.bfloat16, torch.float32], None),  # which one is not for us to choose
        ([torch.int8], None),
        ([], None),
    ],
)
def test_the_type_of_a_folder(tmp_path: Path, tensors: list[torch.dtype], expected: torch.dtype | None) -> None:
    for number, dtype in enumerate(tensors):
        save_file({f"w{number}": torch.ones(2).to(dtype)}, tmp_path / f"{number}.safetensors")
    assert stored_dtype(tmp_path) == expected


def test_a_name_on_a_hub_has_no_files_here() -> None:
    assert stored_dtype("organisation/model") is None


def test_the_weights_are_those_of_the_files_and_cast_alike(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path / "model")
    plain, stored = (
        own_weights(load_policy(folder, dtype=torch.bfloat16, as_stored=each).hf_model) for each in (False, True)
    )
    assert {tensor.dtype for tensor in plain.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert all(torch.equal(plain[name], tensor.to(torch.bfloat16)) for name, tensor in stored.items())


def test_a_new_head_starts_at_zero_as_well(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path / "model")
    critic = own_weights(load_critic(folder, dtype=torch.bfloat16, as_stored=True).hf_model)
    assert critic["score.weight"].dtype == torch.float32 and not critic["score.weight"].any()
