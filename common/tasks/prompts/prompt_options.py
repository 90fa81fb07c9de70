"""What tasks of questions have in common: options that make a prompt of one, and what of a response is judged."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import Chat, ChatMessages, TaskError, TaskOptions, Text
from vcppo.common.tasks.prompts.chat import reserved
from vcppo.common.tasks.prompts.messages import with_instruction, with_system_prompt
from vcppo.common.tasks.prompts.template import check_no_placeholder, fill_in


class PromptOptions(TaskOptions):
    """Options that make a prompt of a question, and say what of a response is judged."""

    prompt_template: str | None = None
    """Plain-text prompt with {question}, for base models. None: chat messages through the model's chat template.

    Braces meant literally are doubled: ``{{name}}``. Behind a LaTeX command (``\\boxed{answer}``) they need not be."""

    system_prompt: str | None = None
    """System message of the chat form."""

    instruction: str = ""
    """Follows the question in the chat form."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the model's chat template, e.g. {enable_thinking: false}."""

    end_of_thinking: str = "</think>"
    """Only what follows the last of these in a response is judged."""

    require_thinking: bool = False
    """A response without end_of_thinking is `unparsable`; else all of it is judged."""

    judge_truncated: bool = False
    """Judge responses cut off by length too; else they are `unparsable`."""


class Prompter:
    """Makes prompts by the options.

    Raises:
        TaskError: options that contradict each other, or a template that asks nothing.
    """

    def __init__(self, options: PromptOptions) -> None:
        self._options = options
        self._fill_in = None if options.prompt_template is None else fill_in(options.prompt_template)
        check_no_placeholder(options.instruction, "instruction")
        check_no_placeholder(options.system_prompt or "", "system_prompt")
        if options.prompt_template is not None and options.chat_template_kwargs:
            raise TaskError(
                "task.options.chat_template_kwargs is for the model's chat template, and prompt_template takes its "
                "place: leave one out"
            )
        if names := reserved(options.chat_template_kwargs):
            raise TaskError(
                f"task.options.chat_template_kwargs: {', '.join(names)} can't be set here: "
                "vcppo hands it to the template itself, or it is no name of a variable"
            )

    def prompt(
        self, question: str, messages: ChatMessages | None = None, tools: list[dict[str, Any]] | None = None
    ) -> Text:
        """Of a question, or of a chat in its place: it gets an instruction only if somebody chose one."""
        options = self._options
        if self._fill_in is not None:
            return self._fill_in(question)
        chat = messages or [{"role": "user", "content": question}]
        if options.instruction and (messages is None or "instruction" in options.model_fields_set):
            chat = with_instruction(chat, options.instruction)
        if options.system_prompt:
            chat = with_system_prompt(chat, options.system_prompt, "task.options")
        if tools or options.chat_template_kwargs:
            return Chat(chat, tools or None, options.chat_template_kwargs or None)
        return chat


def judged_part(options: PromptOptions, response: str, finish_reason: FinishReason) -> str | None:
    """What follows the thinking; None: by the options there is nothing to judge."""
    if finish_reason != "stop" and not options.judge_truncated:
        return None
    _, marker, final = response.rpartition(options.end_of_thinking)
    return None if options.require_thinking and not marker else final
