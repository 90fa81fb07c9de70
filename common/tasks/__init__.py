"""Tasks: `load_task` makes one from the config; `Task` is the interface a user implements.

Also here, so that learner and generator agree to the token: how a prompt becomes token ids (`encode_prompt`) and
how response ids become the text a verifier sees (`decode_response`).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from vcppo.common.config import TaskConfig
from vcppo.common.records.trajectory import Int32Array
from vcppo.common.rewards.reward_functions import load_reward_functions
from vcppo.common.rewards.reward_parts import SOURCE
from vcppo.common.tasks.interface import (
    Chat,
    ChatMessages,
    Demonstration,
    Finding,
    Problem,
    Split,
    Task,
    TaskError,
    TaskOptions,
    Text,
    Verdict,
    parse_options,
)
from vcppo.common.tasks.prompts.chat import as_chat, render
from vcppo.common.text.yaml_text import one_line
from vcppo.common.user_modules import IMPORTABLE, import_named

__all__ = [
    "BUILT_IN_TASKS",
    "Chat",
    "ChatMessages",
    "Demonstration",
    "Finding",
    "Problem",
    "Split",
    "Task",
    "TaskError",
    "TaskOptions",
    "Text",
    "Verdict",
    "decode_response",
    "encode_prompt",
    "encode_prompts",
    "prompt_lengths",
    "load_task",
    "parse_options",
    "prompt_text",
    "task_class",
]

BUILT_IN_TASKS = {
    "aime": "vcppo.common.tasks.benchmarks:AimeTask",
    "chain_arithmetic": "vcppo.common.tasks.chain_arithmetic:ChainArithmetic",
    "code": "vcppo.common.tasks.code:CodeTask",
    "command_agent": "vcppo.common.environments.command_agent:CommandAgent",
    "dataset": "vcppo.common.tasks.dataset:DatasetTask",
    "gpqa": "vcppo.common.tasks.benchmarks:GpqaTask",
    "hidden_choices": "vcppo.common.tasks.hidden_choices:HiddenChoices",
    "look_up": "vcppo.common.environments.look_up:LookUp",
    "mix": "vcppo.common.tasks.mix:MixTask",
    "products": "vcppo.common.tools.products:Products",
    "reasoning_gym": "vcppo.common.tasks.reasoning_gym.gym_task:ReasoningGymTask",
    "tools": "vcppo.common.tools.tool_task:ToolTask",
    "verifiers": "vcppo.common.environments.verifiers_agent:VerifiersAgent",
}

_TURN_ENDS = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>")
    + ("<|return|>", "</s>", "<|eos|>", "<eos>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|user|>", "[EOS]")
)


def load_task(config: TaskConfig) -> Task:
    """The task that ``task.name`` names, made with ``task.options``.

    The functions of ``task.rewards`` are loaded too: a process that has a task does not end later for one of them.

    Raises:
        TaskError: no such task, not a `Task`, options it does not take, or a reward source without a place in its
            rewards.
        RewardError: no such function.
    """
    load_reward_functions(each.name for each in config.rewards)
    kind = task_class(config.name)
    _check_source_weight(config, kind)
    try:
        inspect.signature(kind).bind(**config.options)
    except TypeError as error:
        raise TaskError(
            f"task.options do not fit {config.name}: {error}; it takes {inspect.signature(kind)}"
        ) from error
    return kind(**config.options)


def _check_source_weight(config: TaskConfig, kind: type[Task]) -> None:
    """With several turns a source's number is one of the reward's parts, with one it is the base."""
    name, weight = config.reward_source_name, config.reward_weights.get(SOURCE)
    if config.reward_source is None:
        return
    if kind.is_environment and weight is None:
        raise TaskError(
            f"{name}.url: {config.name} has several turns, whose rewards are its own: say what the number counts beside"
            f" them, by task.reward_weights.{SOURCE}"
        )
    if not kind.is_environment and weight is not None:
        raise TaskError(
            f"task.reward_weights.{SOURCE} = {weight:g}: the number of {name} is the whole base in a task of one turn:"
            f" take task.reward_weights.{SOURCE} out"
        )


def encode_prompt(tokenizer: Any, prompt: Text) -> Int32Array:
    """Token ids ``[P]`` int32 of a problem's prompt; chat messages go through the model's chat template.

    Args:
        tokenizer: the transformers tokenizer that belongs to the policy.
        prompt: see `Problem`.
    """
    text, special = _special_text(tokenizer, prompt)
    return np.asarray(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int32)


def encode_prompts(tokenizer: Any, prompts: Sequence[Text]) -> list[Int32Array]:
    """`encode_prompt` of each, with one call of the tokenizer for all of them (of one kind)."""
    texts = [_special_text(tokenizer, prompt) for prompt in prompts]
    encoded: dict[int, Int32Array] = {}
    for kind in (True, False):
        places = [place for place, (_, special) in enumerate(texts) if special is kind]
        if places:
            ids = tokenizer([texts[place][0] for place in places], add_special_tokens=kind)["input_ids"]
            encoded |= {place: np.asarray(each, np.int32) for place, each in zip(places, ids, strict=True)}
    return [encoded[place] for place in range(len(texts))]


def prompt_lengths(tokenizer: Any, prompts: Sequence[Text]) -> list[int]:
    """Tokens of each prompt, as `encode_prompts` makes them."""
    return [len(ids) for ids in encode_prompts(tokenizer, prompts)]


def _special_text(tokenizer: Any, prompt: Text) -> tuple[str, bool]:
    """The text the tokenizer gets, and whether it adds its special tokens (a chat template writes its own)."""
    return prompt_text(tokenizer, prompt), isinstance(prompt, str)


def prompt_text(tokenizer: Any, prompt: Text) -> str:
    """A problem's prompt as text; of chat messages what the model's chat template makes of them. Raises TaskError."""
    if isinstance(prompt, str):
        return prompt
    if tokenizer.chat_template is None:
        raise TaskError(
            "the task gives chat messages, but the model's tokenizer has no chat template: "
            "set task.options.prompt_template for plain text, or use a chat model"
        )
    try:
        return render(tokenizer, as_chat(prompt))
    except Exception as error:  # a template is a program of the model's: it raises whatever it likes
        raise TaskError(
            f"the model's chat template can't render the task's messages ({one_line(error)}): mend the template, "
            "change the chat (its messages, task.options.system_prompt), or set task.options.prompt_template for plain "
            "text"
        ) from error


def decode_response(
    tokenizer: Any, token_ids: Int32Array | Sequence[int], end_ids: Collection[int] = frozenset()
) -> str:
    """The text a verifier sees: without the tokens that end or pad a response at its end, and nothing tidied up.

    Special tokens elsewhere stay: ``</think>``, ``<tool_call>`` and channel marks are special in many tokenizers.

    Args:
        tokenizer: the transformers tokenizer that belongs to the policy.
        token_ids: the response ``[T]``.
        end_ids: what else ends a response (stop tokens of the generation config).
    """
    ids: list[int] = np.asarray(token_ids).tolist()
    ends = {getattr(tokenizer, "eos_token_id", None), getattr(tokenizer, "pad_token_id", None), *end_ids}
    while ids and (ids[-1] in ends or _ends_a_turn(tokenizer, ids[-1])):
        ids.pop()
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _ends_a_turn(tokenizer: Any, token_id: int) -> bool:
    """Models end turns by tokens that their tokenizer does not name as its EOS."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).get(token_id)
    return added is not None and added.special and added.content in _TURN_ENDS


def task_class(name: str) -> type[Task]:
    """The class that ``task.name`` names. Raises TaskError."""
    target = BUILT_IN_TASKS.get(name, name)
    if ":" not in target:
        known = ", ".join(BUILT_IN_TASKS)
        raise TaskError(f"task.name = {name!r} is neither built in ({known}) nor of the form module:Class")
    try:
        kind = import_named(target)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"task.name = {name!r} can't be imported: {error}; {IMPORTABLE}") from error
    if not (inspect.isclass(kind) and issubclass(kind, Task)):
        raise TaskError(f"task.name = {name!r} is not a subclass of vcppo.Task")
    return kind
