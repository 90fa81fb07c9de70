"""Environments of the real package `verifiers`, in a Python of its own; the engine is scripted.

`make verifiers-test` makes that Python, or VCPPO_VERIFIERS_PYTHON names one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.common.environments.test_turn_text import CHAT, decoded
from tests.unit.generator.turns.test_agents import TOOLED, Saying, a_prompt, run
from vcppo.common.config import TaskConfig
from vcppo.common.environments import verifiers_program
from vcppo.common.tasks import Chat, Task, TaskError, Verdict, load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.generator.turns.agent_play import AgentPlayer
from vcppo.generator.turns.environment_pool import RolloutLost
from vcppo.generator.turns.play import Played

PYTHON = Path(os.environ.get("VCPPO_VERIFIERS_PYTHON", ROOT / ".cache" / "verifiers" / "bin" / "python"))
MODULE = (Path(__file__).parent / "verifiers_environments.py.txt").read_text()
PYTHON_V1 = Path(os.environ.get("VCPPO_VERIFIERS_V1_PYTHON", ROOT / ".cache" / "verifiers_v1" / "bin" / "python"))
real = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: make verifiers-test")
CRASH = Verdict("crash", None)
real_v1 = pytest.mark.skipif(not PYTHON_V1.exists(), reason=f"no {PYTHON_V1}: make verifiers-test")
CALL = '<tool_call>{"name": "add", "arguments": {"a": 40, "b": 2}}</tool_call>'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of environments, which we are in."""
    (tmp_path / "my_envs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VF_LOG_LEVEL", "ERROR")
    return tmp_path


def settings(**options: Any) -> dict[str, Any]:
    given = {"python": str(PYTHON), "environment": "my_envs", "options": options}
    return {"name": "verifiers", "options": given, "max_rollout_seconds": 60.0}


def loaded(**options: Any) -> Task:
    return load_task(TaskConfig(name="verifiers", options=settings(**options)["options"]))


def played(says: str, model: Any = CHAT, row: int = 0, task: dict[str, Any] | None = None, **options: Any) -> Played:
    async def body(player: AgentPlayer, engine: Saying) -> Played | None:
        return await player.play(a_prompt(split="train", row=row), engine.generate)

    made: Played = run(body, says, model, **{**settings(**options), **(task or {})})
    return made


@real
def test_its_problems_are_the_environments(here: Path) -> None:
    task = loaded(kind="tools")
    assert (task.num_problems("train"), task.num_problems("held_out")) == (10, 3)
    found = problems_of(task, "train", 0, 0, 20)
    assert sorted(str(each.answer["row"]) for each in found[:10]) == sorted(
        str(each.answer["row"]) for each in found[10:]
    )
    prompt, answer = found[0].prompt, found[0].answer
    assert isinstance(prompt, Chat) and prompt.tools is not None
    assert prompt.messages == [
        {"role": "system", "content": "Be exact."}, {"role": "user", "content": f"40+{answer['row']}"}
    ]  # fmt: skip
    assert prompt.tools[0]["function"]["name"] == "add"
    assert answer["answer"] == str(40 + int(str(answer["row"])))
    assert problems_of(loaded(kind="tools"), "train", 0, 3, 4) == found[3:7]


@real
def test_problems_are_held_out_where_the_environment_has_no_others(here: Path) -> None:
    task = loaded(kind="single", held_out=0, train=60)
    (train, held_out) = (task.num_problems(split) for split in ("train", "held_out"))
    assert train is not None and held_out is not None and (train + held_out, 0 < held_out < 20) == (60, True)


@real
def test_one_turn_and_its_rubrics_reward(here: Path) -> None:
    made = played("42", row=2, kind="single")
    assert made.verdict == Verdict("correct", None, 1.0)
    assert made.prompt_token_ids is not None
    asked = decoded(CHAT, made.prompt_token_ids.tolist())
    assert asked == "<|im_start|>system\nBe exact.<|im_end|>\n<|im_start|>user\n40+2<|im_end|>\n<|im_start|>assistant\n"
    assert decoded(CHAT, made.transcript.token_ids.tolist()) == "42<|im_end|>"
    assert all(made.transcript.action_mask) and not made.segments
    assert played("43", row=2, kind="single").verdict == Verdict("wrong", None, -0.5)


@real
def test_tools_are_called_and_their_words_are_no_actions(here: Path) -> None:
    made = played(CALL, TOOLED, row=2, kind="tools", max_turns=3)
    text = decoded(TOOLED, made.transcript.token_ids.tolist())
    assert text.count(CALL) == 3 and text.count("<tool_response>\n42\n</tool_response>") == 2
    mask = made.transcript.action_mask
    assert decoded(TOOLED, made.transcript.token_ids[mask].tolist()) == f"{CALL}<|im_end|>" * 3
    assert (made.verdict.reward, made.segments) == (-0.5, ())  # it never said its answer
    assert [span.version for span in made.transcript.version_spans] == [1, 2, 3]


@real
def test_several_turns_until_the_environment_is_done(here: Path) -> None:
    made = played("42", row=2, kind="several")
    text = decoded(CHAT, made.transcript.token_ids.tolist())
    assert text == "42<|im_end|>\n<|im_start|>user\nAgain.<|im_end|>\n<|im_start|>assistant\n42<|im_end|>"
    assert made.verdict == Verdict("correct", None, 1.0)


