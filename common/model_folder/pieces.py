"""A text token by token: what each adds to it, special tokens included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def pieces_of(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; of a character that takes several tokens the last one has it.

    Bytes that never become a character are in none, or in that of a later token. So their join may lack them, and
    ``tokenizer.decode`` is the text.

    Args:
        tokenizer: transformers' or tokenizers' own.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # transformers' tokenizers in Python
        return [str(tokenizer.decode([token])) for token in token_ids]
    from tokenizers.decoders import DecodeStream

    stream, pieces = DecodeStream(skip_special_tokens=False), list[str]()
    for token in token_ids:
        try:
            pieces.append(stream.step(backend, token) or "")
        except Exception:  # noqa: BLE001  (it raises nothing narrower: what came behind changed the text before)
            stream = DecodeStream(skip_special_tokens=False)
            pieces.append(str(backend.decode([token], skip_special_tokens=False)))
    return pieces
