"""The learner's checks, one by one: what is right passes, each fault is found, with its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unit.rig.check_model import save_model, sums, write_config, write_rows
from vcppo.common.check.check_lines import CheckLine
from vcppo.common.config import VcppoConfig, load_config
from vcppo.learner.check.__main__ import CHECKS
from vcppo.learner.check.loaded_model import Context
from vcppo.learner.check.packing_checks import line
from vcppo.learner.models.packing_check import PackingGap


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", sums())
    write_config(tmp_path)
    return tmp_path


def config_of(folder: Path, *overrides: str) -> VcppoConfig:
    return load_config(folder / "run.yaml", overrides)


def look(config: VcppoConfig, *names: str) -> dict[str, list[CheckLine]]:
    """Lines of these checks; of all without names."""
    context = Context(config)
    return {check.name: list(check.lines(context)) for check in CHECKS if check.name in names or not names}


def test_a_sound_model_passes(folder: Path) -> None:
    found = look(config_of(folder))
    assert {each.status for lines in found.values() for each in lines} == {"passed"}, found
    assert "LlamaForCausalLM" in found["loads"][0].text and "float32" in found["loads"][0].text
    assert "weights come back bit for bit" in found["exports"][0].text
    assert [each.text.split()[0] for each in found["packing"]] == ["random", "real"]
    assert not list(folder.glob("runs*"))


def test_a_model_that_does_not_load_is_said_once(folder: Path) -> None:
    (folder / "model" / "model.safetensors").write_bytes(b"nothing")
    found = look(config_of(folder))
    assert [found[name][0].status for name in ("loads", "exports", "packing", "critic")] == [
        "failed", "skipped", "skipped", "skipped",
    ]  # fmt: skip
    assert "safetensors" in found["loads"][0].text


def test_positions_beyond_the_models(folder: Path) -> None:
    found = look(config_of(folder, "generator.max_model_len=4096", "learner.micro_batch_tokens=4096"), "loads")["loads"]
    assert found[0].status == "warned" and "generator.max_model_len=1024" in found[0].remedy


def test_a_critic_that_is_none(folder: Path) -> None:
    found = look(config_of(folder, f"critic.init={folder / 'model'}"), "critic")["critic"]
    assert found[0].status == "failed" and "critic.init" in found[0].text
    group = look(config_of(folder, "algorithm.advantage_estimator=group_mean"), "critic")["critic"]
    assert group[0].status == "skipped"


def test_the_head_and_what_is_frozen(folder: Path) -> None:
    given = ["critic.head=two_hot", "critic.freeze=[mlp]", "rl.actor_freeze=[embed_tokens, mlp]"]
    found = look(config_of(folder, *given), "loads", "critic")
    assert {each.status for lines in found.values() for each in lines} == {"passed"}, found
    assert "critic.head = two_hot" in found["critic"][0].text and "M of them trained" in found["critic"][0].text
    assert "M of them trained" in found["loads"][0].text
    found = look(config_of(folder, "critic.freeze=[mpl]", "rl.actor_freeze=['model']"), "loads", "critic")
    assert [found[name][0].status for name in ("loads", "critic")] == ["failed", "failed"]
    assert "leaves nothing to train" in found["loads"][0].text
    assert "'mpl' is found in no parameter's name" in found["critic"][0].text
    found = look(config_of(folder, "rl.critic_freeze=[self_atn]"), "critic")
    assert "rl.critic_freeze: 'self_atn' is found in no parameter's name" in found["critic"][0].text
    assert look(config_of(folder, "rl.critic_freeze=[score]"), "critic")["critic"][0].status == "passed"


def test_a_critic_of_another_model(folder: Path) -> None:
    save_model(folder / "wide", hidden_size=128)
    found = look(config_of(folder, f"critic.model={folder / 'wide'}"), "critic")["critic"]
    assert found[0].status == "passed", found
    tree = json.loads((folder / "wide" / "tokenizer.json").read_text())
    tree["model"]["vocab"] |= {"A": tree["model"]["vocab"]["B"], "B": tree["model"]["vocab"]["A"]}
    (folder / "wide" / "tokenizer.json").write_text(json.dumps(tree))
    found = look(config_of(folder, f"critic.model={folder / 'wide'}"), "critic")["critic"]
    assert found[0].status == "failed" and "is 'A' of the policy and 'B' of the critic" in found[0].text


def test_cuda_on_a_machine_without(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = look(config_of(folder, "learner.device=cuda"), "device")["device"]
    assert found[0].status == "failed" and "make setup DEVICE=cuda" in found[0].remedy


def test_an_export_that_changes_the_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vcppo.learner.check import export_checks as export

    def spoil(policy: object, config: object, target: Path) -> None:
        save_model(target)
        tree = json.loads((target / "tokenizer.json").read_text())
        tree["normalizer"] = {"type": "Lowercase"}
        (target / "tokenizer.json").write_text(json.dumps(tree))

    monkeypatch.setattr(export, "try_export", spoil)
    found = look(config_of(folder), "exports")["exports"]
    assert found[0].status == "failed" and "the saved tokenizer is another one" in found[0].text


def test_no_memory_is_no_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcppo.learner.check.loaded_model.free_memory", lambda: 1000)
    found = look(config_of(folder), "loads")
    assert found["loads"][0].status == "skipped" and "are free" in found["loads"][0].text


def test_a_gap_beyond_rounding_fails() -> None:
    good = PackingGap("float32", "real", "alone", 1e-6, 1e-5, 2e-3, 10)
    bad = PackingGap("float32", "real", "transformers", 0.2, 4.0, 2e-3, 10)
    nan = PackingGap("float32", "real", "transformers", float("nan"), 4.0, 2e-3, 10)
    assert [line(gaps).status for gaps in ([good], [good, bad], [good, nan])] == ["passed", "failed", "failed"]
