"""Bytes of a run's store, changed behind everybody's back: what `vcppo chaos` and the tests do to it, nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from vcppo.common.store.run_store import RunStore


def flip_bit(payload: bytes, bit: int = 321) -> bytes:
    """As memory or a disk may do it."""
    damaged = bytearray(payload)
    place = bit % (8 * len(damaged))
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def garble(payload: bytes) -> bytes:
    """Something that nobody can decode."""
    return b"\xc1" * len(payload)


def damage_payload(store: RunStore, prompt_id: str, change: Callable[[bytes], bytes | None]) -> bool:
    """Write `change` of the trajectory of a buffered or claimed prompt in its place; None: take it away.

    Returns False when the prompt has none (any more).
    """
    key = f"{store._prefix}payloads"
    payload = store.stored([prompt_id]).get(prompt_id)
    if payload is None:
        return False
    changed = change(payload)
    if changed is None:
        store._redis.call("damage", lambda client: client.hdel(key, prompt_id))
    else:
        store._redis.call("damage", lambda client: client.hset(key, prompt_id, changed))
    return True


def damage_one(
    store: RunStore,
    state: Literal["buffered", "claimed"],
    choose: Callable[[Sequence[str]], str | None],
    change: Callable[[bytes], bytes],
) -> str | None:
    """Write `change` of the trajectory that `choose` picks, while nobody else changes that state or any payload.

    Args:
        choose: from the prompts in the state, oldest first; None: none of them.

    Returns:
        The prompt's id; None when none was picked.
    """
    in_state, payloads = store._prefix + state, store._prefix + "payloads"

    def exchange(pipeline: Any) -> str | None:
        prompt_id = choose([raw.decode() for raw in pipeline.zrange(in_state, 0, -1)])
        payload = None if prompt_id is None else pipeline.hget(payloads, prompt_id)
        pipeline.multi()
        if payload is None:
            return None
        pipeline.hset(payloads, prompt_id, change(payload))
        return prompt_id

    found = store._redis.call(
        "damage", lambda client: cast(Any, client).transaction(exchange, in_state, payloads, value_from_callable=True)
    )
    return cast("str | None", found)
