"""Functions of the user's module: loaded by name, or refused by name before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vcppo.common.config import TaskConfig
from vcppo.common.errors import EXIT_USAGE
from vcppo.common.rewards.reward_functions import RewardError, load_reward_functions
from vcppo.common.tasks import load_task


def brevity(answer: Any, response: str, finish_reason: str) -> float:
    return 1 / (1 + len(response))


def two(answer: Any, response: str) -> float:
    return 0.0


async def later(answer: Any, response: str, finish_reason: str) -> float:
    return 0.0


CONSTANT = 3.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such_module_of_mine:x", "task.rewards: no_such_module_of_mine:x can't be imported: ModuleNotFoundError"),
        (f"{__name__}:absent", "can't be imported: AttributeError"),
        (f"{__name__}:two", r"two takes \(answer: .*: it must take \(answer, response, finish_reason\)"),
        (f"{__name__}:later", "is async: give a plain function"),
        (f"{__name__}:CONSTANT", "is a float, not a function"),
        (f"{__name__}:Path", "is a type, not a function"),
    ],
)
def test_what_can_not_be_called_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(RewardError, match=text) as caught:
        load_reward_functions([name])
    assert caught.value.exit_code == EXIT_USAGE
    with pytest.raises(RewardError, match=text):  # wherever a task is loaded
        load_task(TaskConfig.model_validate({"rewards": [{"name": name}]}))


def test_a_function_is_known_by_its_name() -> None:
    assert load_reward_functions([f"{__name__}:brevity"]) == {"brevity": brevity}


def test_a_module_that_raises_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(RewardError, match="ZeroDivisionError: division by zero"):
        load_reward_functions(["my_broken_rewards:x"])
