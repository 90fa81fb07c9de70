"""What README and docs say is there, is there; the examples in README work as printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.config import TaskConfig, config_fields, load_config
from vcppo.common.tasks import TaskError, load_task
from vcppo.common.tasks.chain_arithmetic import ChainOptions, ChainStyle
from vcppo.common.tasks.code import CodeOptions
from vcppo.common.tasks.rows_task import RowsOptions

PAGES = (
    "README.md", "docs/architecture.md", "docs/evaluation.md", "docs/operations.md", "docs/logs.md", "docs/scaling.md",
    "docs/check.md", "docs/compose.md", "docs/dataset.md", "docs/experiments.md", "docs/first_run.md",
    "docs/models.md", "docs/samples.md", "docs/sampling.md", "docs/value_pretraining.md", "docs/weights.md",
    "docs/index.md", "docs/own_task.md", "docs/formulas.md", "docs/comparison.md", "docs/glossary.md",
    "docs/built_in_tasks.md", "CONTRIBUTING.md",
)  # fmt: skip
README = (ROOT / "README.md").read_text(encoding="utf-8")


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
    assert named or page != "docs/operations.md"


@pytest.mark.parametrize("page", PAGES)
def test_named_settings_exist(page: str) -> None:
    fields = {field.name for field in config_fields()}
    sections = "|".join(sorted({name.partition(".")[0] for name in fields}))
    named = re.findall(rf"`((?:{sections})\.[a-z_0-9]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert sorted(set(named) - fields) == []


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


def test_the_options_of_built_in_tasks_are_those_of_their_classes() -> None:
    page = (ROOT / "docs" / "built_in_tasks.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([a-z_]+)` \| (?!\[)[^|]+ \| [^|]+ \|$", page, re.MULTILINE))
    own = [set(kind.model_fields) for kind in (CodeOptions, ChainOptions, ChainStyle)]
    assert rows == set.union(*own) - (set(RowsOptions.model_fields) - {"instruction"})


def test_the_site_has_the_pages_in_the_order_of_the_index() -> None:
    index = re.findall(r"^\| \[[^\]]+\]\(([a-z_]+\.md)\)", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    _, nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")
    assert re.findall(r"([a-z_]+\.md)", nav) == ["index.md", *index]


def test_the_task_in_readme_works() -> None:
    scope: dict[str, object] = {}
    exec(example("python"), scope)  # our own page, run as a reader would
    task = scope["Reverse"](length=4)  # type: ignore[operator]
    first, second = task.problems("train", 0, 0, 2)
    assert task.problems("train", 0, 1, 1) == [second]
    assert task.verify(first.answer, first.answer["answer"], "stop").outcome == "correct"
    assert task.verify(first.answer, "?", "stop").outcome == "wrong"
