"""What a learner may ask of a generator, typed on both ends: one class a call, with its arguments and its answer.

The learner makes one and gives it to `ControlClient.ask`; the generator serves a handler for each class
(`serving`). On the wire it is the method's name and its arguments as a map, so both ends may be tested apart. What does
not fit is refused at the generator by the name of the argument, before the engine hears of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

Answer = TypeVar("Answer")
_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class Call(Generic[Answer]):
    """A call and the type of its answer.

    Attributes:
        method: its name on the wire.
        answer: the class of its answer; None: nothing comes back; Any: whoever asked judges it.
    """

    method: ClassVar[str]
    answer: ClassVar[Any] = None

    def arguments(self) -> dict[str, Any]:
        """By name, without those that are None."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: value for field in fields if (value := getattr(self, field.name)) is not None}

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> Call[Answer]:
        """The call that came with these arguments. Raises ValueError, which names the arguments that do not fit."""
        try:
            call: Call[Answer] = cls(**arguments)
        except (TypeError, ValidationError) as error:
            raise ValueError(f"{cls.method}: {_told(error)}") from None
        return call

    @classmethod
    def read_answer(cls, value: Any) -> Answer:
        """What came back, as `answer`. Raises ValueError when it is no answer to this call."""
        if cls.answer is Any or (cls.answer is None and value is None):
            answer: Answer = value
            return answer
        try:
            if cls.answer is None or not isinstance(value, Mapping):
                raise TypeError(f"{str(value)[:40]!r} came")
            answer = cls.answer(**value)
        except (TypeError, ValidationError) as error:
            raise ValueError(f"no answer to {cls.method}: {_told(error)}") from None
        return answer


@dataclass(config=_STRICT, frozen=True)
class GeneratorStatus:
    """What a generator says of itself at any time, also while another call is running.

    Attributes:
        policy_version: of its weights; -1 while it has none that are whole.
        epoch: of its membership of the weight group.
        paused: no finished rollout leaves.
        busy: the call that is running.
    """

    generator_id: Annotated[str, Field(max_length=256)]
    policy_version: Annotated[int, Field(ge=-1)]
    epoch: Annotated[int, Field(ge=0)]
    paused: bool
    num_in_flight: Annotated[int, Field(ge=0)]
    busy: Annotated[str, Field(max_length=64)] | None


@dataclass(config=_STRICT, frozen=True)
class Received:
    """What the engine's workers received in an update: their sums, as `learner.weights.transport_check` reads them."""

    received: Any


@dataclass(config=_STRICT, frozen=True)
class Resumed:
    """Attributes:
    paused_seconds: that the engine stood still for this update.
    """

    paused_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(config=_STRICT, frozen=True)
class Status(Call[GeneratorStatus]):
    """Who are you, and are you free for a call?"""

    method: ClassVar[str] = "status"
    answer: ClassVar[Any] = GeneratorStatus


@dataclass(config=_STRICT, frozen=True)
class InitWeightTransfer(Call[None]):
    """Join the weight group that `init_info` describes; its form is vLLM's and the backend's."""

    init_info: dict[str, Any]
    method: ClassVar[str] = "init_weight_transfer_engine"


@dataclass(config=_STRICT, frozen=True)
class Pause(Call[None]):
    """Send no rollout, begin no prompt; the engine stands still."""

    method: ClassVar[str] = "pause"


@dataclass(config=_STRICT, frozen=True)
class StartWeightUpdate(Call[None]):
    """Tensors are about to come."""

    method: ClassVar[str] = "start_weight_update"


@dataclass(config=_STRICT, frozen=True)
class UpdateWeights(Call[None]):
    """Receive the tensors that `update_info` lists; its form is vLLM's and the backend's."""

    update_info: dict[str, Any]
    method: ClassVar[str] = "update_weights"


@dataclass(config=_STRICT, frozen=True)
class FinishWeightUpdate(Call[Received]):
    """All tensors have come: the weights are those of `policy_version`."""

    policy_version: int
    method: ClassVar[str] = "finish_weight_update"
    answer: ClassVar[Any] = Received


@dataclass(config=_STRICT, frozen=True)
class Canary(Call[Any]):
    """Log-probs of known tokens, so that the learner can tell whether the weights are right.

    Attributes:
        token_ids: ``[sum of lengths]`` integers: the sequences, one after another.
        prompt_length: P, of all of them: tokens that are given, not scored.
        lengths: of the sequences; None: there is one.
        num_sampled: so many of the first sequence's last tokens are scored once more, by the sampler.

    The answer: ``[scored tokens]`` float32, and judged as wrong weights when it is anything else.
    """

    token_ids: Any
    prompt_length: Any
    lengths: Any = None
    num_sampled: Any = 0
    method: ClassVar[str] = "canary"
    answer: ClassVar[Any] = Any


@dataclass(config=_STRICT, frozen=True)
class Resume(Call[Resumed]):
    """The weights are right: go on."""

    method: ClassVar[str] = "resume"
    answer: ClassVar[Any] = Resumed


@dataclass(config=_STRICT, frozen=True)
class LeaveWeightGroup(Call[None]):
    """The weight group is no more; keep the weights and go on."""

    method: ClassVar[str] = "shutdown_weight_transfer_engine"


@dataclass(config=_STRICT, frozen=True)
class Abort(Call[None]):
    """The weights are wrong: give everything in flight back and wait for better ones."""

    method: ClassVar[str] = "abort"


@dataclass(config=_STRICT, frozen=True)
class Dismiss(Call[None]):
    """You are not wanted any more: give everything back and end."""

    reason: str
    method: ClassVar[str] = "dismiss"


def serving(
    handlers: Mapping[type[Call[Any]], Callable[[Any], Awaitable[Any]]],
) -> dict[str, Callable[..., Awaitable[Any]]]:
    """What `ControlServer.serve` takes: methods by name, each of which reads its call and hands it to its handler."""

    def served(kind: type[Call[Any]], handler: Callable[[Any], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def answer(**arguments: Any) -> Any:
            return await handler(kind.read(arguments))

        return answer

    return {kind.method: served(kind, handler) for kind, handler in handlers.items()}


def _told(error: TypeError | ValidationError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'value'}: {each['msg']} ({str(each['input'])[:40]!r})"
        for each in error.errors(include_url=False)
    )
