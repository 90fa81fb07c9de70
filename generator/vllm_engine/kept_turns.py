"""Sequences that stay in vLLM between two turns, and which of them has to go when others need the room.

While an environment answers, the sequence of its rollout waits in vLLM as a resumable request, with its KV cache. The
next turn is then computed from the token before on. As a new request it would be computed from the last whole block of
the prefix cache on: on the CPU, with blocks of 32 tokens, that is more than a short turn itself.

`KeptTurns` is bookkeeping, without vLLM. What it holds to, so that no sequence ever waits for memory that only waiting
ones hold: **the requests in flight, at their longest, and all kept sequences fit into the KV cache together.** A turn
for which that is not so is an ordinary request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any


@dataclass(eq=False, slots=True)
class Turns:
    """The turns of one rollout, as the engine knows them. Empty: no sequence of it is in vLLM.

    Attributes:
        request_id: its sequence's, as we named it.
        internal_id: vLLM's own name of it.
        token_ids: all tokens; the last one is sampled, and vLLM has not computed it.
        num_sampled: tokens that vLLM has sampled for this request, in all of its turns.
    """

    request_id: str = ""
    internal_id: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_sampled: int = 0

    def clear(self) -> None:
        """Its sequence is in vLLM no more."""
        self.request_id, self.internal_id, self.token_ids, self.num_sampled = "", "", [], 0

    def begins(self, token_ids: Sequence[int]) -> bool:
        """Whether its sequence can go on as these: they begin with all of its tokens."""
        count = len(self.token_ids)
        return bool(self.request_id) and list(token_ids[:count]) == self.token_ids


class KeptTurns:
    """Which sequences stay; the one that has waited longest goes first.

    Args:
        num_blocks, block_size: of the KV cache.
        max_sequences: that vLLM runs at once; one that waits between turns counts.
    """

    def __init__(self, num_blocks: int, block_size: int, max_sequences: int) -> None:
        self._num_blocks, self._block_size, self._max_sequences = num_blocks, block_size, max_sequences
        self._kept: dict[Turns, int] = {}  # blocks of each, in the order in which they were kept
        self._in_flight: dict[str, int] = {}  # blocks of each request at its longest

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Blocks of each request in flight, at its longest."""
        return self._in_flight

    @property
    def kept(self) -> Mapping[Turns, int]:
        """Blocks of each sequence that waits, the oldest first."""
        return self._kept

    def fits(self, num_tokens: int) -> bool:
        """Whether a request of so many tokens, at its longest, may be one of several turns."""
        return sum(self._in_flight.values()) + self._blocks(num_tokens) <= self._num_blocks

    def begin(self, request_id: str, num_tokens: int) -> list[Turns]:
        """A request of so many tokens, at its longest, comes. The sequences that have to go are returned."""
        self._in_flight[request_id] = self._blocks(num_tokens)
        return self._let_go()

    def end(self, request_id: str) -> None:
        """It is not in flight any more."""
        self._in_flight.pop(request_id, None)

    def keep(self, turns: Turns) -> list[Turns]:
        """This sequence waits for its next turn. The sequences that have to go are returned: it may be one of them."""
        self._kept[turns] = self._blocks(len(turns.token_ids))
        return self._let_go()

    def take(self, turns: Turns) -> None:
        """This one goes on, or ends."""
        self._kept.pop(turns, None)

    def _let_go(self) -> list[Turns]:
        gone = []
        while self._kept and not self._has_room():
            oldest = next(iter(self._kept))
            del self._kept[oldest]
            gone.append(oldest)
        return gone

    def _has_room(self) -> bool:
        blocks = sum(self._in_flight.values()) + sum(self._kept.values())
        return blocks <= self._num_blocks and len(self._in_flight) + len(self._kept) <= self._max_sequences

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)


def resumable(
    turns: Turns, request_id: str, prompt: Mapping[str, Any], params: Any
) -> tuple[str, Callable[[Any], str], Callable[[Any, str], None]]:
    """The request's name, how vLLM is given it, and what takes down vLLM's own name of it.

    Its name in vLLM is read here, in the event loop: by the time the engine's thread adds it, it may be cleared.
    """
    known_as = turns.internal_id if turns.request_id else None
    turns.request_id = turns.request_id or request_id

    def take_down(engine: Any, internal_id: str) -> None:
        turns.internal_id = internal_id

    return turns.request_id, partial(_add_turn, turns.request_id, prompt, params, known_as), take_down


def _add_turn(request_id: str, prompt: Mapping[str, Any], params: Any, internal_id: str | None, engine: Any) -> str:
    """Give vLLM's LLMEngine a request that may go on, or the next tokens of one; vLLM's own name of it.

    `LLMEngine.add_request` makes no resumable requests; these are the steps of `AsyncLLM._add_streaming_input_request`.
    Raises what vLLM refuses it with.

    Args:
        internal_id: vLLM's own name of the request that goes on; None: this is a new one.
    """
    request = engine.input_processor.process_inputs(
        internal_id or request_id,
        dict(prompt),
        params,
        supported_tasks=engine.get_supported_tasks(),
        resumable=True,
    )
    if internal_id:
        request.external_req_id = request_id
    else:
        engine.input_processor.assign_request_id(request)
    engine.output_processor.add_request(request, None, None, 0)
    # Both lengthen their list at each turn, and with the core in this process it would be one list.
    request.prompt_token_ids = list(request.prompt_token_ids)
    engine.engine_core.add_request(request)
    return str(request.request_id)


def may_keep(vllm_config: Any) -> bool:
    """Whether sequences of this engine can wait between turns: plain attention, and tokens come one by one."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    return (
        bool(cache.num_gpu_blocks)
        and not model.is_hybrid
        and not model.is_attention_free
        and vllm_config.speculative_config is None
        and not vllm_config.scheduler_config.async_scheduling
    )
