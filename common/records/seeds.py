"""Seeds of everything that is drawn: each a pure function of what it is for, so a resumed run draws the same."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["derive_seed"]


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on every part; parts never collide by concatenation."""
    digest = blake2b("\x1f".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
