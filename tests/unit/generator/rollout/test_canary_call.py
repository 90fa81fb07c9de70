"""A canary call that is none is refused before the engine hears of it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.canary_call import CanaryCall
from vcppo.generator.rollout.control import WeightControl

IDS = np.arange(10, dtype=np.int32)


def test_sequences_are_taken_apart() -> None:
    call = CanaryCall.of(IDS, 1, np.asarray([4, 6], np.int32), 3)
    assert [each.tolist() for each in call.sequences] == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert (call.prompt_length, call.num_sampled) == (1, 3)
    assert [len(each) for each in CanaryCall.of([1, 2, 3], 2).sequences] == [3]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": []}, "token_ids holds 0 tokens"),
    ({"token_ids": None}, "token_ids is an array of object"),
    ({"token_ids": "abc"}, "token_ids is an array of"),
    ({"token_ids": [[1, 2], [3, 4]]}, "with 2 dimensions"),
    ({"token_ids": [[1], [2, 3]]}, "token_ids is"),
    ({"token_ids": [1.5, 2.5]}, "token_ids is an array of float64"),
    ({"token_ids": [1, -7, 3]}, "token_ids holds -7: token ids are 0 to"),
    ({"token_ids": [1, 2**40]}, f"token_ids holds {2**40}"),
    ({"token_ids": [1, 2**70]}, "token_ids is"),
    ({"token_ids": np.ones(100_000, np.int32)}, "token_ids holds 100000 tokens"),
    ({"token_ids": [*range(65_536), "x" * 2**20]}, "token_ids holds 'xxx"),  # as an array it would take 256 GiB
    ({"prompt_length": 0}, "prompt_length = 0"),
    ({"prompt_length": 10}, "prompt_length = 10: give at least 1 and less than the shortest sequence, which has 10"),
    ({"prompt_length": -1}, "prompt_length = -1"),
    ({"prompt_length": "1"}, "prompt_length = '1'"),
    ({"prompt_length": True}, "prompt_length = True"),
    ({"lengths": [5, 4]}, "must be 1 to 64 positive numbers that sum to the 10 tokens"),
    ({"lengths": [11, -1]}, "lengths"),
    ({"lengths": []}, "lengths"),
    ({"lengths": [8, 1, 1], "prompt_length": 1}, "prompt_length = 1"),
    ({"num_sampled": 10}, "num_sampled = 10: give 0 to 8"),
    ({"num_sampled": -1}, "num_sampled = -1"),
    ({"num_sampled": "x" * 100_000}, "num_sampled = 'xxxx"),
    ({"prompt_length": "x" * 100_000}, "prompt_length = 'xxxx"),
    ({"token_ids": np.zeros(400, np.int32), "num_sampled": 300}, "num_sampled = 300: give 0 to 256"),
    ({"token_ids": [1, 2, 100]}, "token_ids holds 100: the model has 100 tokens"),
    ({"token_ids": [1, 2, 10**9]}, "token_ids holds 1000000000: the model has 100 tokens"),
    ({"token_ids": np.zeros(51, np.int32)}, "lengths holds 51: sequences have at most 50 tokens"),
]


@pytest.mark.parametrize(("changes", "text"), BAD)
def test_what_is_no_call_is_refused_and_the_engine_does_not_hear_of_it(changes: dict[str, Any], text: str) -> None:
    class Engine:
        num_in_flight = 0
        is_dead = False
        shutdown_weight_transfer = None

    async def main() -> None:
        async def nothing() -> None: ...

        control = WeightControl(
            Engine(),
            "generator-0",
            60.0,
            limits=CallLimits(vocabulary=100, max_tokens=50, deadline_seconds=60.0, is_gloo=True),
            drop_in_flight=nothing,
            end=lambda _: None,  # type: ignore[arg-type]
        )
        control.loaded(3)
        arguments = {"token_ids": IDS, "prompt_length": 2} | changes
        with pytest.raises(ValueError, match="canary: ") as refused:
            await control.handlers()["canary"](**arguments)
        assert text in str(refused.value)
        assert len(str(refused.value)) < 1000
        assert control.policy_version == 3
        assert control.gate.may_send

    asyncio.run(main())
