"""Which architectures of transformers the learner takes, and that it refuses the others when it loads them.

Of one that works: packed log-probs are those of each sequence alone and those of plain transformers, and what goes on
the wire is, name by name and byte by byte, what `save_pretrained` writes.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.unit.rig.architectures import save_tiny
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import load_critic, load_policy, save_model
from vcppo.learner.models.wire_weights import WireWeights
from vcppo.learner.packing_proof.proof import ModelRefused

COMMON = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "olmo2", "mixtral", "qwen3_moe", "deepseek_v3"]
_WORKS = (
    "afmoe apertus arcee bitnet ctrl cwm deepseek_v2 diffllama ernie4_5 ernie4_5_moe exaone4 exaone_moe "
    "flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neox granite granitemoe "
    "granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe jais2 jetmoe minimax_m2 ministral ministral3 olmo "
    "olmo3 olmoe opt persimmon phi qwen2_moe seed_oss smollm3 solar_open starcoder2 youtu"
)
STATE = r"carries state from one packed sequence into the next, in \S+ \(\w+"
OWN = "can't be run on packed sequences"
DIFFERS = "differ from transformers' own"
LOGITS = "changes the logits"
COMMON_REFUSED = {
    "qwen3_next": STATE,
    "qwen3_5_text": STATE,
    "lfm2": STATE,
    "mamba2": STATE,
    "granitemoehybrid": STATE,
    "gpt_oss": "s_aux",
    "stablelm": OWN,
    "llama4_text": DIFFERS,
    "cohere": LOGITS,
}
_REFUSED = {
    STATE: "bamba falcon_h1 falcon_mamba jamba lfm2_moe mamba minimax nemotron_h olmo_hybrid qwen3_5_moe_text "
    "recurrent_gemma zamba2 "
    "bloom codegen xglm",  # these have attention of their own, over the whole pack
    OWN: "doge falcon gpt_neo gpt_neox_japanese gptj mpt nemotron rwkv",
    LOGITS: "cohere2 gemma2 gemma3n_text minicpm3 nanochat vaultgemma",
}
REFUSED = {name: reason for reason, names in _REFUSED.items() for name in names.split()}


def _slow(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def _trajectories() -> list:
    rng = np.random.default_rng(0)
    lengths = ((4, 9), (3, 24), (1, 2))
    return [as_trajectory(*(rng.integers(3, 64, n).astype(np.int32) for n in each)) for each in lengths]


@pytest.mark.parametrize("name", [*COMMON, *_slow(_WORKS.split())])
def test_an_architecture_that_works(name: str, tmp_path: Path) -> None:
    policy = load_policy(save_tiny(name, tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    trajectories = _trajectories()
    with torch.no_grad():
        packed = policy(build_packed(trajectories)).log_probs.split([len(t.response_token_ids) for t in trajectories])
        for trajectory, got in zip(trajectories, packed, strict=True):
            torch.testing.assert_close(got, policy(build_packed([trajectory])).log_probs, atol=1e-5, rtol=0)
            ids = torch.from_numpy(np.concatenate([trajectory.prompt_token_ids, trajectory.response_token_ids])).long()
            first = len(trajectory.prompt_token_ids)
            logits = plain(ids[None]).logits[0, first - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, ids[first:, None])[:, 0]
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    stored = load_file(tmp_path / "model.safetensors")
    wire = WireWeights(policy.hf_model)
    sent = {name: tensor.clone() for name, tensor in wire.walk(lambda _: nullcontext())}
    assert {info.name: (info.dtype, info.shape) for info in wire.infos} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()
    }
    assert list(sent) == [info.name for info in wire.infos]
    assert all(torch.equal(sent[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [*COMMON_REFUSED.items(), *(pytest.param(*each, marks=pytest.mark.slow) for each in REFUSED.items())],
)
def test_an_architecture_that_is_refused_when_it_is_loaded(name: str, reason: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path)
    with pytest.raises(ModelRefused, match=reason) as caught:
        load_policy(folder)
    assert str(folder) in str(caught.value) and "choose another model.path" in str(caught.value)


@pytest.mark.parametrize("name", ["qwen3_next", "mixtral"])
def test_critics_too(name: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path)
    if name == "mixtral":
        assert load_critic(folder)(build_packed(_trajectories())).values.shape == (35,)
        return
    with pytest.raises(ModelRefused, match=STATE):
        load_critic(folder)


def test_a_trained_mixture_of_experts_is_saved_as_it_came(tmp_path: Path) -> None:
    """Also from the gathered state, whose names are the module's own."""
    policy = load_policy(save_tiny("mixtral", tmp_path / "in"))
    state = {name: tensor.detach() * 2 for name, tensor in policy.hf_model.state_dict().items()}
    save_model(policy, tmp_path / "out", state)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("in", "out"))
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in before
    assert {name: tensor * 2 for name, tensor in before.items()}.keys() == after.keys()
    assert all(torch.equal(tensor * 2, after[name]) for name, tensor in before.items())


def test_buffers_that_a_checkpoint_holds_are_sent_and_saved(tmp_path: Path) -> None:
    """DeepSeek-V3's e_score_correction_bias is no parameter."""
    policy = load_policy(save_tiny("deepseek_v3", tmp_path))
    names = [info.name for info in WireWeights(policy.hf_model).infos]
    assert "model.layers.1.mlp.gate.e_score_correction_bias" in names
