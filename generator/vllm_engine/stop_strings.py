"""Where a response ends because of its text: ``sampling.stop``.

vLLM asks a request's *detokenizer* after every token whether the text so far holds a stop string, and ends the request
at that token. vLLM's own needs vLLM's own tokenizer; this one decodes with the tokenizer the verifier's text is made
with. Token ids, log-probs and version spans end with the token that completes the stop string.

Text is decoded with special tokens in it, so a stop string may name one (``<|im_end|>``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no whole character yet
_MOST_PENDING = 32  # tokens; a character needs at most 4, so more are bytes that make no text


class TextStream:
    """Tokens in, text out, as soon as it is whole: a character whose bytes are in several tokens comes with the last.

    A tokenizer may write a token otherwise at the beginning of a text (SentencePiece drops the first space), so each
    token is decoded behind those before it.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # tokens whose text is out, decoded again as context
        self._pending: list[int] = []  # tokens whose text is not all out: it ends within a character, or is empty
        self._num_given = 0  # characters of the pending tokens' text that are out

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty when it completes no character."""
        self._pending.append(token_id)
        text = self._decode(self._before + self._pending)[len(self._decode(self._before)) :]
        is_whole = bool(text) and not text.endswith(_REPLACEMENT)
        if is_whole or len(self._pending) == _MOST_PENDING:
            given, self._num_given = self._num_given, 0
            self._before, self._pending = self._pending, []
            return text[given:]
        known = text.rstrip(_REPLACEMENT)
        new = known[self._num_given :]
        self._num_given = max(self._num_given, len(known))
        return new

    def _decode(self, token_ids: list[int]) -> str:
        if not token_ids:
            return ""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """The detokenizer of one request, in vLLM's interface (`vllm.v1.engine.detokenizer.IncrementalDetokenizer`).

    Args:
        before: tokens of the response that the request goes on from; they complete no stop string.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], before: Sequence[int] = ()) -> None:
        self.token_ids: list[int] = []
        self._stream = TextStream(tokenizer)
        self._stop = tuple(stop)
        self._longest = max(map(len, stop))
        self._tail = ""  # of the text, as much as an unfinished stop string can be long
        for token_id in before:
            self._find(self._stream.push(token_id))

    @property
    def output_token_ids(self) -> list[int]:
        """Every token of the response so far."""
        return self.token_ids

    def num_output_tokens(self) -> int:
        """Of the response so far, for vLLM's statistics."""
        return len(self.token_ids)

    def update(self, new_token_ids: list[int], stop_terminated: bool) -> str | None:
        """Take tokens up to the one that completes a stop string, and no more; the string, or None.

        Args:
            new_token_ids: what was sampled since the last call: one, or several under speculative decoding.
            stop_terminated: the last of them is an end token; it is kept like any other.
        """
        for token_id in new_token_ids:
            self.token_ids.append(token_id)
            if (found := self._find(self._stream.push(token_id))) is not None:
                return found
        return None

    def get_next_output_text(self, finished: bool, delta: bool) -> str:
        """Nothing: the text of a response is made once, by `vcppo.common.tasks.decode_response`."""
        return ""

    def _find(self, text: str) -> str | None:
        """The stop string that ends first in the tail and this new text; the longest of those that end together."""
        if not text:
            return None
        known = len(self._tail)
        whole = self._tail + text
        ends = [
            (start + len(stop), -len(stop), stop)
            for stop in self._stop
            if (start := whole.find(stop, max(0, known - len(stop) + 1))) >= 0
        ]
        if ends:
            return min(ends)[2]
        self._tail = whole[-(self._longest - 1) :] if self._longest > 1 else ""
        return None


def watch(engine: Any, request_id: str, watcher: StopStrings) -> None:
    """Give a request just added to vLLM's LLMEngine this detokenizer. ``request_id`` is vLLM's, of `add_request`."""
    engine.output_processor.request_states[request_id].detokenizer = watcher


def judged_text(text: str, stop_string: str | None, keep: bool) -> str:
    """What the verifier sees of a decoded response: all, or what comes before the stop string that ended it.

    Args:
        text: the whole response, decoded; it may go on behind the stop string, as far as its last token does.
        stop_string: what ended it, if it was one.
        keep: ``sampling.stop_in_text``: up to and with the stop string.
    """
    start = text.rfind(stop_string) if stop_string else -1
    if stop_string is None or start < 0:  # it named special tokens, which are not in this text
        return text
    return text[: start + len(stop_string)] if keep else text[:start]
