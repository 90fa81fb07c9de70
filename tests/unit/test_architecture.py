"""The shape of the project as rules: who may import whom, and which one file talks to which library.

Read from the source, so a forbidden import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from scripts import measures
from scripts.measures import Module
from tests.paths import ROOT

MOST_LOOSE_MODULES = 15
MOST_LINES_OF_A_FUNCTION = 60

# wing -> what it must never import: other wings and libraries
FORBIDDEN = {
    "common": {"torch", "vllm", "deepspeed", "peft", "vcppo.generator", "vcppo.learner", "vcppo.deploy"},
    "generator": {"vcppo.learner", "vcppo.deploy", "deepspeed", "peft"},
    "learner": {"vcppo.generator", "vcppo.deploy"},
    "deploy": {"vcppo.generator", "vcppo.learner", "torch", "vllm", "deepspeed"},
}
# The rooms of each wing, floor by floor from the ground: a room imports rooms of lower floors only. What is to
# come has its place already: deploy/ui beside report.
FLOORS = {
    "common": (
        {"chunk_sizes", "errors", "head_sharing", "run_folder", "tensor_sums", "text", "user_modules"}, {"files"},
        {"model_folder", "records", "sandbox"}, {"rewards", "trackers"}, {"config", "telemetry"},
        {"check", "process", "store", "tasks"}, {"environments", "transport"}, {"evaluation", "tools"},
    ),
    "generator": (
        {"endpoint", "reward_sources", "vllm_engine"}, {"verifying"}, {"turns"}, {"check", "evaluation", "rollout"},
        {"__main__"},
    ),
    "learner": (
        {"algorithm", "buffer", "profiling", "supply"}, {"batching", "critic_quality", "simulation"}, {"kernels"},
        {"packing_proof"}, {"models"}, {"engine"}, {"critic_model"},
        {"critic_training", "critic_values", "export", "weights"}, {"evaluation"},
        {"check", "cold_start", "rl", "value_pretraining"}, {"__main__"},
    ),
    "deploy": (
        {"plan", "run"}, {"logs", "samples"}, {"processes"}, {"placement"}, {"check", "terminal"},
        {"evaluation", "launch"}, {"report"}, {"container", "demo", "simulation", "ui"},
        {"chaos", "experiment", "slurm"}, {"cli"},
    ),
}  # fmt: skip
# Two ends of one thing may have one name.
TWO_ENDS = {
    "control": "the control port and the generator that serves it",
    "trained_log": "its writer and its reader",
}
# library -> the only files that may import it
CONFINED = {
    "aiohttp": ("generator/endpoint/server.py", "generator/reward_sources/http_post.py"),
    "redis": ("common/store/redis_connection.py",),
    "mcp": ("common/tools/mcp_tool.py",),
    "mlflow": ("common/trackers/mlflow_tracker.py",),
    "trackio": ("common/trackers/trackio_tracker.py",),
    "simpy": ("learner/simulation/model.py",),
    "wandb": ("common/trackers/wandb_tracker.py",),
    "zmq": ("common/transport/sockets.py", "common/transport/keys.py"),
    "deepspeed": ("learner/engine/deepspeed_engine.py",),
    "peft": ("learner/models/adapters.py",),
    "jinja2": ("deploy/report/markup.py",),
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
    module: str  # top-level name; of ours, the wing: vcppo.common

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.module}"


KNOWN = measures.modules()
ARROWS = measures.graph(KNOWN)


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


def imports_of(module: Module) -> Iterator[Import]:
    relative = module.path.relative_to(ROOT).as_posix()
    for node in ast.walk(module.tree):
        for name in imported_names(node, f"vcppo.{module.wing}"):
            yield Import(relative, getattr(node, "lineno", 0), shortened(name))


def shortened(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "vcppo" else first


ALL_IMPORTS = [found for module in KNOWN.values() for found in imports_of(module)]


@pytest.mark.parametrize("wing", FORBIDDEN)
def test_wings_only_look_in_the_allowed_direction(wing: str) -> None:
    ours = (found for found in ALL_IMPORTS if found.path.startswith(f"{wing}/"))
    assert [str(found) for found in ours if found.module in FORBIDDEN[wing]] == []


def test_ours_are_imported_as_vcppo_and_not_through_its_front_door() -> None:
    """`import common` would take a user's folder of that name; `from vcppo import …` is for users."""
    short = [str(found) for found in ALL_IMPORTS if found.module in FORBIDDEN]
    front = [str(found) for found in ALL_IMPORTS if found.module in ("vcppo", "vcppo.")]
    assert (short, front) == ([], [])


