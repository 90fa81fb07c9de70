"""Installed from a wheel and started in a folder full of names like ours: nobody takes anybody's module for his own.

The environment is new and holds the wheel alone; third-party packages are seen behind it. The folder is a user's:
packages `common`, `deploy`, `generator`, `learner` and `tests`, modules called like libraries, and a task.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vcppo
from tests.packaging import build_wheel, install
from vcppo.common.user_modules import SAFE_PATH

PACKAGES = ("common", "deploy", "generator", "learner", "tests")
LIBRARIES = ("logging", "numpy", "pydantic", "queue", "redis", "structlog", "torch", "yaml", "zmq")

TASK = '''
"""Typed, and from the front door alone."""
from collections.abc import Mapping

from vcppo import FinishReason, Problem, Split, Task, TaskOptions, Verdict, parse_options

said = ""
try:
    import common
except ImportError as error:
    said = str(error)


class Settings(TaskOptions):
    length: int = 3


class Reverse(Task):
    def __init__(self, **options: object) -> None:
        self.settings = parse_options(Settings, options, "task.options")

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        words = [f"{number:0{self.settings.length}}{split}" for number in range(start, start + count)]
        return [Problem(f"Reverse {word}.", {"answer": word[::-1]}) for word in words]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        return Verdict("correct" if response == answer["answer"] else "wrong", said)
'''
RUN = """
run: {name: mine}
model: {path: model}
task: {name: "my_task:Reverse", options: {length: 5}}
"""


class Place(NamedTuple):
    """A user's folder, and the bin folder of the environment they use."""

    bin: Path
    folder: Path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("HOME", "PATH", "TMPDIR") if name in os.environ}
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    def python(self, program: str, **environment: str) -> Any:
        """What the program prints as JSON. It does not look for modules in the folder by itself."""
        done = self.run("python", "-P", "-c", program, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return install(build_wheel(folder), folder / "environment")


def user_folder(folder: Path) -> Path:
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f'raise ImportError("the user\'s {name}")\n', encoding="utf-8")
    (folder / "my_task.py").write_text(TASK, encoding="utf-8")
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    return folder


@pytest.fixture
def crowded(environment: Path, tmp_path: Path) -> Place:
    """With packages called like ours."""
    return Place(environment, user_folder(tmp_path))


@pytest.fixture
def hostile(crowded: Place) -> Place:
    """With modules called like libraries, too."""
    for name in LIBRARIES:
        (crowded.folder / f"{name}.py").write_text('raise ImportError("a trap")\n', encoding="utf-8")
    return crowded


def test_nothing_of_ours_but_vcppo_can_be_imported(environment: Path, tmp_path: Path) -> None:
    found = Place(environment, tmp_path).python(
        "import importlib.metadata, importlib.util, json, vcppo\n"
        f"names = [name for name in {PACKAGES!r} if importlib.util.find_spec(name)]\n"
        "print(json.dumps([names, vcppo.__file__, importlib.metadata.version('vcppo'), vcppo.__version__]))"
    )
    (ours,) = environment.parent.glob("lib/*/site-packages/vcppo/__init__.py")
    assert found == [[], str(ours), vcppo.__version__, vcppo.__version__]


