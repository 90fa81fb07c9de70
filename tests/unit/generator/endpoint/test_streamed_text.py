"""Whatever a turn says: the pieces that are streamed of it are what its text begins with."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.common.environments.test_turn_text import CHAT, END
from vcppo.common.tasks import decode_response
from vcppo.generator.endpoint.streamed_text import StreamedText
from vcppo.generator.vllm_engine.stop_strings import judged_text


def decode(tokens: Sequence[int]) -> str:
    return str(CHAT.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def streamed(stops: Sequence[str] = ()) -> StreamedText:
    return StreamedText(decode, lambda token: not decode_response(CHAT, [token]), stops)


@given(st.text(max_size=20), st.data())
def test_pieces_are_what_the_text_begins_with(text: str, data: st.DataObject) -> None:
    """Half characters, words in pieces, tokens of control in the middle and at the end."""
    tokens = [*CHAT(text)["input_ids"]]
    for _ in range(data.draw(st.integers(0, 2))):
        tokens.insert(data.draw(st.integers(0, len(tokens))), END)
    given_stop = data.draw(st.sampled_from(["", text[-3:], text[-1:]]))
    said, found = streamed([given_stop] if given_stop else []), ""
    whole = decode_response(CHAT, tokens)
    ends = [*range(1, len(tokens))]
    if given_stop:  # the engine ends a turn at the first one
        ends = [end for end in ends if given_stop not in decode(tokens[:end])]
        tokens = tokens[: (ends[-1] if ends else 0) + 1]
        whole = judged_text(decode_response(CHAT, tokens), given_stop, keep=False)
    for end in ends:
        if data.draw(st.booleans()):
            found += said.more(tokens[:end])
    assert whole.startswith(found)


def test_all_of_it_comes_but_what_may_change() -> None:
    said = streamed(["<end>"])
    text = "so \u00e9 \U0001f600 it is <en"
    tokens = CHAT(text)["input_ids"]
    found = "".join(said.more(tokens[:count]) for count in range(1, len(tokens) + 1))
    assert found == "so \u00e9 \U0001f600 it is "
    assert said.more([*tokens, *CHAT("t>")["input_ids"]]) == "<ent>"
    assert said.more([*tokens, *CHAT("t>")["input_ids"], END]) == ""