WHAT_IT_COMES_TO: list[tuple[int, str, Verdict]] = [
    (3, "43", CRASH),  # the environment raises
    (4, "44", CRASH),  # it ends the rollout by an error of its own
    (5, "45", Verdict("timeout", None)),
    (8, "48", CRASH),  # the rubric raises, which verifiers itself counts as 0
    (9, "49", CRASH),  # a reward that is no number
    (7, "47", CRASH),  # the process dies; another one starts
    (7, "47", CRASH),
    (2, "", Verdict("wrong", None, -0.5)),  # the policy says nothing: its own fault, so the rubric's reward
    (2, "42", Verdict("correct", None, 1.0)),
]


@real
def test_what_it_comes_to(here: Path) -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        for row, says, verdict in WHAT_IT_COMES_TO:
            engine.texts = (says,)
            made = await player.play(a_prompt(split="train", row=row), engine.generate)
            assert made is not None and made.verdict == verdict, row

    run(body, **{**settings(kind="several"), "max_rollout_seconds": 20.0})


@real
def test_the_runs_own_limit_of_turns_leaves_the_rubrics_reward(here: Path) -> None:
    assert played("42", row=2, task={"max_turns": 1}, kind="several").verdict == Verdict("correct", None, 1.0)


@real
def test_an_environment_that_blocks_costs_its_rollout_and_no_other_ones_reward(here: Path) -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        async def later(seconds: float, row: int) -> Any:
            await asyncio.sleep(seconds)
            return await player.play(a_prompt(split="train", row=row), engine.generate)

        await later(0, 0)  # all is up
        blocked, other = await asyncio.gather(later(0, 6), later(12, 2), return_exceptions=True)
        assert isinstance(blocked, Played) and blocked.verdict == Verdict("timeout", None)
        assert isinstance(other, RolloutLost), other  # its prompt begins anew
        assert (await later(0, 2)).verdict == Verdict("correct", None, 1.0)  # in another process

    run(body, "42", **{**settings(kind="several"), "max_rollout_seconds": 20.0})


TASKSET = """
import verifiers.v1 as vf


class Data(vf.TaskData):
    answer: str = ""


class Sum(vf.Task[Data]):
    @vf.reward
    async def right(self, trace) -> float:
        if self.data.answer == "44":
            raise KeyError("no such answer")
        return 1.0 if trace.last_reply == self.data.answer else -0.5


class Sums(vf.Taskset[Sum, vf.TasksetConfig]):
    def load(self):
        for i in range(40):
            yield Sum(Data(prompt=f"40+{i}", system_prompt="Be exact.", answer=str(40 + i)), self.config.task)


__all__ = ["Sums"]
"""


@real_v1
def test_a_taskset_of_v1(here: Path) -> None:
    """Its harness is a program of its own, in a virtual environment that uv makes the first time."""
    (here / "my_taskset.py").write_text(TASKSET)
    options = {"agent": {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}}}
    given = {"python": str(PYTHON_V1), "environment": "my_taskset", "options": options}
    (problem,) = problems_of(load_task(TaskConfig(name="verifiers", options=given)), "train", 0, 0, 1)
    assert isinstance(problem.prompt, Chat) and [each["role"] for each in problem.prompt.messages] == ["system", "user"]

    async def body(player: AgentPlayer, engine: Saying) -> None:
        for row, verdict in ((2, Verdict("correct", None, 1.0)), (3, Verdict("wrong", None, -0.5)), (4, CRASH)):
            made = await player.play(a_prompt(split="train", row=row), engine.generate)
            assert made is not None and made.verdict == verdict, row
            assert made.prompt_token_ids is not None and f"40+{row}" in decoded(CHAT, made.prompt_token_ids.tolist())
            assert decoded(CHAT, made.transcript.token_ids.tolist()) == "42<|im_end|>" and not made.segments

    run(body, "42", name="verifiers", options=given, max_rollout_seconds=50.0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"python": "/no/such/python"}, "task.options.python = '/no/such/python' can't be started"),
    ({"python": "/bin/true"}, "'/bin/true' did not run the adapter: .* name a Python of version 3.10 or later"),
    ({"python": sys.executable}, "No module named 'verifiers', in .* -m pip install 'verifiers'"),
    ({"environmnt": "x"}, "task.options.environmnt = 'x': Extra inputs are not permitted"),
]
REFUSED_BY_NAME: list[tuple[dict[str, Any], str]] = [
    ({"environment": "no_such_env"}, "the environment 'no_such_env' can't be used .*taskset 'no_such_env' not found"),
    ({"options": {"kind": "group"}}, "its rubric compares the rollouts of a group"),
    ({"options": {"kind": "text"}}, "message_type = 'completion': the endpoint serves chats only"),
]


def refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(TaskError, match=text):
        load_task(TaskConfig(name="verifiers", options={**settings(kind="single")["options"], **changes})).size("train")


@pytest.mark.parametrize(("changes", "text"), REFUSED)
def test_a_python_that_cant_be_used_is_refused(here: Path, changes: dict[str, Any], text: str) -> None:
    refused(changes, text)


@real
@pytest.mark.parametrize(("changes", "text"), REFUSED_BY_NAME)
def test_an_environment_that_cant_be_used_is_refused(here: Path, changes: dict[str, Any], text: str) -> None:
    refused(changes, text)


def test_whose_fault_an_error_is() -> None:
    class Refused(Exception):
        code = "too_many_turns"

    told = ValueError("model error")
    told.__cause__ = Refused()
    assert verifiers_program.is_the_policys(told)
    assert not verifiers_program.is_the_policys(ValueError("model error"))
