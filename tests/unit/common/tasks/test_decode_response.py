"""What of a response's tokens a verifier sees: all but what ends it."""

from __future__ import annotations

from typing import Any

import pytest

from vcppo.common.tasks import decode_response

transformers = pytest.importorskip("transformers")

SPECIAL = ("<pad>", "<eos>", "<|im_end|>", "<|im_start|>", "<think>", "</think>", "<tool_call>", "<|channel|>")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, and special tokens as real models have them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({each: i for i, each in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    made.add_tokens([AddedToken(each, special=True, normalized=False) for each in SPECIAL], special_tokens=True)
    return made


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize(
    "text",
    [
        r"<think>is it \boxed{41}? no</think>\boxed{42}",
        "<tool_call>{}<tool_call>",
        "<|channel|>final 42",
        "a<eos>b",
        "a<|im_end|>\n<|im_start|>b",
        "  two blanks , and a comma . Don't  tidy up !\n",
        "naïve ½ 数学 🙂",
        "</think>",
        "",
    ],
)
@pytest.mark.parametrize("end", ["", "<eos>", "<|im_end|>", "<|im_end|><eos>", "<eos><pad><pad>"])
def test_all_but_the_end(tokenizer: Any, text: str, end: str) -> None:
    assert decode_response(tokenizer, ids_of(tokenizer, text + end)) == text


def test_stop_tokens_of_the_generation_config(tokenizer: Any) -> None:
    (start,) = ids_of(tokenizer, "<|im_start|>")
    ids = ids_of(tokenizer, "42<|im_start|>")
    assert decode_response(tokenizer, ids) == "42<|im_start|>"
    assert decode_response(tokenizer, ids, end_ids=[start]) == "42"


def test_half_a_character_is_no_error(tokenizer: Any) -> None:
    assert decode_response(tokenizer, ids_of(tokenizer, "½")[:1]) == "\ufffd"
