"""What a task is: where prompts come from, how a response is judged, and what the cold start imitates.

To bring your own, subclass `Task` in any importable module (`vcppo` has all the names) and name it in the config::

    task:
      name: my_package.my_task:MyTask
      options: {difficulty: 3}          # handed to MyTask(difficulty=3)

    from vcppo import Problem, Task, Verdict

    class MyTask(Task):
        def __init__(self, difficulty: int = 1) -> None: ...
        def problems(self, split, seed, start, count): ...      # required
        def verify(self, answer, response, finish_reason): ...  # required
        def demonstrations(self, seed, count, style): ...       # only for `vcppo sft`
        def tokenizer(self): ...                                # only for models made from scratch

A task must not import torch: it is loaded in every process, and its verifier runs in child processes
that are killed at a deadline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.records.trajectory import FinishReason, Outcome

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Split = Literal["train", "held_out"]
"""Which problems: those that are trained on, or those that evaluations ask."""

ChatMessages = list[dict[str, Any]]
"""A prompt as a chat: ``[{"role": "user", "content": "..."}]``. The model's chat template makes text of it.

Every message has a role and a content, which are text. An assistant's may have ``tool_calls`` too."""


class Chat(NamedTuple):
    """Chat messages, and what else the model's chat template gets.

    Attributes:
        messages: as `ChatMessages`.
        tools: JSON schemas of functions that the policy may call; None: the template gets none.
        template_kwargs: further variables of the template, such as ``{"enable_thinking": False}``.
    """

    messages: ChatMessages
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None


Text = str | ChatMessages | Chat
"""A prompt: plain text, chat messages, or a `Chat` with tools or variables for the template."""


class TaskError(VcppoError):
    """A task that can't be loaded or used as configured; the text names the place and the remedy.

    Starting the process again would end the same way, so nobody does.
    """

    exit_code = EXIT_USAGE


class Problem(NamedTuple):
    """One question.

    Attributes:
        prompt: plain text, or chat messages (``[{"role": "user", "content": ...}]``) that the model's own chat
            template turns into text, alone or in a `Chat`. `vcppo.common.tasks.encode_prompt` makes tokens of each.
        answer: what `Task.verify` needs to judge a response. It travels through Redis, so JSON-able; the policy
            never sees it.
    """

    prompt: Text
    answer: dict[str, object]


class Finding(NamedTuple):
    """Something wrong with a task's own data or options.

    Attributes:
        level: ``error``: training or evaluation would be wrong. ``warning``: a person should look at it.
        where: the place: a row (``train.jsonl:17``), a file, or an option (``task.options.prompt_template``).
        text: what is wrong, with the value.
        remedy: what to do about it.
    """

    level: Literal["error", "warning"]
    where: str
    text: str
    remedy: str


class Demonstration(NamedTuple):
    """One example for the cold start. The response ends without an end-of-sequence token: SFT adds it."""

    prompt: Text
    response: str


class Verdict(NamedTuple):
    """What the verifier found.

    Attributes:
        outcome: what accuracy counts, whatever the reward.
        extracted: the answer it read; None when it could read none.
        reward: a number; None: ``task.reward_correct`` or ``task.reward_wrong``, by outcome.
        components: named parts. Each is drawn as ``reward/<name>``; those with a weight in ``task.reward_weights`` are
            added to the reward (docs/rewards.md).
    """

    outcome: Outcome
    extracted: str | None
    reward: float | None = None
    components: Mapping[str, float] = MappingProxyType({})


