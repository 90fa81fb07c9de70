"""The JSON form of a reward service, and its reading. Pure.

    POST url    {"items": [{"id", "prompt", "answer", "response", "finish_reason", "messages"?}]}
    200         {"items": [{"id", "reward", "outcome"?, "components"?}]}

Each item of an answer is read by itself: a bad one does not spoil the others of its request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.rewards.reward_parts import number_of, parts_of_verdict
from vcppo.common.text.yaml_text import one_line
from vcppo.generator.reward_sources.items import Answers, Asked, RequestFailed, Said

BYTES_OF_ITEM = 1 << 14
"""Of an answer, for each item that was asked about."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RequestItem(_Form):
    """One response to be graded; `messages` only where task.reward_service.send_messages asks for them."""

    id: str
    prompt: str
    answer: dict[str, Any]
    response: str
    finish_reason: FinishReason
    messages: list[dict[str, Any]] | None = None


class Request(_Form):
    """What is posted: 1 to task.reward_service.batch_size items."""

    items: list[RequestItem]


class AnswerItem(_Form):
    """What is said of one response. `outcome`, where it is given, replaces that of the task's own verifier."""

    id: str
    reward: Annotated[float, Field(strict=False)]
    outcome: Literal["correct", "wrong", "unparsable"] | None = None
    components: dict[str, Annotated[float, Field(strict=False)]] = {}


class Answer(_Form):
    """What is answered: one item for each that was asked about, in any order."""

    items: list[Any]


def request_of(items: Sequence[Asked], with_messages: bool = False) -> dict[str, Any]:
    """The body that asks about these."""
    forms = [
        RequestItem(
            id=item.id,
            prompt=item.prompt,
            answer=dict(item.answer),
            response=item.response,
            finish_reason=item.finish_reason,
            messages=item.conversation if with_messages else None,
        )
        for item in items
    ]
    return {"items": [form.model_dump(mode="json", exclude_none=True) for form in forms]}


def read_answer(body: Any, ids: Sequence[str]) -> Answers:
    """What `body` says of the items asked about.

    Raises:
        RequestFailed: it has another form as a whole.
    """
    try:
        answer = Answer.model_validate(body)
    except ValidationError as error:
        raise RequestFailed(f"no answer of the form {{'items': [...]}}: {_first(error)}", by_items=True) from None
    said: dict[str, Said] = {}
    faults: dict[str, str] = {}
    strange = 0
    for each in answer.items:
        item_id = each.get("id") if isinstance(each, dict) else None
        if not isinstance(item_id, str) or item_id not in ids:
            strange += 1
        elif item_id in said or item_id in faults:
            faults[item_id] = "it is answered twice"
        else:
            try:
                said[item_id] = _said(each)
            except ValueError as error:  # pydantic's is one
                faults[item_id] = _first(error) if isinstance(error, ValidationError) else one_line(error)
    faults |= {item_id: "it is not answered" for item_id in ids if item_id not in said and item_id not in faults}
    return Answers({name: each for name, each in said.items() if name not in faults}, faults, strange)


def _said(item: dict[str, Any]) -> Said:
    """ValueError: it is no answer."""
    if any(isinstance(value, bool | str) for value in (item.get("reward"), *_values(item.get("components")))):
        raise ValueError("reward and components must be numbers")
    form = AnswerItem.model_validate(item)
    return Said(number_of("reward", form.reward), form.outcome, parts_of_verdict(form.components))


def _values(components: object) -> list[object]:
    return list(components.values()) if isinstance(components, dict) else []


def _first(error: ValidationError) -> str:
    """Where and why, without the value: it may be long."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return one_line(": ".join(filter(None, (".".join(map(str, found["loc"])), found["msg"]))))