@pytest.mark.parametrize("wing", FLOORS)
def test_rooms_only_look_down(wing: str) -> None:
    floor_of = {f"{wing}.{room}": number for number, floor in enumerate(FLOORS[wing]) for room in floor}
    rooms = measures.room_graph(KNOWN, ARROWS)
    assert {room for room in rooms if room.startswith(f"{wing}.")} == floor_of.keys(), (
        "a new room: which floor is it on?"
    )
    up = [
        f"{room} imports {target}"
        for room, targets in rooms.items()
        for target in targets
        if room in floor_of and floor_of[target] >= floor_of[room]
    ]
    assert up == []


def test_no_modules_import_each_other() -> None:
    assert measures.circle(ARROWS) == []


def test_no_room_is_crowded() -> None:
    assert {room: n for room, n in measures.loose_modules(KNOWN).items() if n > MOST_LOOSE_MODULES} == {}


def test_one_file_name_is_one_thing() -> None:
    named: dict[str, set[str]] = {}
    for module in KNOWN.values():
        if module.path.stem not in ("__init__", "__main__"):
            named.setdefault(module.path.stem, set()).add(module.name)
    assert {stem for stem, names in named.items() if len(names) > 1} == TWO_ENDS.keys()


def test_no_function_is_long() -> None:
    long = [
        f"{module.name}:{function.name}"
        for module in KNOWN.values()
        for function in measures.functions(module)
        if measures.length_of(function) > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("library", CONFINED)
def test_each_library_is_behind_one_file(library: str) -> None:
    importers = [found for found in ALL_IMPORTS if found.module == library]
    assert importers, f"nobody imports {library}: does this rule still name the right library?"
    assert [str(found) for found in importers if found.path not in CONFINED[library]] == []


def test_nothing_is_pickled() -> None:
    assert [str(found) for found in ALL_IMPORTS if found.module in BANNED] == []


def test_no_bare_except() -> None:
    bare = [
        f"{module.name}:{node.lineno}"
        for module in KNOWN.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert bare == []


def test_every_process_of_a_run_enters_its_store() -> None:
    """Who does not can't be refused once it has a successor (`vcppo.common.store.incarnations`)."""
    calls = [
        (module.name, call)
        for module in KNOWN.values()
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute)
        and ast.unparse(call).startswith(("connect_store(", "partial(connect_store", "RunStore.connect("))
    ]  # fmt: skip
    of_processes = [(name, call) for name, call in calls if name.partition(".")[0] in ("generator", "learner")]
    assert {name for name, _ in of_processes} == {"generator.__main__", "learner.__main__", "learner.buffer.bridge"}
    assert [name for name, call in of_processes if "enter" not in {word.arg for word in call.keywords}] == []


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


def modules_of(wing: str) -> list[str]:
    return [f"vcppo.{name}" for name in KNOWN if name.partition(".")[0] == wing and not name.endswith("__main__")]


def test_common_stays_light_at_run_time() -> None:
    """The buffer and the command line load `common` many times a day: no torch behind it, not even through others."""
    heavy = {"torch", "vllm", "deepspeed", "transformers"}
    assert loaded_after_importing(modules_of("common"), heavy) == set()


def test_peft_is_loaded_by_runs_with_adapters_only() -> None:
    """It takes seconds to import."""
    assert loaded_after_importing(["vcppo.learner.models.adapters", "vcppo.learner.export"], {"peft"}) == set()


def test_the_buffer_process_stays_light() -> None:
    assert (
        loaded_after_importing(["vcppo.learner.buffer.bridge"], {"torch", "vllm", "deepspeed", "transformers"}) == set()
    )


def test_the_command_line_stays_light() -> None:
    heavy = {"torch", "vllm", "deepspeed", "transformers", "matplotlib", "scipy", "jinja2"}
    assert loaded_after_importing(["vcppo.deploy.cli"], heavy) == set()
