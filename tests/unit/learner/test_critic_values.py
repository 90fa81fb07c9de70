"""What the critic of `vcppo explainable` is given with a response."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.continuations import ContinuationFiles, Response
from vcppo.learner.batching.batch import Share
from vcppo.learner.critic_values import values_at, write_values
from vcppo.learner.models.models import load_critic


class Engine:
    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self.module = load_critic(folder, sees_log_probs=True)
        with torch.no_grad():
            for parameter in (self.module.hf_model.score.weight, self.module.hf_model.surprise_input.weight):
                parameter.normal_(generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def infer(self, *args: Any) -> Any:
        return self.module(*args)


def response(log_probs: list[float] | None) -> Response:
    return Response(
        problem=0, prompt=[3, 4], tokens=[5, 6, 7, 8], outcome="wrong", reward=-1.0, finish_reason="stop",
        log_probs=log_probs,
    )  # fmt: skip


def test_a_value_sees_what_the_tokens_before_it_were_sampled_with(tmp_path: Path) -> None:
    engine, share = Engine(save_tiny_policy(tmp_path)), Share(0, 1, 64)
    likely, slip, unknown = (
        np.array([*values_at(engine, [response(each)], [0, 1, 2, 3], share)[0].values()])  # type: ignore[arg-type]
        for each in ([-0.1, -0.1, -0.1, -0.1], [-0.1, -6.0, -0.1, -0.1], None)
    )
    assert np.array_equal(likely[:2], slip[:2])
    assert np.abs(likely[2:] - slip[2:]).min() > 1e-3
    assert unknown[0] == likely[0]


def test_responses_without_log_probs_are_refused_by_a_critic_that_sees_them(tmp_path: Path) -> None:
    files = ContinuationFiles(tmp_path, "plan")
    files.add(response(None))
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "critic": {"sees_log_probs": True}})
    given = argparse.Namespace(folder=tmp_path, plan="plan", positions=[0], output=tmp_path / "o", checkpoint=None)
    with pytest.raises(VcppoError, match=rf"have no log-probs.*remove {re.escape(str(tmp_path))}/plan\.\*\.jsonl"):
        write_values(config, given)