@pytest.mark.parametrize("command", [("--help",), ("config",), ("config", "lambda"), ("experiment", "--help")])
def test_the_command_line_starts(hostile: Place, command: tuple[str, ...]) -> None:
    done = hostile.run("vcppo", *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_recipes_are_installed(hostile: Place) -> None:
    names = hostile.python(
        "import json\n"
        "from pathlib import Path\n"
        "from vcppo.deploy.chaos.chaos_run import RECIPE\n"
        "from vcppo.deploy.demo import CONFIG\n"
        "from vcppo.deploy.experiment.suite import SUITES, load_suite\n"
        "from vcppo.common.config import load_config\n"
        "for path in (RECIPE, CONFIG): load_config(path)\n"
        "for path in SUITES.glob('*.yaml'): load_suite(Path(path.stem))\n"
        "print(json.dumps(sorted(path.stem for path in SUITES.glob('*.yaml'))))"
    )
    assert names == ["credit", "critic", "long_horizon", "paper", "quick", "sampling"]


def test_a_program_of_the_user_uses_the_front_door(crowded: Place) -> None:
    """With `python -c` their folder comes first: `import vcppo` is to work beside a `common` of theirs."""
    done = crowded.run("python", "-c", "import vcppo, my_task; print(vcppo.load_config, my_task.Reverse().settings)")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_task_in_the_folder_is_loaded_and_finds_its_own_modules(hostile: Place) -> None:
    found = hostile.python(
        "import json\n"
        "from pathlib import Path\n"
        "from vcppo import load_config, load_task\n"
        "task = load_task(load_config(Path('run.yaml')).task)\n"
        "(problem,) = task.problems('train', 0, 7, 1)\n"
        "import importlib.util, queue, redis\n"
        "print(json.dumps([problem.prompt, task.verify(problem.answer, '', 'stop')[:2],\n"
        "                  importlib.util.find_spec('common').origin]))"
    )
    assert found == ["Reverse 00007train.", ["wrong", "the user's common"], str(hostile.folder / "common/__init__.py")]


def test_check_quick_finds_the_task(hostile: Place) -> None:
    done = hostile.run("vcppo", "check", "-c", "run.yaml", "--quick")
    said = done.stdout + done.stderr
    assert "model.path" in said  # there is none
    assert "can't be imported" not in said
    assert "Traceback" not in said
    assert "trap" not in said


def test_verifier_children_find_the_task(hostile: Place) -> None:
    verdict = hostile.python(
        "import asyncio, json\n"
        "from pathlib import Path\n"
        "from vcppo.common.config import load_config\n"
        "from vcppo.generator.verifying.verifier_pool import VerifierPool\n"
        "async def main():\n"
        "    pool = VerifierPool(load_config(Path('run.yaml'), ['task.verifier_processes=1']).task)\n"
        "    await pool.start()\n"
        "    try: return await pool.verify({'answer': 'cba'}, 'cba', 'stop')\n"
        "    finally: await pool.close()\n"
        "print(json.dumps(asyncio.run(main())[:2]))"
    )
    assert verdict == ["correct", "the user's common"]


@pytest.mark.parametrize("between", ["", "-m torch.distributed.run --standalone --nproc-per-node 1"])
def test_supervised_processes_import_ours_and_then_theirs(hostile: Place, between: str) -> None:
    """As `vcppo up` starts them, alone or under torchrun."""
    (hostile.folder / "child.py").write_text(
        "import importlib.util, json, queue, redis, vcppo.learner, vcppo.generator.verifying.verifier_child\n"
        "from pathlib import Path\n"
        "from vcppo import load_config, load_task\n"
        "unseen = importlib.util.find_spec('common') is None\n"
        "task = load_task(load_config(Path('run.yaml')).task)\n"
        "Path('seen.json').write_text(json.dumps([unseen, importlib.util.find_spec('common').origin]))",
        encoding="utf-8",
    )
    hostile.python(
        "import json, sys\n"
        "from pathlib import Path\n"
        "from vcppo.deploy.logs.log_lines import LogSink\n"
        "from vcppo.deploy.processes.supervisor import ProcessSpec, Supervisor\n"
        f"command = [sys.executable, *{between.split()!r}, 'child.py']\n"
        "with Supervisor(LogSink(Path('logs'), 'run'), stop_deadline_seconds=10) as supervisor:\n"
        "    supervisor.start(ProcessSpec('child', command, role='child'))\n"
        "    supervisor.wait_exit('child')\n"
        "print(json.dumps('ended'))"
    )
    seen = json.loads((hostile.folder / "seen.json").read_text(encoding="utf-8"))
    assert seen == [True, str(hostile.folder / "common/__init__.py")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "vcppo.generator", "vcppo.generator.check", "vcppo.generator.evaluation.evaluate", "vcppo.learner",
        "vcppo.learner.buffer", "vcppo.learner.cold_start.reward_model", "vcppo.deploy.container",
        "vcppo.deploy.launch.fetch_model", "vcppo.deploy.processes.child",
    ],
)  # fmt: skip
def test_programs_say_their_name(hostile: Place, module: str) -> None:
    done = hostile.run("python", "-m", module, "--help", **SAFE_PATH)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m {module} ")


@pytest.mark.slow
def test_mypy_accepts_a_task_of_the_user(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(TASK.replace("import common", "import json"), encoding="utf-8")
    strict = ["--strict", "--python-executable", str(environment / "python"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *strict, "my_task.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert (done.returncode, done.stdout) == (0, "Success: no issues found in 1 source file\n")
