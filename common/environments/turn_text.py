"""What an environment says, as tokens that stand behind the policy's own.

Plain text: its tokens. Chat messages: what the model's chat template writes behind an assistant's message when these
follow, up to the beginning of the next assistant's turn. The policy's message itself is not rendered: a stand-in is, so
that what the policy sampled stays as it is. Thinking in earlier turns, which some templates take out, stays too.

What an environment says is anybody's text. A ``<|im_end|>`` in it becomes the plain letters, never the token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from vcppo.common.tasks import encode_prompt, prompt_text
from vcppo.common.tasks.interface import Chat, ChatMessages, TaskError
from vcppo.common.tasks.prompts.chat import ignored
from vcppo.common.text.yaml_text import one_line

_ACTION = "vcppoactionvcppo"  # stands for the policy's message
_BASE: ChatMessages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _ACTION}]
_OTHERWISE = (
    "the model's chat template writes an assistant's message otherwise when messages follow it, so there is no text to"
    " put behind it: use a template that writes one message behind the other, or prompts of plain text"
)
_MOST_FRAMES = 256  # texts between messages, kept at a time
_SAID = 'vcppo"message{}"vcppo'  # stands for what the environment says; its quotes show whether it becomes JSON


class TurnText:
    """Encodes for one model. Make it at the start: it refuses a template that has no such delta.

    Args:
        tokenizer: transformers', of the policy.
        is_chat: whether the task's prompts are chats: then an observation's text is a message of role ``user``.
        template: variables that the prompts give the chat template, such as ``tools``: it gets them here too.

    Raises:
        TaskError: the chat template does not write turns one behind the other, or knows nothing of tools where there
            are some.
    """

    def __init__(self, tokenizer: Any, *, is_chat: bool, template: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._is_chat = tokenizer, is_chat
        self._template = template or {}
        self._controls = _control_ids(tokenizer)
        # What the template writes around words is the same turn by turn.
        self._controls_of = lru_cache(_MOST_FRAMES)(self._find_controls)
        if is_chat:
            self._behind([{"role": "user", "content": "x"}])
        if self._template.get("tools"):
            self._refuse_without_tools()

    def encode(self, content: str | ChatMessages, last_token: int) -> list[int]:
        """Token ids of `content` behind a turn that ended with `last_token`.

        Raises:
            TaskError: the chat template can't render these messages.
        """
        if isinstance(content, str):
            if not self._is_chat:
                return self._plain(content)
            content = [{"role": "user", "content": content}]
        ids = self._messages(content)
        # The policy's own end token is there already. Another one than the template's is not the end of its turn.
        return ids[1:] if ids and ids[0] == last_token and last_token in self._controls else ids

    def begin(self, chat: Chat) -> list[int]:
        """Token ids of a conversation up to the first turn that follows; only an assistant's words in it may hold
        control tokens.

        Raises:
            TaskError: the chat template can't render it.
        """
        for each in chat.messages:
            self._refuse_names(each)
        ids: list[int] = encode_prompt(self._tokenizer, chat).tolist()
        said = {
            number: each
            for number, each in enumerate(chat.messages)
            if each["role"] != "assistant" and self._controls_in(self._ids(each["content"]))
        }
        if not said:
            return ids
        marks = {number: _SAID.format(number) for number in said}
        marked = [{**each, "content": marks.get(place, each["content"])} for place, each in enumerate(chat.messages)]
        return self._filled(prompt_text(self._tokenizer, chat._replace(messages=marked)), marks.values(), said.values())

    def _refuse_without_tools(self) -> None:
        """TaskError where the template leaves the tools out, or what they say."""
        remedy = "use a model whose chat template knows tools, or mend the template"
        asked = [{"role": "user", "content": "x"}]
        self._render(asked, opens=True)
        others = {name: value for name, value in self._template.items() if name != "tools"}
        if "tools" in ignored(self._tokenizer, Chat(asked, self._template["tools"], others)):
            raise TaskError(f"the model's chat template takes no notice of the task's tools: {remedy}")
        self._messages([{"role": "tool", "content": "x", "name": "x"}] * 2)

    def _messages(self, messages: ChatMessages) -> list[int]:
        marks = [_SAID.format(number) for number in range(len(messages))]
        frame = self._behind([{**each, "content": mark} for each, mark in zip(messages, marks, strict=True)])
        return self._filled(frame, marks, messages)

    def _filled(self, frame: str, marks: Iterable[str], messages: Iterable[dict[str, Any]]) -> list[int]:
        """The tokens of `frame` with the messages' words in place of their marks, no control token in them."""
        pieces, texts, rest = list[str](), list[str](), frame
        for mark, message in zip(marks, messages, strict=True):
            # Llama's and Hermes' templates write what a tool says as a string of JSON.
            written = _in_json if _in_json(mark) in rest else str
            before, found, rest = rest.partition(written(mark))
            if not found or written(mark) in rest:
                raise TaskError(
                    f"the model's chat template does not write the environment's message of role "
                    f"{message['role']!r} once, as it is: use another role, or mend the template"
                )
            self._refuse_names(message)
            pieces.append(before)
            texts.append(written(message["content"]))
        whole = "".join(before + text for before, text in zip(pieces, texts, strict=True)) + rest
        expected = [token for piece in (*pieces, rest) for token in self._controls_of(piece)]
        if self._controls_in(ids := self._ids(whole)) == expected:
            return ids
        found_ids: list[int] = []
        for piece, text in zip(pieces, texts, strict=True):
            found_ids += self._ids(piece) + self._plain(text)
        return found_ids + self._ids(rest)

    def _refuse_names(self, message: Mapping[str, Any]) -> None:
        """TaskError where a control token stands in what names a message, or the call that it answers."""
        for key in ("name", "tool_call_id"):
            if self._controls_in(self._ids(message.get(key, ""))):
                raise TaskError(f"a message's {key} holds a control token ({message[key]!r}): use another {key}")

    def _behind(self, messages: ChatMessages) -> str:
        """What the template writes behind an assistant's message when these follow it."""
        followed = self._render([*_BASE, *messages], opens=True).partition(_ACTION)
        if not followed[1] or _ACTION in followed[2] or not followed[2].startswith(self._closing):
            raise TaskError(_OTHERWISE)
        return followed[2]

    @cached_property
    def _closing(self) -> str:
        """What the template writes behind an assistant's message that is the last one."""
        alone = self._render(_BASE, opens=False).partition(_ACTION)
        if not alone[1]:
            raise TaskError(_OTHERWISE)
        return alone[2].rstrip()

    def _render(self, messages: ChatMessages, *, opens: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, add_generation_prompt=opens, tokenize=False, **self._template
                )
            )
        except Exception as error:  # a template is a program of the model's: it raises whatever it likes
            raise TaskError(
                f"the model's chat template can't render what the environment says ({one_line(error)}): use other "
                f"roles than {', '.join(each['role'] for each in messages[2:]) or 'user'}, or mend the template"
            ) from error

    def _plain(self, text: str) -> list[int]:
        """Tokens of a text, no control token among them."""
        if not self._controls_in(ids := self._ids(text)):
            return ids
        for cut in (self._cut_names(text), list(text)):
            ids = [token for piece in cut for token in self._ids(piece)]
            if not self._controls_in(ids):
                return ids
        return [token for token in ids if token not in self._controls]

    def _cut_names(self, text: str) -> list[str]:
        """The text in pieces none of which holds the name of a control token."""
        pieces = [text]
        for name in self._controls.values():
            cut: list[str] = []
            for piece in pieces:
                while len(name) > 1 and (place := piece.find(name)) >= 0:
                    cut.append(piece[: place + 1])
                    piece = piece[place + 1 :]
                cut.append(piece)
            pieces = cut
        return [piece for piece in pieces if piece]

    def _find_controls(self, text: str) -> tuple[int, ...]:
        return tuple(self._controls_in(self._ids(text)))

    def _controls_in(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token in self._controls]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _in_json(text: str) -> str:
    """As `tojson` of chat templates writes it, without the quotes around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _control_ids(tokenizer: Any) -> dict[int, str]:
    """Tokens that are more than text, and their names: special ones, and those that look like tags. A tokenizer may
    write what it doesn't know as one of them: that one is text here."""
    found = {}
    for number, token in tokenizer.added_tokens_decoder.items():
        name = token.content
        if token.special or (name[:1] in "<[" and name[-1:] in ">]"):
            found[int(number)] = name
    unknown = getattr(tokenizer, "unk_token_id", None)
    return {number: name for number, name in found.items() if number != unknown}
