"""The shape of the project as rules: who may import whom, and which one file talks to which library.

Read from the source, so a forbidden import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "generator", "learner", "deploy")

# package -> top-level modules it must never import
FORBIDDEN = {
    "common": {"torch", "vllm", "deepspeed", "generator", "learner", "deploy"},
    "generator": {"learner", "deploy", "deepspeed"},
    "learner": {"generator", "deploy"},
    "deploy": {"generator", "learner", "torch", "vllm", "deepspeed"},
}
# library -> the only files that may import it
CONFINED = {
    "redis": ("common/store/redis_connection.py",),
    "zmq": ("common/transport/sockets.py", "common/transport/keys.py"),
    "deepspeed": ("learner/engine/deepspeed_engine.py",),
    "vllm": (
        "generator/check/vllm_settings.py",
        "generator/vllm_engine/engine.py",
        "generator/vllm_engine/gloo_engine.py",
        "generator/vllm_engine/nccl_engine.py",
        "generator/vllm_engine/served.py",
        "generator/vllm_engine/unset_weights.py",
        "learner/weights/broadcaster.py",
        "learner/weights/gloo_trainer.py",
    ),
}
BANNED = {"pickle", "cPickle", "dill", "cloudpickle", "shelve"}  # arbitrary code on load: nothing of ours is pickled


class Import(NamedTuple):
    path: str  # relative to the root, with slashes
    line: int
    module: str  # top-level name

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


def python_files() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        yield (node.module or "") if node.level == 0 else package
    elif (
        isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in {"import_module", "__import__"}
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ):
        yield str(node.args[0].value)


def imports_of(path: Path) -> Iterator[Import]:
    relative = path.relative_to(ROOT).as_posix()
    package = relative.partition("/")[0]
    for node in ast.walk(parse(path)):
        for name in imported_names(node, package):
            yield Import(relative, getattr(node, "lineno", 0), name.partition(".")[0])


ALL_IMPORTS = [found for path in python_files() for found in imports_of(path)]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_only_look_in_the_allowed_direction(package: str) -> None:
    ours = (found for found in ALL_IMPORTS if found.path.startswith(f"{package}/"))
    assert [str(found) for found in ours if found.module in FORBIDDEN[package]] == []


@pytest.mark.parametrize("library", CONFINED)
def test_each_library_is_behind_one_file(library: str) -> None:
    importers = [found for found in ALL_IMPORTS if found.module == library]
    assert importers, f"nobody imports {library}: does this rule still name the right library?"
    assert [str(found) for found in importers if found.path not in CONFINED[library]] == []


def test_nothing_is_pickled() -> None:
    assert [str(found) for found in ALL_IMPORTS if found.module in BANNED] == []


def test_no_bare_except() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in python_files()
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def loaded_after_importing(modules: list[str], watched: set[str]) -> set[str]:
    """Import `modules` in a fresh interpreter; which of `watched` came along?"""
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted({watched!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(package: str) -> list[str]:
    names = (path.relative_to(ROOT).with_suffix("").parts for path in sorted((ROOT / package).rglob("*.py")))
    dotted = (".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names)
    return [name for name in dotted if not name.endswith("__main__")]


def test_common_stays_light_at_run_time() -> None:
    """The buffer and the command line load `common` many times a day: no torch behind it, not even through others."""
    heavy = {"torch", "vllm", "deepspeed", "transformers"}
    assert loaded_after_importing(modules_of("common"), heavy) == set()


def test_the_buffer_process_stays_light() -> None:
    assert (
        loaded_after_importing(["vcppo.learner.buffer.bridge"], {"torch", "vllm", "deepspeed", "transformers"}) == set()
    )


def test_the_command_line_stays_light() -> None:
    heavy = {"torch", "vllm", "deepspeed", "transformers", "matplotlib", "scipy"}
    assert loaded_after_importing(["vcppo.deploy.cli"], heavy) == set()
