"""What a caller of the endpoint is told instead of an answer."""

from __future__ import annotations

from vcppo.common.errors import VcppoError


class Refusal(VcppoError):
    """A request that gets no answer.

    Attributes:
        code: its name, as OpenAI's errors have one.
        status: of HTTP. The usual clients try 429 again, and none of the others that are used here.
    """

    def __init__(self, code: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code, self.status = code, status


def invalid(text: str) -> Refusal:
    """A body that can't be answered; the text begins with the field."""
    return Refusal("invalid_request", text)
