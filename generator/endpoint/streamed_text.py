"""A turn's text as it grows: what of it will still be there when the turn is over. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\N{REPLACEMENT CHARACTER}"


class StreamedText:
    """Of one turn. Each token is decoded about twice, however long the turn.

    What may yet change is held back: half a character, tokens that are no text at a turn's end, and what may become a
    stop string.

    Args:
        decode: text of some tokens.
        is_end: whether a token at the end of a turn is no part of its text.
        stops: ``sampling.stop``, where its strings are no part of the text.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], is_end: Callable[[int], bool], stops: Sequence[str]
    ) -> None:
        self._decode, self._is_end, self._stops = decode, is_end, stops
        self._text = ""
        self._num_sent = 0
        self._before = self._read = 0  # tokens: decoded again as what stands before the new ones, and decoded

    def more(self, token_ids: Sequence[int]) -> str:
        """What is new and sure in the text of all tokens so far; often nothing."""
        count = len(token_ids)
        while count > self._read and self._is_end(token_ids[count - 1]):
            count -= 1
        known = self._decode(token_ids[self._before : self._read])
        found = self._decode(token_ids[self._before : count])
        if len(found) > len(known) and not found.endswith(_HALF):
            self._text += found[len(known) :]
            self._before, self._read = self._read, count
        sure = len(self._text) - max((_overlap(self._text, stop) for stop in self._stops), default=0)
        new = self._text[self._num_sent : sure]
        self._num_sent = max(self._num_sent, sure)
        return new


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of a text with which a stop string begins."""
    return next((count for count in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:count])), 0)
