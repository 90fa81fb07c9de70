"""What a session says, as tokens of one model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vcppo.common.environments.turn_text import TurnText
from vcppo.common.tasks.interface import Chat, ChatMessages, TaskError
from vcppo.generator.endpoint.chat_messages import for_template
from vcppo.generator.endpoint.conversation import Tools
from vcppo.generator.endpoint.refusal import invalid

_MOST_KINDS = 64  # of tools, kept at a time: most agents have one


class ChatEncoder:
    """`Encoder` by the model's chat template. Make it at the start.

    Raises:
        TaskError: the chat template does not write turns one behind the other.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._with_tools = lru_cache(_MOST_KINDS)(self._make)
        self._make("null")

    def prompt(self, messages: ChatMessages, tools: Tools) -> Sequence[int]:
        """See `Encoder.prompt`."""
        try:
            return self._with_tools(json.dumps(tools)).begin(Chat(for_template(messages), tools))
        except TaskError as error:
            raise invalid(f"messages: {error}") from error

    def behind(self, messages: ChatMessages, tools: Tools, last_token: int) -> Sequence[int]:
        """See `Encoder.behind`."""
        try:
            return self._with_tools(json.dumps(tools)).encode(messages, last_token)
        except TaskError as error:
            raise invalid(f"messages: {error}") from error

    def _make(self, tools: str) -> TurnText:
        found = json.loads(tools)
        return TurnText(self._tokenizer, is_chat=True, template={"tools": found} if found else {})