class Task(ABC):
    """Problems, their verifier, and optionally demonstrations and a tokenizer.

    Attributes:
        version: raise it when the same options start to mean other problems or demonstrations: it is part of the
            hash by which a finished cold start is recognised.
        is_environment: it has several turns (`vcppo.Environment`).
        is_agent: a program of the user's asks the policy itself (`vcppo.Agent`). It is an environment too.
        judged_by: functions of the user's (``module:function``) that a built-in task judges with: their source is part
            of the hash by which a recording is recognised.
    """

    version: ClassVar[int] = 1
    is_environment: ClassVar[bool] = False
    is_agent: ClassVar[bool] = False
    judged_by: Sequence[str] = ()

    @abstractmethod
    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """Problems number ``start … start + count - 1`` of the endless sequence that (split, seed) defines.

        Random access and deterministic: a resumed run asks for the next number, so it neither skips nor repeats.
        A finite data set starts over (in another order) when it is used up. No held-out problem may occur in
        the train split, whatever the seeds.
        """

    @abstractmethod
    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Judge one response.

        Pure and picklable by name; may be slow or even hang on hostile text: it runs in a child process that is
        killed at ``task.verifier_timeout_seconds`` (outcome ``timeout``; an exception is outcome ``crash``, and so is
        a reward or component that is not finite).

        Args:
            answer: the problem's `Problem.answer`.
            response: decoded response without the end-of-sequence and padding tokens at its end. All other special
                tokens stay where they are (``<think>``, ``</think>``, ``<tool_call>``).
            finish_reason: ``stop``: the policy ended it; ``length``: it was cut off.
        """

    def num_problems(self, split: Split) -> int | None:
        """So many problems of the sequence, whatever the seed, are all different; None: there is no end to them.

        An evaluation asks for no more, so that it counts none twice.
        """
        return None

    def size(self, split: Split) -> int | None:
        """How many different problems the split has; None: as many as are asked for. Default: `num_problems`.

        ``problems(split, seed, 0, size(split))`` gives each of them once, whatever the seed.
        """
        return self.num_problems(split)

    def parts(self) -> Sequence[Task]:
        """The tasks whose problems these are, for a look through all there are; default: itself."""
        return (self,)

    def where(self, split: Split, seed: int, number: int) -> str:
        """The place that problem `number` of the sequence comes from, e.g. ``train.jsonl:17``: for messages."""
        return f"problem {number} of the {split} split (seed {seed})"

    def findings(self) -> Iterable[Finding]:
        """Everything wrong with the task's own data and options, all rows in one go. May take a minute.

        What is cheap to find and makes training wrong is refused by `TaskError` when the task is made, too.
        """
        return ()

    def left_out(self) -> Mapping[str, int]:
        """How many rows the task's own filters leave out, by filter; empty: it has none."""
        return {}

    def questions(self, split: Split, count: int) -> list[str]:
        """Text of the first `count` questions, each once, without what all prompts share (for overlap checks)."""
        known = self.num_problems(split)
        problems = self.problems(split, 0, 0, count if known is None else min(count, known))
        prompts = [problem.prompt for problem in problems]
        chats = [each.messages if isinstance(each, Chat) else each for each in prompts]
        return [each if isinstance(each, str) else each[-1]["content"] for each in chats]

    def warm_up(self) -> None:  # noqa: B027  (optional: most verifiers have nothing to import)
        """Called once in each verifier child before the first deadline runs: import what `verify` is slow to import."""

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """`count` examples for the cold start, drawn from train problems only.

        Args:
            seed: the same seed gives the same examples.
            style: the SFT phase's ``style`` mapping; the task documents its keys and refuses others by `TaskError`.

        Raises:
            TaskError: this task has no demonstrations.
        """
        raise TaskError(
            f"task {type(self).__name__} has no demonstrations: leave sft.phases empty and start from your own "
            "model (model.path), or implement demonstrations()"
        )

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a model made from scratch (``sft.init: scratch``); None: the task needs a model with one.

        It needs the tokens ``<pad>`` and ``<eos>``.
        """
        return None

    def chat_template(self) -> str | None:
        """The chat template of such a model, in Jinja; None: the task's prompts are plain text."""
        return None


Options = TypeVar("Options", bound="TaskOptions")


class TaskOptions(BaseModel):
    """Base of the built-in tasks' options and styles: typed, documented field by field, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def parse_options(kind: type[Options], values: Mapping[str, object], where: str) -> Options:
    """`values` as a `kind`; TaskError names `where`, the field, its value and what is accepted."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "(whole)"
        accepted = ", ".join(kind.model_fields)
        raise TaskError(
            f"{where}.{field} = {first['input']!r}: {first['msg']} (accepted fields: {accepted})"
        ) from error
