"""The control call ``canary``: token ids whose log-probs the learner wants, checked before the engine hears of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vcppo.common.records.trajectory import Int32Array
from vcppo.common.transport.generator_calls import Canary

MAX_SEQUENCES = 64
MAX_TOKENS = 65_536  # of all sequences together
MAX_SAMPLED = 256  # each is a request of its own
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class CanaryCall:
    """What is to be scored.

    Attributes:
        sequences: each ``[P + T]`` int32.
        prompt_length: P, the same of all: tokens that are given, not scored.
        num_sampled: so many of the first sequence's last tokens are scored once more, by the sampler, at the run's
            temperature.
    """

    sequences: tuple[Int32Array, ...]
    prompt_length: int
    num_sampled: int

    @classmethod
    def of(cls, token_ids: Any, prompt_length: Any, lengths: Any = None, num_sampled: Any = 0) -> CanaryCall:
        """Check what came over the wire. `lengths`: of the sequences in `token_ids`; None: it is one.

        Raises:
            ValueError: names the argument, its value and what it must be.
        """
        ids = _integers("token_ids", token_ids)
        if not 1 <= len(ids) <= MAX_TOKENS:
            raise ValueError(f"canary: token_ids holds {len(ids)} tokens: give 1 to {MAX_TOKENS}")
        wrong = ids[(ids < 0) | (ids > _INT32.max)]
        if len(wrong):
            raise ValueError(f"canary: token_ids holds {int(wrong[0])}: token ids are 0 to {_INT32.max}")
        sizes = _integers("lengths", [len(ids)] if lengths is None else lengths)
        if not 1 <= len(sizes) <= MAX_SEQUENCES or sizes.min() < 1 or int(sizes.sum()) != len(ids):
            raise ValueError(
                f"canary: lengths = {sizes[:8].tolist()} must be 1 to {MAX_SEQUENCES} positive numbers that sum to the "
                f"{len(ids)} tokens of token_ids"
            )
        shortest = int(sizes.min())
        if not _is_int(prompt_length) or not 1 <= prompt_length < shortest:
            raise ValueError(
                f"canary: prompt_length = {repr(prompt_length)[:40]}: give at least 1 and less than the shortest "
                f"sequence, which has {shortest} tokens"
            )
        most = min(MAX_SAMPLED, int(sizes[0]) - prompt_length)
        if not _is_int(num_sampled) or not 0 <= num_sampled <= most:
            raise ValueError(
                f"canary: num_sampled = {repr(num_sampled)[:40]}: give 0 to {most}: of the first sequence's tokens "
                f"that are scored, at most {MAX_SAMPLED}"
            )
        pieces = np.split(ids.astype(np.int32), np.cumsum(sizes)[:-1])
        return cls(tuple(pieces), int(prompt_length), int(num_sampled))

    @classmethod
    def of_call(cls, call: Canary) -> CanaryCall:
        """As `of`."""
        return cls.of(call.token_ids, call.prompt_length, call.lengths, call.num_sampled)

    def check(self, vocabulary: int, max_tokens: int) -> None:
        """Raises ValueError unless a model of `vocabulary` tokens can score sequences as long as these."""
        for sequence in self.sequences:
            if len(sequence) > max_tokens:
                raise ValueError(f"canary: lengths holds {len(sequence)}: sequences have at most {max_tokens} tokens")
            if (largest := int(sequence.max())) >= vocabulary:
                raise ValueError(f"canary: token_ids holds {largest}: the model has {vocabulary} tokens")


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _integers(name: str, values: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    odd = [value for value in values if isinstance(value, str | bytes)] if isinstance(values, list | tuple) else []
    if odd:  # numpy would give each entry as many bytes as the longest has
        raise ValueError(f"canary: {name} holds {repr(odd[0])[:40]}: give integers")
    try:
        found = np.asarray(values)
    except (ValueError, OverflowError) as error:  # ragged, or beyond 64 bits
        raise ValueError(f"canary: {name} is no list of integers ({error})") from None
    if found.ndim != 1 or (found.dtype.kind not in "iu" and found.size) or found.dtype == np.uint64:
        raise ValueError(f"canary: {name} is an array of {found.dtype} with {found.ndim} dimensions: give integers")
    return found.astype(np.int64)
