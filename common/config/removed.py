"""Settings that are gone, and what took their place: what loading says when a file still has one."""

from __future__ import annotations

from typing import Final

REMOVED: Final = {
    "broadcast.canary_tolerance": (
        "this setting is gone: take it out. Log-probs are compared with what rounding explains, which is measured; "
        "broadcast.noise_factor says how many times as large the mean difference may be"
    ),
}
