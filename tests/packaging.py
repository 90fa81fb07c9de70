"""A wheel of what is checked out, and what of it a test may ask for. Needs git and no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def source_files() -> list[str]:
    """Paths of the files git knows or would add, relative to the root; symbolic links count as files."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in set(listed.split("\0")) if name and (ROOT / name).exists())


def build_wheel(folder: Path) -> Path:
    """The wheel, in `folder`. It is built from a copy, so that the checkout gets no build/ and no egg-info."""
    copy = folder / "source"
    for name in source_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (wheel,) = folder.glob("vcppo-*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    """Paths of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def metadata_of(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def install(wheel: Path, folder: Path) -> Path:
    """A new environment in `folder` with the wheel; everybody else's packages are seen behind it. Returns its bin.

    Of a path in a .pth file Python reads no .pth files: our editable install there stays asleep.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "third_party.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    _pip("install", "--no-index", str(wheel), python=folder / "bin" / "python")
    return folder / "bin"


def _pip(command: str, *arguments: str, python: Path | None = None) -> None:
    into = ["--python", str(python)] if python else []
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([sys.executable, "-m", "pip", *into, command, *quiet, *arguments], check=True)
