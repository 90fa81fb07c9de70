"""The reference policy: refreshed when due, kept in a checkpoint, damaged weights refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.learner.engine.checkpoint import CheckpointError, CheckpointState, CheckpointStore
from vcppo.learner.engine.reference import FILE, Reference
from vcppo.learner.models.models import load_policy
from vcppo.learner.models.wire_weights import own_weights


class Actor:
    """Has weights of one number, its version."""

    def __init__(self) -> None:
        self.number = 0.0

    def copy_weights_to(self, hf_model: nn.Module) -> None:
        with torch.no_grad():
            for tensor in own_weights(hf_model).values():
                tensor.fill_(self.number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def weights(reference: Reference) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in own_weights(reference.model.hf_model).items()}


def run(reference: Reference, first: int, last: int) -> list[int]:
    """Which version it is after each step."""
    found, actor = [], Actor()
    for version in range(first, last + 1):
        actor.number = float(version)
        reference.after(version, actor)  # type: ignore[arg-type]
        found.append(reference.version)
    return found


def test_it_becomes_the_policy_at_each_multiple(folder: Path) -> None:
    reference = Reference(load_policy(folder), 3)
    assert run(reference, 1, 7) == [0, 0, 3, 3, 3, 6, 6]
    assert all((tensor == 6.0).all() for tensor in weights(reference).values())
    assert not any(parameter.requires_grad for parameter in reference.model.parameters())


def test_without_a_setting_it_stays_the_starting_policy(folder: Path, tmp_path: Path) -> None:
    reference = Reference(load_policy(folder), None)
    before = weights(reference)
    assert run(reference, 1, 4) == [0] * 4
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(reference).items())
    reference.save(tmp_path)
    assert not list(tmp_path.iterdir())  # it is at model.path


def test_a_checkpoint_has_its_version_and_its_weights(folder: Path, tmp_path: Path) -> None:
    """Through a manifest: what is loaded is the version of step 4, not the policy of step 5."""
    reference = Reference(load_policy(folder), 4)
    run(reference, 1, 5)
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    staging = store.begin(5)
    reference.save(staging)
    store.publish(CheckpointState(5, {"rl": 9}, [], "hash", 1, 0, extra=reference.numbers()))
    found = store.newest()
    assert found is not None
    resumed = Reference(load_policy(folder), 4)
    resumed.load(found[0], found[1].extra)
    assert resumed.version == 4 and all((tensor == 4.0).all() for tensor in weights(resumed).values())
    assert run(resumed, 6, 8) == [4, 4, 8]


def test_a_checkpoint_of_before_has_the_starting_policy(folder: Path, tmp_path: Path) -> None:
    reference = Reference(load_policy(folder), 4)
    before = weights(reference)
    reference.load(tmp_path, {})
    assert reference.version == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(reference).items())


def _shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _another_shape(path: Path) -> None:
    tensors: dict[str, Any] = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, path)


def _one_missing(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


@pytest.mark.parametrize("damage", [_shortened, _another_shape, _one_missing, Path.unlink])
def test_damaged_weights_are_refused_by_name(folder: Path, tmp_path: Path, damage: Any) -> None:
    reference = Reference(load_policy(folder), 1)
    run(reference, 1, 1)
    reference.save(tmp_path)
    damage(tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"reference\.safetensors: holds no reference policy of this model"):
        Reference(load_policy(folder), 1).load(tmp_path, reference.numbers())
