"""Control calls, typed on both ends: what one end sends is what the other reads, and nothing else is taken."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import numpy as np
import pytest

from vcppo.common.transport.control import pack, unpack
from vcppo.common.transport.generator_calls import (
    Abort,
    Call,
    Canary,
    Dismiss,
    FinishWeightUpdate,
    GeneratorStatus,
    InitWeightTransfer,
    LeaveWeightGroup,
    Pause,
    Received,
    Resume,
    Resumed,
    StartWeightUpdate,
    Status,
    UpdateWeights,
    serving,
)

STATUS = GeneratorStatus("generator-0", policy_version=3, epoch=7, paused=False, num_in_flight=2, busy=None)
CALLS: list[tuple[Call[Any], Any]] = [
    (Status(), STATUS),
    (InitWeightTransfer({"rank_offset": 1}), None),
    (Pause(), None),
    (StartWeightUpdate(), None),
    (UpdateWeights({"names": ["a"]}), None),
    (FinishWeightUpdate(4), Received([{"sum": 1}])),
    (Canary(np.arange(3, dtype=np.int32), 1), np.zeros(2, np.float32)),
    (Resume(), Resumed(0.5)),
    (LeaveWeightGroup(), None),
    (Abort(), None),
    (Dismiss("again and again"), None),
]


def test_every_call_is_here() -> None:
    assert {type(call) for call, _ in CALLS} == set(Call.__subclasses__())


@pytest.mark.parametrize(("call", "answer"), CALLS)
def test_a_call_and_its_answer_arrive_as_they_were_sent(call: Call[Any], answer: Any) -> None:
    heard: list[Call[Any]] = []

    async def handler(received: Call[Any]) -> Any:
        heard.append(received)
        return answer

    method = serving({type(call): handler})[call.method]
    came_back = type(call).read_answer(unpack(pack(asyncio.run(method(**unpack(pack(call.arguments())))))))
    assert type(heard[0]) is type(call)
    for field in dataclasses.fields(call):  # type: ignore[arg-type]
        np.testing.assert_array_equal(getattr(heard[0], field.name), getattr(call, field.name))
    if isinstance(answer, np.ndarray):
        np.testing.assert_array_equal(came_back, answer)
    else:
        assert came_back == answer


BAD_CALLS: list[tuple[type[Call[Any]], dict[str, Any], str]] = [
    (FinishWeightUpdate, {"policy_version": "4"}, "finish_weight_update: policy_version: "),
    (FinishWeightUpdate, {"policy_version": 4.0}, "policy_version"),
    (FinishWeightUpdate, {"policy_version": True}, "policy_version"),
    (FinishWeightUpdate, {}, "policy_version"),
    (Pause, {"seconds": 1}, "seconds"),
    (Dismiss, {"reason": b"x"}, "reason"),
    (UpdateWeights, {"update_info": [1]}, "update_info"),
    (InitWeightTransfer, {"init_info": None}, "init_info"),
]


@pytest.mark.parametrize(("kind", "arguments", "text"), BAD_CALLS)
def test_what_does_not_fit_is_refused_by_name(kind: type[Call[Any]], arguments: dict[str, Any], text: str) -> None:
    async def handler(call: Any) -> None:
        raise AssertionError("the engine heard of it")

    with pytest.raises(ValueError, match=kind.method) as refused:
        asyncio.run(serving({kind: handler})[kind.method](**arguments))
    assert text in str(refused.value)


@pytest.mark.parametrize(
    "value", [None, [], "fine", 3, {}, dataclasses.asdict(STATUS) | {"busy": 3}, dataclasses.asdict(STATUS) | {"x": 1}]
)
def test_an_answer_that_is_none_is_told(value: Any) -> None:
    with pytest.raises(ValueError, match="no answer to status"):
        Status.read_answer(value)
    if value is not None:
        with pytest.raises(ValueError, match="no answer to pause"):
            Pause.read_answer(value)
