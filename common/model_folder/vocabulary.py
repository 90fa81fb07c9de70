"""Whether two models mean the same by a token's number. Pure, but for `vocabulary_of`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def vocabulary_of(tokenizer: Any) -> dict[str, int]:
    """Token → number of a transformers tokenizer, added tokens too."""
    return {str(token): int(number) for token, number in tokenizer.get_vocab().items()}


def first_difference(policy: Mapping[str, int], critic: Mapping[str, int]) -> str | None:
    """Where the critic's vocabulary differs from the policy's, at the lowest number; None: nowhere."""
    if policy == critic:
        return None
    of_policy, of_critic = ({number: token for token, number in each.items()} for each in (policy, critic))
    for number in sorted({*of_policy, *of_critic}):
        if (one := of_policy.get(number)) != (other := of_critic.get(number)):
            return f"token {number} is {_shown(one)} of the policy and {_shown(other)} of the critic"
    # Two tokens of one number: the maps differ although each number is the same token in both.
    extra = min({*policy.items()} ^ {*critic.items()})
    return f"only one of them has {extra[0]!r} as token {extra[1]}"


def _shown(token: str | None) -> str:
    return "none" if token is None else repr(token)
