"""Keys of sessions: each holds for one rollout of one incarnation of one generator.

``vcppo-<incarnation>-<session>-<code>``: the code is an HMAC of the session's number under a secret that never leaves
the process. So whoever has no key can make none, and one that was used up is still known as one of ours.
"""

from __future__ import annotations

import hmac
import re
import secrets

from vcppo.generator.endpoint.refusal import Refusal

_KEY = re.compile(r"vcppo-([0-9a-f]{12})-([0-9]{1,12})-([0-9a-f]{64})")


class SessionKeys:
    """Of one incarnation. Pure but for the secret it begins with."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)
        self._incarnation = secrets.token_hex(6)

    def make(self, number: int) -> str:
        """The key of session `number`."""
        return f"vcppo-{self._incarnation}-{number}-{self._code(str(number))}"

    def number(self, header: str | None) -> int:
        """The session whose key the ``Authorization`` header holds.

        Raises:
            Refusal: no key, a wrong one, or one of another incarnation.
        """
        scheme, _, key = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refusal("no_key", "no key: send `Authorization: Bearer KEY` with the session's api_key", 401)
        parts = _KEY.fullmatch(key.strip())
        if parts is not None and parts[1] != self._incarnation:
            raise Refusal(
                "another_incarnation",
                "the key is of another generator, or of one that was started again: its rollout begins anew there", 401,
            )  # fmt: skip
        if parts is None or not hmac.compare_digest(self._code(parts[2]), parts[3]):
            raise Refusal("wrong_key", "the key is no session's: use the api_key that the agent was given", 401)
        return int(parts[2])

    def _code(self, number: str) -> str:
        return hmac.new(self._secret, number.encode(), "sha256").hexdigest()
