"""Stop strings: the first token that completes one, whatever tokens and characters it is spread over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vcppo.generator.vllm_engine.stop_strings import StopStrings, TextStream, judged_text

LONG = ["\n\nQ", "Question:", " the", "</answer>", "né", "…\n"]  # tokens of several characters


def byte_level() -> Any:
    """A byte-level tokenizer: a token for each byte, some longer ones, and a special token."""
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = [*alphabet, *(byte.pre_tokenize_str(text)[0][0] for text in LONG), byte.pre_tokenize_str("x")[0][0] + "Ã"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentencepiece() -> Any:
    """Metaspace, which drops the space before a text's first word, with a token for each byte of other characters."""
    from transformers import PreTrainedTokenizerFast

    pieces = ["▁", "▁a", "a", "b", "▁ab", "▁Q", ":", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES, PIECES = byte_level(), sentencepiece()


def tokens(*pieces: str) -> list[int]:
    """Token by token: a piece of LONG or a special token is one, anything else goes byte by byte."""
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found = []
    for piece in pieces:
        whole = BYTES.get_vocab().get(piece if piece == "<|im_end|>" else byte.pre_tokenize_str(piece)[0][0])
        if whole is not None:
            found.append(whole)
            continue
        found += [BYTES.get_vocab()[character] for character in byte.pre_tokenize_str(piece)[0][0]]
    return found


def run(tokenizer: Any, ids: list[int], stop: list[str], at_once: int = 1) -> tuple[list[int], str | None]:
    watcher = StopStrings(tokenizer, stop)
    for start in range(0, len(ids), at_once):
        found = watcher.update(ids[start : start + at_once], False)
        if found is not None:
            return watcher.output_token_ids, found
    return watcher.output_token_ids, None


def first_end(tokenizer: Any, ids: list[int], stop: list[str]) -> int | None:
    """By definition: the fewest tokens whose text holds a stop string."""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if any(each in text for each in stop):
            return end
    return None


@pytest.mark.parametrize(
    ("pieces", "stop", "kept", "found"),
    [
        (("ab", "\n", "\n", "cd"), ["\n\n"], 4, "\n\n"),  # across a border
        (("4", "\n\nQ", "u"), ["\n\n"], 2, "\n\n"),  # in the middle of a token, which is kept whole
        (("caf", "é", "!"), ["é"], 5, "é"),  # a character of two tokens
        (("n", "é"), ["né"], 3, "né"),
        (("né", "x"), ["é"], 1, "é"),
        (("a", "🙂", "b"), ["🙂b"], 6, "🙂b"),
        (("a", "<|im_end|>", "b"), ["<|im_end|>"], 2, "<|im_end|>"),  # a special token by its name
        (("abc",), ["bc", "c", "abc"], 3, "abc"),  # they end together: the longest
        (("ab",), ["abc", "b"], 2, "b"),
        (("aab",), ["ab"], 3, "ab"),
        (("abab",), ["xyz"], 4, None),
    ],
)
def test_a_response_ends_with_the_token_that_completes_a_stop_string(
    pieces: tuple[str, ...], stop: list[str], kept: int, found: str | None
) -> None:
    ids = tokens(*pieces)
    assert run(BYTES, ids, stop) == (ids[:kept], found)
    assert run(BYTES, ids, stop, at_once=3) == (ids[:kept], found)  # speculative decoding brings several


STOPS = ["\n\n", "Question:", "é", "né!", "🙂", "…", "</answer>", "a", "the end", "<|im_end|>", " ", "\n\nQuestion"]


@given(st.lists(st.sampled_from([*LONG, "a", "é", "🙂", "\n", " end", "<|im_end|>", "uestion:", "!"]), max_size=12),
       st.lists(st.sampled_from(STOPS), min_size=1, max_size=4, unique=True), st.integers(1, 4))  # fmt: skip
def test_text_is_cut_where_its_whole_decoding_first_holds_a_stop_string(
    pieces: list[str], stop: list[str], at_once: int
) -> None:
    ids = tokens(*pieces)
    kept, found = run(BYTES, ids, stop, at_once)
    end = first_end(BYTES, ids, stop)
    assert (len(kept), found is None) == (len(ids) if end is None else end, end is None)
    assert found is None or found in stop


@given(st.lists(st.integers(0, len(BYTES) - 1), max_size=40), st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))
def test_tokens_that_are_no_text_hide_no_stop_string_behind_them(ids: list[int], stop: list[str]) -> None:
    ids = ids + tokens("x", *stop)
    kept, found = run(BYTES, ids, stop)
    assert found is not None and len(kept) == first_end(BYTES, ids, stop)


@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=24), st.sampled_from([" a", "ab", " ab", "Q:", "é", "a b"]))
def test_spaces_and_byte_fallback_of_sentencepiece(ids: list[int], stop: str) -> None:
    ids = [each for each in ids if each < 7] + [PIECES.get_vocab()[f"<0x{byte:02X}>"] for byte in "aé".encode()]
    kept, found = run(PIECES, ids, [stop])
    end = first_end(PIECES, ids, [stop])
    assert (len(kept), found is None) == (len(ids) if end is None else end, end is None)


def test_text_comes_out_whole_however_it_is_cut_into_tokens() -> None:
    text = "né 🙂…\n the Question: é"
    stream = TextStream(BYTES)
    assert "".join(stream.push(token) for token in tokens(text)) == text


@pytest.mark.parametrize(
    ("text", "stop", "keep", "seen"),
    [
        ("4\n\nQ: 5", "\n\nQ", False, "4"),  # what stands behind it in the last token goes too
        ("4\n\nQ: 5", "\n\nQ", True, "4\n\nQ"),
        ("<answer>4</answer>\n", "</answer>", True, "<answer>4</answer>"),
        ("4", None, False, "4"),
        ("4", "<|im_end|>", False, "4"),  # a special token is not in the text
        ("abab", "b", False, "aba"),  # only the last can have ended it
    ],
)
def test_what_the_verifier_sees(text: str, stop: str | None, keep: bool, seen: str) -> None:
    assert judged_text(text, stop, keep) == seen
