"""The run-time check of array shapes is on (tests/conftest.py): an array of a wrong shape or type does not get in."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from tests.conftest import SHAPE_CHECKED
from tests.paths import ROOT
from vcppo.learner.algorithm.advantages import spread_over_actions, whiten
from vcppo.learner.algorithm.gae import decoupled_gae
from vcppo.learner.algorithm.losses import value_loss
from vcppo.learner.batching.packing import PackedBatch, build_packed
from vcppo.learner.critic_quality.explained_variance import explained_variance
from vcppo.learner.kernels.log_probs import chunked_log_probs


def advantages_of(**other: Any) -> Any:
    three = np.ones(3, np.float32)
    arrays = {
        "rewards": three,
        "values": three,
        "bootstrap_values": np.ones(1, np.float32),
        "cu_seqlens": np.array([0, 3]),
    }
    return decoupled_gae(**(arrays | other), gamma=1.0, lambda_actor=0.95, lambda_critic=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"values": np.ones(4, np.float32)},  # of another length than the rewards
        {"values": np.ones((3, 1), np.float32)},  # a column: the kernel would take its rows for numbers
        {"rewards": np.ones(3, np.float64)},
        {"cu_seqlens": np.array([0, 3, 3])},  # bounds of two sequences, final values of one
        {"cu_seqlens": np.array([0, 3], np.int32)},
    ],
    ids=lambda wrong: "-".join(f"{name}{array.shape}{array.dtype}" for name, array in wrong.items()),
)
def test_an_array_that_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    advantages_of()
    with pytest.raises(jaxtyping.TypeCheckError, match=f"parameter '{next(iter(wrong))}'"):
        advantages_of(**wrong)


def test_every_room_refuses() -> None:
    two, three = torch.ones(2), torch.ones(3)
    bounds = np.array([0, 3])
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'value_targets'"):
        value_loss(three, two, num_tokens=3)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'mask'"):
        whiten(np.ones(3, np.float32), np.ones(2, np.bool_))
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'action_cu_seqlens'"):
        spread_over_actions(np.ones(2, np.float32), bounds)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'returns'"):
        explained_variance(np.ones(3, np.float32), np.ones(2, np.float32), bounds, ["a"])
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'weight'"):
        chunked_log_probs(torch.ones(3, 4), torch.ones(7, 5), torch.zeros(3, dtype=torch.int64))


def test_a_record_of_arrays_refuses() -> None:
    dummy = build_packed([])
    fields = {name: getattr(dummy, name) for name in inspect.signature(PackedBatch).parameters}
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'position_ids'"):
        PackedBatch(**(fields | {"position_ids": torch.zeros(2, dtype=torch.int64)}))


def test_a_result_of_a_wrong_shape_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcppo.learner.algorithm.advantages.np.repeat", lambda *_: np.ones((3, 1), np.float32))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"return value of .*spread_over_actions"):
        spread_over_actions(np.ones(1, np.float32), np.array([0, 3]))


@pytest.mark.usefixtures("shapes_unchecked")
def test_production_refuses_lengths_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="3 rewards, 4 values"):
        advantages_of(values=np.ones(4, np.float32))


@pytest.mark.parametrize("name", SHAPE_CHECKED)
def test_each_named_module_is_checked(name: str) -> None:
    """A module that moves keeps its check: the hook knows names only, and does not miss one that is gone."""
    package = importlib.import_module(name)
    folder = getattr(package, "__path__", None)
    names = [name] if folder is None else [f"{name}.{path.stem}" for path in Path(folder[0]).glob("[!_]*.py")]
    for module in map(importlib.import_module, names):
        public = [value for key, value in vars(module).items() if not key.startswith("_") and inspect.isfunction(value)]
        unchecked = [
            value.__name__
            for value in public
            if value.__module__ == module.__name__ and not hasattr(value, "__wrapped__")
        ]
        assert public and unchecked == []


def test_production_is_not_checked() -> None:
    script = "from vcppo.learner.algorithm import gae; print(hasattr(gae.decoupled_gae, '__wrapped__'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
