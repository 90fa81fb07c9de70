"""What README and docs say is there, is there; the examples in README work as printed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import RIG, ROOT
from tests.processes import in_pool
from tests.unit.common.environments.test_turn_text import CHAT, decoded
from tests.unit.generator.turns.test_agents import Saying
from vcppo.common.config import TaskConfig, config_fields, load_config
from vcppo.common.environments.environment import Observation
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import TaskError, encode_prompt, load_task
from vcppo.common.tasks.chain_arithmetic import ChainOptions, ChainStyle
from vcppo.common.tasks.code import CodeOptions
from vcppo.common.tasks.hidden_choices import HiddenChoicesOptions, HiddenChoicesStyle
from vcppo.common.tasks.reasoning_gym.gym_task import ReasoningGymOptions
from vcppo.common.tasks.rows_task import RowsOptions
from vcppo.common.tools.mcp_tool import McpOptions
from vcppo.common.tools.python_tool import PythonOptions
from vcppo.common.tools.search_tool import SearchOptions
from vcppo.common.tools.tool_task import ToolTaskOptions
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.judges import make_judges
from vcppo.generator.turns.play import Played
from vcppo.generator.verifying.scorer import Scorer
from vcppo.generator.verifying.verifier_pool import VerifierPool

PAGES = (
    "README.md", "docs/architecture.md", "docs/evaluation.md", "docs/operations.md", "docs/logs.md", "docs/scaling.md",
    "docs/check.md", "docs/compose.md", "docs/dataset.md", "docs/experiments.md", "docs/first_run.md",
    "docs/models.md", "docs/samples.md", "docs/sampling.md", "docs/ui.md", "docs/value_pretraining.md",
    "docs/weights.md", "docs/index.md", "docs/own_task.md", "docs/environments.md", "docs/rewards.md",
    "docs/agents.md", "docs/tools.md", "docs/formulas.md", "docs/comparison.md", "docs/glossary.md",
    "docs/built_in_tasks.md", "docs/threats.md", "docs/trackers.md", "docs/lora.md", "CONTRIBUTING.md",
)  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def modules_as_they_were() -> Iterator[None]:
    """Modules of the pages' examples are named as those of other tests."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def example(language: str) -> str:
    """The one fenced block of that language in README."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(block)


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:common|generator|learner|deploy|tests)/[\w/]*(?:\.\w+|/))`", text)
    linked = [(Path(page).parent / target).as_posix() for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#:]+)\)", text)]
    assert [name for name in [*named, *linked] if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page: str) -> None:
    """`tests/faults/test_redis.py::test_…`: a claim is as good as the test that shows it."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / page).read_text(encoding="utf-8"))
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).exists() or not re.search(rf"def {name}\(", (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []
    assert named or page not in ("docs/operations.md", "docs/threats.md")


@pytest.mark.parametrize("page", PAGES)
def test_named_settings_exist(page: str) -> None:
    fields = {name for field in config_fields() for name in (field.name, field.name.partition("[]")[0])}
    sections = {name[:place] for name in fields for place, letter in enumerate(name) if letter == "."}
    tops = "|".join(sorted({name.partition(".")[0] for name in fields}))
    named = re.findall(rf"`((?:{tops})(?:\.[a-z_0-9]+)+)", (ROOT / page).read_text(encoding="utf-8"))
    # A field that is a table has names of its own below it.
    tables = [name for name in named if any(name.startswith(f"{field}.") for field in fields)]
    assert sorted(set(named) - fields - sections - set(tables)) == []


def test_the_config_in_readme_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(example("yaml"), encoding="utf-8")
    assert load_config(path, []).run.name == "first"
    ppo = re.search(r"Plain PPO is `([^`]+)`", README)
    grpo = re.search(r"GRPO is\s+`([^`]+)`", README)
    assert ppo and grpo
    assert load_config(path, ppo[1].split()).algorithm.lambda_critic == 0.95
    assert load_config(path, grpo[1].split()).algorithm.advantage_estimator == "group_mean"


def test_the_config_in_readme_is_the_one_that_first_run_was_made_with() -> None:
    page = (ROOT / "docs" / "first_run.md").read_text(encoding="utf-8")
    assert f"```yaml\n{example('yaml')}```" in page


def test_the_algorithms_as_settings(tmp_path: Path) -> None:
    """docs/formulas.md: each row's settings load."""
    path = tmp_path / "run.yaml"
    path.write_text(example("yaml"), encoding="utf-8")
    page = (ROOT / "docs" / "formulas.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (PPO|GRPO|RLOO) \| `([^`]+)` \|$", page, re.MULTILINE))
    found = {name: load_config(path, row.split()).algorithm for name, row in rows.items()}
    assert {name: algorithm.advantage_estimator for name, algorithm in found.items()} == {
        "PPO": "gae", "GRPO": "group_mean", "RLOO": "leave_one_out",
    }  # fmt: skip
    assert found["PPO"].lambda_actor == found["PPO"].lambda_critic == 0.95


def test_the_example_of_an_own_task_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/own_task.md: found in the folder one starts in, it judges, and its errors are those on the page."""
    page = (ROOT / "docs" / "own_task.md").read_text(encoding="utf-8")
    module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_task.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_task", raising=False)
    task = load_task(load_config(Path("my.yaml")).task)
    first, second = task.problems("train", 0, 0, 2)
    assert task.problems("train", 0, 1, 1) == [second]
    assert task.verify(first.answer, str(first.answer["answer"]), "stop").outcome == "correct"
    assert task.verify(first.answer, "-1", "stop").outcome == "wrong"
    assert task.verify(first.answer, "no idea", "stop").outcome == "unparsable"
    assert task.demonstrations(0, 1, {})[0].response == first.answer["answer"]
    for settings in ({"options": {"digit": 3}}, {"name": "sums"}):
        with pytest.raises(TaskError) as error:
            load_task(TaskConfig.model_validate({"name": "my_task:Sums"} | settings))
        assert f"`{error.value}`" in page


def test_the_example_of_an_environment_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/environments.md: two turns in a child process, in thirty lines."""
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len([line for line in module.splitlines() if line.strip()]) <= 30
    (tmp_path / "my_tools.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    settings = load_config(Path("my.yaml")).task
    (problem,) = load_task(settings).problems("train", 0, 0, 1)
    left, right = re.findall(r"\d+", problem.prompt[0]["content"])  # type: ignore[index]

    async def play() -> list[Observation]:
        pool = EnvironmentPool(settings)
        await pool.start()
        try:
            async with pool.open() as session:
                await session.reset(problem.answer)
                asked = await session.step(f"calc: {left} * {right}")
                found = asked.observation.content
                return [asked.observation, (await session.step(f"answer: {str(found).split()[-1]}")).observation]
        finally:
            await pool.close()

    asked, ended = asyncio.run(play())
    assert asked == Observation(f"calculator: {int(left) * int(right)}")
    assert ended == Observation("", 1.0, True)


def test_the_example_of_an_agent_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/agents.md: OpenAI's client alone, in a child process, against the endpoint; the policy is scripted."""
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    settings, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_agent.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delitem(sys.modules, "my_agent", raising=False)
    config = load_config(Path("my.yaml"))
    (problem,) = load_task(config.task).problems("train", 0, 0, 1)
    left, right = re.findall(r"\d+", problem.prompt[1]["content"])  # type: ignore[index]
    product = int(left) * int(right)
    engine: Any = Saying("hm", f"calc: {left} * {right}", f"answer: {product}")

    async def play() -> Played | None:
        pool: Any = make_judges(config.task)
        await pool.start()
        try:
            tokens = encode_prompt(CHAT, problem.prompt)
            prompt = Prompt("rl-1-0", "rl-1", 0, "t", tokens, problem.answer, 7, 0, "rl", 512)
            played = await make_player(config, pool, CHAT).play(prompt, engine.generate)
            assert played is not None and played.prompt_token_ids is not None
            assert played.prompt_token_ids.tolist() == tokens.tolist()
            return played
        finally:
            await pool.close()

    played = asyncio.run(play())
    assert played is not None and (played.verdict.outcome, played.verdict.reward) == ("correct", 1.0)
    assert f"calculator: {product}" in decoded(CHAT, played.transcript.token_ids.tolist())


def test_the_example_of_a_graded_environment_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/environments.md: the nearer the second try, the more it is worth."""
    page = (ROOT / "docs" / "environments.md").read_text(encoding="utf-8")
    _, module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    _, config, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len([line for line in module.splitlines() if line.strip()]) <= 30
    (tmp_path / "my_sums.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(config, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_sums", raising=False)
    task: Any = load_task(load_config(Path("my.yaml")).task)
    total = int(task.problems("train", 0, 0, 1)[0].answer["total"])
    task.reset({"total": total})
    assert (task.step("No idea.").reward, task.step(f"It is {total + 1}.")) == (
        -0.25, Observation("", 0.5, True, "wrong")
    )  # fmt: skip
    task.reset({"total": total})
    assert task.step(f"{total}") == Observation("", 1.0, True, "correct")


def test_the_example_of_tools_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/tools.md: every kind of tool, called in a child process."""
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    config, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_tools.py").write_text(module, encoding="utf-8")
    (tmp_path / "my.yaml").write_text(config.replace("[python, server.py]", f"['{sys.executable}', server.py]"))
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("The whale sings.")
    server = (RIG / "mcp_server.py").read_text(encoding="utf-8")
    (tmp_path / "server.py").write_text(server.replace("def process()", "def read_note()"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    patience = ["task.verifier_timeout_seconds=60", "task.options.call_seconds=30"]  # this machine may do much else
    settings = load_config(Path("my.yaml"), patience).task
    (problem,) = load_task(settings).problems("train", 0, 0, 1)
    tools = {each["function"]["name"]: each["function"] for each in problem.prompt.tools}  # type: ignore[union-attr]
    assert list(tools) == ["calculator", "python", "search", "read_note", "weather"]
    calls = {
        "calculator": ({"expression": "2 * 21"}, "42"),
        "python": ({"code": "print(6 * 7)"}, "42\n"),
        "search": ({"query": "whale"}, "[a.md]\nThe whale sings."),
        "weather": ({"city": "Oslo", "days": 2}, "Oslo: rain for 2 days"),
    }

    async def play() -> tuple[list[str], Observation]:
        pool = EnvironmentPool(settings)
        await pool.start()
        try:
            async with pool.open() as session:
                await session.reset(problem.answer)
                asked = [json.dumps({"name": name, "arguments": given}) for name, (given, _) in calls.items()]
                told = await session.step("".join(f"<tool_call>{each}</tool_call>" for each in asked))
                answer = await session.step(f"\\boxed{{{problem.answer['reference']}}}")
                return [each["content"] for each in told.observation.content], answer.observation  # type: ignore[index]
        finally:
            await pool.close()

    said, answered = asyncio.run(play())
    assert said == [text for _, text in calls.values()]
    assert (answered.outcome, answered.reward) == ("correct", 1.0)


def test_the_example_of_graded_rewards_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/rewards.md: as printed, in a verifier's child, to the number that the page says."""
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    module, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    settings, *_ = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(module, encoding="utf-8")
    (tmp_path / "run.yaml").write_text("model: {path: ./model}\n" + settings, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    config = load_config(Path("run.yaml"))
    (problem,) = load_task(config.task).problems("train", 0, 21, 1)
    claimed = float(re.search(r"earns 1 \+ 0\.1 · 0\.5 \+ 0\.2 = (\d\.\d+)", page)[1])  # type: ignore[index]

    async def body(pool: VerifierPool) -> None:
        scorer = Scorer(config, pool)
        right = await scorer.score(problem.answer, "84", "stop", 2)
        assert (right.outcome, right.reward) == ("correct", pytest.approx(claimed))
        assert right.components["distance"] == 0 and right.components["soft_overlong"] == 0
        close = await scorer.score(problem.answer, "83", "stop", 2)
        assert close.outcome == "wrong" and close.reward == pytest.approx(claimed - 0.5)
        assert (await scorer.score(problem.answer, "no", "stop", 2)).reward == pytest.approx(-1 + 0.05)

    in_pool(body, config.task)


def test_the_options_of_built_in_tasks_are_those_of_their_classes() -> None:
    page = (ROOT / "docs" / "built_in_tasks.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z_]+)` \| (?!\[)[^|]+ \| [^|]+ \|$", page, re.MULTILINE))
    hidden = (HiddenChoicesOptions, HiddenChoicesStyle)
    own = [set(kind.model_fields) for kind in (CodeOptions, ChainOptions, ChainStyle, *hidden, ReasoningGymOptions)]
    assert rows == set.union(*own) - (set(RowsOptions.model_fields) - {"instruction"})


def test_the_options_of_tools_are_those_of_their_classes() -> None:
    page = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    _, options, tools, _ = re.split(
        r"^## (?:`task.options`|The tools|How calls are written)$", page, flags=re.MULTILINE
    )
    assert re.findall(r"^\| `([a-z_]+)` \|", options, re.MULTILINE) == list(ToolTaskOptions.model_fields)
    rows = dict(re.findall(r"^\| `(python|search|mcp)` \| ([^|]+) \|", tools, re.MULTILINE))
    kinds = {"python": PythonOptions, "search": SearchOptions, "mcp": McpOptions}
    assert {name: re.findall(r"`([a-z_]+)`", row) for name, row in rows.items()} == {
        name: list(kind.model_fields) for name, kind in kinds.items()
    }


def test_the_site_has_the_pages_in_the_order_of_the_index() -> None:
    index = re.findall(r"^\| \[[^\]]+\]\(([a-z_]+\.md)\)", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    _, nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")
    assert re.findall(r"([a-z_]+\.md)", nav) == ["index.md", *index]


def test_the_task_in_readme_works() -> None:
    scope: dict[str, object] = {}
    exec(example("python"), scope)  # our own page, run as a reader would  # noqa: S102  (the docs' own example)
    task = scope["Reverse"](length=4)  # type: ignore[operator]
    first, second = task.problems("train", 0, 0, 2)
    assert task.problems("train", 0, 1, 1) == [second]
    assert task.verify(first.answer, first.answer["answer"], "stop").outcome == "correct"
    assert task.verify(first.answer, "?", "stop").outcome == "wrong"
