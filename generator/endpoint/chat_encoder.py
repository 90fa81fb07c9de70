"""What a session says, as tokens of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vcppo.common.environments.turn_text import TurnText
from vcppo.common.tasks.interface import Chat, ChatMessages, TaskError
from vcppo.generator.endpoint.chat_messages import for_template
from vcppo.generator.endpoint.conversation import Tools
from vcppo.generator.endpoint.refusal import invalid


class ChatEncoder:
    """`Encoder` by the model's chat template. Make it at the start.

    Raises:
        TaskError: the chat template does not write turns one behind the other.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._turn_text = TurnText(tokenizer, is_chat=True)

    def prompt(self, messages: ChatMessages, tools: Tools) -> Sequence[int]:
        """See `Encoder.prompt`."""
        try:
            return self._turn_text.begin(Chat(for_template(messages), tools))
        except TaskError as error:
            raise invalid(f"messages: {error}") from error

    def behind(self, messages: ChatMessages, last_token: int) -> Sequence[int]:
        """See `Encoder.behind`."""
        try:
            return self._turn_text.encode(messages, last_token)
        except TaskError as error:
            raise invalid(f"messages: {error}") from error
