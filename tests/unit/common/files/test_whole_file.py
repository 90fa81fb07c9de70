"""A file is the old one or the new one, never a part; and whatever is renamed is renamed in one room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts import measures
from vcppo.common.files.whole_file import move, remove_partial_files, whole_file, write_whole
from vcppo.common.files.whole_folder import replace_folder


@pytest.mark.parametrize("content", ["wörds\n", b"\xff\x00"])
def test_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path, content: str | bytes) -> None:
    write_whole(tmp_path / "a", "before")
    write_whole(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def write_half(path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("disk full")


def test_failure_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "before")
    with pytest.raises(OSError, match="full"):
        write_half(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_writer_left_can_be_removed(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "whole")
    (tmp_path / ".a.77.partial").write_text("half")
    remove_partial_files(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_moved_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_whole(tmp_path / "folder" / "a", "1")
    move(tmp_path / "folder", tmp_path / "other")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["other", "other/a"]


@pytest.mark.parametrize("kind", ["folder", "file", "link", "nothing"])
def test_a_finished_folder_takes_the_place_of_whatever_is_there(tmp_path: Path, kind: str) -> None:
    elsewhere, target, staging = tmp_path / "elsewhere", tmp_path / "target", tmp_path / "staging"
    for folder in (elsewhere, staging):
        folder.mkdir()
        (folder / folder.name).touch()
    if kind == "folder":
        target.mkdir()
        (target / "old").touch()
    elif kind == "file":
        target.touch()
    elif kind == "link":
        target.symlink_to(elsewhere)
    replace_folder(target, staging)
    assert [path.name for path in target.iterdir()] == ["staging"]
    assert [path.name for path in elsewhere.iterdir()] == ["elsewhere"]
    assert not staging.exists()


def is_renaming(node: ast.AST) -> bool:
    """`path.rename(…)`, `path.replace(target)`, `os.rename`, `os.replace`, `shutil.move`; not `text.replace(a, b)`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    name, owner = node.func.attr, getattr(node.func.value, "id", "")
    if owner in ("os", "shutil"):
        return name in ("rename", "renames", "replace", "move")
    return name == "rename" or (name == "replace" and len(node.args) == 1 and not node.keywords)


def test_nobody_else_renames_files() -> None:
    others = [
        f"{module.name}:{node.lineno}"
        for module in measures.modules().values()
        for node in ast.walk(module.tree)
        if is_renaming(node) and not module.name.startswith("common.files.")
    ]
    assert others == []
