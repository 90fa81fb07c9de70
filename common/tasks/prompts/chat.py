"""A prompt that is a chat, as the model's chat template gets it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from vcppo.common.tasks.interface import Chat, ChatMessages, Text

# What vcppo or transformers hands over itself.
_OWN_ARGUMENTS = frozenset(
    ("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize")
    + ("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict")
    + ("return_assistant_tokens_mask", "tokenizer_kwargs")
)
_END_OF_THINKING = "</think>"


def as_chat(prompt: ChatMessages | Chat) -> Chat:
    """Messages alone as a `Chat` without more."""
    return prompt if isinstance(prompt, Chat) else Chat(prompt)


def render(tokenizer: Any, chat: Chat, *, add_generation_prompt: bool = True) -> str:
    """The text that the tokenizer's chat template makes of a chat.

    Raises:
        Exception: whatever the template raises: it is a program of the model's.
    """
    text: str = tokenizer.apply_chat_template(
        chat.messages, add_generation_prompt=add_generation_prompt, tokenize=False, **template_variables(chat)
    )
    return text


def template_variables(chat: Chat) -> dict[str, Any]:
    """What the template gets beside messages."""
    return {**({} if chat.tools is None else {"tools": chat.tools}), **(chat.template_kwargs or {})}


def own_texts(prompt: Text) -> list[str]:
    """The text that a prompt brings itself: a plain one as it is, a chat's messages."""
    return [prompt] if isinstance(prompt, str) else [message["content"] for message in as_chat(prompt).messages]


def shown_texts(prompt: Text) -> list[str]:
    """As `own_texts`, without what templates leave out on purpose: the thinking of earlier assistant's turns."""
    if isinstance(prompt, str):
        return [prompt]
    return [
        message["content"].rpartition(_END_OF_THINKING)[2] if message["role"] == "assistant" else message["content"]
        for message in as_chat(prompt).messages
    ]


def num_bytes(prompt: Text) -> int:
    """Bytes of all that the chat template gets. A byte-level tokenizer makes no more tokens of them; names and quotes
    of the JSON stand for what the template writes around each message."""
    if isinstance(prompt, str):
        return len(prompt.encode())
    chat = as_chat(prompt)
    return len(json.dumps([chat.messages, chat.tools], ensure_ascii=False).encode())


def without_words(prompt: Text) -> Text:
    """The same roles with nothing said: what is left is what the tokenizer and the template add."""
    if isinstance(prompt, str):
        return ""
    chat = as_chat(prompt)
    return Chat([{"role": each["role"], "content": ""} for each in chat.messages], None, chat.template_kwargs)


def reserved(names: Iterable[str]) -> list[str]:
    """Of names of template variables, those that can't be set: vcppo sets them, or they are no names."""
    return [name for name in names if name in _OWN_ARGUMENTS or not name.isidentifier()]


def ignored(tokenizer: Any, chat: Chat) -> list[str]:
    """What of a chat the template takes no notice of: ``tools``, or a name in `Chat.template_kwargs`."""
    template = tokenizer.get_chat_template(tools=chat.tools)
    words = set("".join(each if each.isalnum() or each == "_" else " " for each in template).split())
    found = [name for name in chat.template_kwargs or {} if name not in words]
    if chat.tools and _is_same_without_tools(tokenizer, chat):
        found.insert(0, "tools")
    return found


def _is_same_without_tools(tokenizer: Any, chat: Chat) -> bool:
    shown = render(tokenizer, chat)
    try:
        return shown == render(tokenizer, chat._replace(tools=None))
    except Exception:  # noqa: BLE001  (a template's own: one that can't do without tools takes notice of them)
        return False
