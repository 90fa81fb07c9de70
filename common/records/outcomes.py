"""How a response ends, and what a verifier finds: names alone, so that a help text can list them without numpy."""

from __future__ import annotations

from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
"""Why a response ended: the policy ended it, it was cut off, or its generation was broken off."""
Outcome = Literal["correct", "wrong", "unparsable", "timeout", "crash"]
"""What a verifier finds. Where it gives no number, all but ``correct`` get ``task.reward_wrong``."""
