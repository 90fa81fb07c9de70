"""A model folder's tokenizer is the one its tokenizer.json says; responses end at every token its files name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vcppo.common.model_folder.stated_config import ModelError
from vcppo.common.model_folder.tokenizer import TEXTS, load_tokenizer, lost_texts, plain_difference, save_tokenizer
from vcppo.generator.vllm_engine.end_tokens import end_tokens

TEMPLATE = "{% for m in messages %}<|bos|>{{ m['role'] }}: {{ m['content'] }}<|eos|>{% endfor %}"


def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with digits in threes, as DeepSeek's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|bos|>", "<|eos|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*TEXTS] * 20, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )
    made.chat_template = TEMPLATE
    return made


def folder_of(path: Path, model_type: str, tokenizer_class: str) -> Path:
    byte_level().save_pretrained(path)
    change(path / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    (path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 600}))
    return path


def change(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    values |= changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("llama", "LlamaTokenizerFast"),
        ("llama", "LlamaTokenizer"),
        ("llama", "PreTrainedTokenizerFast"),
        ("llama", "NoSuchTokenizer"),
        ("qwen2", "PreTrainedTokenizerFast"),  # transformers takes Qwen2Tokenizer, whatever the folder says
        ("gemma", "GemmaTokenizerFast"),
        ("mistral", "LlamaTokenizerFast"),
        ("gpt2", "GPT2TokenizerFast"),
    ],
)
def test_ids_and_text_are_those_of_tokenizer_json(model_type: str, tokenizer_class: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, model_type, tokenizer_class)
    tokenizer, reference = load_tokenizer(str(folder)), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*TEXTS, "<|bos|>user: 12345<|eos|>"):
        ids = reference.encode(text).ids
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|eos|>", "<|pad|>", "<|bos|>")
    assert tokenizer.chat_template == TEMPLATE


def test_what_is_replaced_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(str(folder_of(tmp_path, "llama", "LlamaTokenizerFast")))
    assert "tokenizer_replaced" in capsys.readouterr().out


def test_an_export_loads_in_plain_auto_tokenizer_with_the_same_ids(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder_of(tmp_path / "in", "llama", "LlamaTokenizerFast")))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text((tmp_path / "in" / "config.json").read_text())
    save_tokenizer(tokenizer, out)
    plain = AutoTokenizer.from_pretrained(out)
    assert [plain(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert plain.chat_template == TEMPLATE
    assert plain_difference(tokenizer, out) is None


def test_where_plain_auto_tokenizer_loads_another_the_log_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(str(folder_of(tmp_path / "in", "qwen2", "PreTrainedTokenizerFast")))
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text((tmp_path / "in" / "config.json").read_text())
    save_tokenizer(tokenizer, out)
    assert "auto_tokenizer_loads_another" in capsys.readouterr().out


def test_lost_texts_are_those_that_do_not_come_back() -> None:
    assert lost_texts(byte_level()) == []
    lossy = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lossy)
    assert lost_texts(tokenizer, ["hello world", "hello there"]) == ["hello there"]


def test_a_folder_without_any_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no tokenizer that can be loaded.*tokenizer\.json"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 7}, {}, [1, 7]),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": 5}, [1, 5, 7, 9]),
        ({"eos_token_id": []}, {"eos_token_id": None}, [1]),
        ({}, {"text_config": {"eos_token_id": [4]}}, [1, 4]),
        (None, {"eos_token_id": -1}, [1]),
    ],
)
def test_end_tokens_are_the_union(generation: Any, config: Any, expected: list[int], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "llama", "LlamaTokenizerFast")
    change(folder / "config.json", **config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert end_tokens(str(folder)) == expected


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2"])
def test_a_class_default_never_ends_a_response(model_type: str, tmp_path: Path) -> None:
    """LlamaConfig's eos_token_id is 2, which may be any word."""
    folder = folder_of(tmp_path, model_type, "LlamaTokenizerFast")
    change(folder / "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r'names no eos_token_id .* add "eos_token_id" to its generation_config\.json'):
        end_tokens(str(folder))
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert end_tokens(str(folder)) == [3]
