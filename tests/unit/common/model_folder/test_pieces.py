"""A text token by token, also where tokens are parts of characters, or of none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vcppo.common.model_folder.pieces import pieces_of

TEXTS = ["hello, what a line this is, and double  spaces"] * 2


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<eos>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<eos>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, limit_alphabet=30, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


BOTH = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


@pytest.mark.parametrize("kind", BOTH)
def test_the_pieces_of_a_text_are_the_text(kind: str) -> None:
    tokenizer = BOTH[kind]
    text = "hello 数学の 🙂 world"
    ids = tokenizer.encode(text).ids + [tokenizer.token_to_id("<eos>")]
    pieces = pieces_of(SimpleNamespace(backend_tokenizer=tokenizer), ids)
    assert len(pieces) == len(ids) > 8
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=False)
    assert pieces[-1] == "<eos>" and "🙂" in pieces and "" in pieces  # a character's first tokens add nothing


@pytest.mark.parametrize("kind", BOTH)
@given(st.lists(st.integers(0, 299), max_size=40))
def test_whatever_was_sampled_there_is_a_piece_for_each_token(kind: str, ids: list[int]) -> None:
    """Also bytes that are no character: the tokenizers' own stream raises on some."""
    assert len(pieces_of(SimpleNamespace(backend_tokenizer=BOTH[kind]), ids)) == len(ids)


def test_a_tokenizer_in_python() -> None:
    names = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")
    assert pieces_of(names, [3, 1]) == ["<3>", "<1>"]
