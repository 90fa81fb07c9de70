"""Tool `search`: passages of a local folder or file by words, ranked by BM25.

The index is SQLite's full-text search, in memory: one in each child. A folder's ``.txt`` and ``.md`` files are cut at
blank lines; each row of a ``.jsonl``, ``.json`` or ``.parquet`` file is a passage of its own.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from vcppo.common.tasks.interface import TaskError, TaskOptions
from vcppo.common.tasks.prompts.columns import text_of
from vcppo.common.tasks.rows import BadRow, RowsError, read_rows
from vcppo.common.tools.tool import Tool, ToolError

_ENDINGS = (".txt", ".md")
_TABLES = (".jsonl", ".json", ".parquet")
_PASSAGE = 1000  # characters; paragraphs are joined up to so many
_MAX_WORDS = 32
_MAX_CHARACTERS = 256 << 20


class SearchOptions(TaskOptions):
    """Options of `use: search`."""

    path: str
    """A folder of .txt and .md files, or a .jsonl, .json or .parquet file."""

    text_column: str = "text"
    """Column of a file that holds the passage."""

    title_column: str | None = None
    """Column of a file that names the passage. None: its line does."""

    results: int = Field(default=3, ge=1, le=50)
    """Passages of one answer."""

    name: str = "search"
    """As the policy calls it: several folders need several names."""

    description: str = "Searches a collection of texts by words and returns the passages that fit best."
    """What the policy reads about it."""


class Passage(NamedTuple):
    """What is found, and where it stands."""

    title: str
    text: str


class SearchTool(Tool):
    """See the module's text.

    Args:
        where: the option, for errors.

    Raises:
        TaskError: nothing can be searched there.
    """

    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "words to look for"}},
        "required": ["query"],
        "additionalProperties": False,
    }

    blocks = False

    def __init__(self, options: SearchOptions, where: str) -> None:
        self.name, self.description = options.name, options.description
        self._options, self._where = options, where
        path = Path(options.path)
        is_table = path.suffix in _TABLES
        if not (path.is_file() if is_table else path.is_dir()):
            raise TaskError(
                f"{where}.path: no {'file' if is_table else 'folder'} {options.path!r} (looked from {Path.cwd()}): give"
                f" a folder of {' and '.join(_ENDINGS)} files, or a {', '.join(_TABLES)} file"
            )

    def open(self) -> None:
        """Makes the index. Raises TaskError when there is nothing in it."""
        assert self._index is not None

    def call(self, arguments: Mapping[str, Any]) -> str:
        """The best passages with their titles, the best first."""
        words = list(dict.fromkeys(re.findall(r"\w+", arguments["query"].lower())))[:_MAX_WORDS]
        if not words:
            raise ToolError("the query has no word in it")
        query = " OR ".join(f'"{word}"' for word in words)
        found = self._index.execute(
            "SELECT title, text FROM passages WHERE passages MATCH ? ORDER BY bm25(passages), rowid LIMIT ?",
            (query, self._options.results),
        ).fetchall()
        if not found:
            return "nothing found"
        return "\n\n".join(f"[{title}]\n{text}" for title, text in found)

    @cached_property
    def _index(self) -> sqlite3.Connection:
        index = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            index.execute("CREATE VIRTUAL TABLE passages USING fts5(title, text, tokenize = 'porter unicode61')")
        except sqlite3.OperationalError as error:
            raise TaskError(f"{self._where}: this Python's SQLite has no full-text search (FTS5): {error}") from error
        path, count, size = Path(self._options.path), 0, 0
        for passage in self._of_rows() if path.suffix in _TABLES else _of_folder(path):
            size += len(passage.text)
            if size > _MAX_CHARACTERS:
                raise TaskError(f"{self._where}.path = {str(path)!r} has more than {_MAX_CHARACTERS:,} characters")
            index.execute("INSERT INTO passages VALUES (?, ?)", passage)
            count += 1
        if not count:
            raise TaskError(
                f"{self._where}.path = {str(path)!r} holds no text: add {', '.join(_ENDINGS)} files or rows"
            )
        return index

    def _of_rows(self) -> Iterator[Passage]:
        options, bad = self._options, list[BadRow]()
        for row in read_rows(options.path, None, ""):
            if isinstance(row, BadRow):
                bad.append(row)
                continue
            text = text_of(row, options.text_column, "tools text_column")
            title = row.place if options.title_column is None else text_of(row, options.title_column, "title_column")
            yield Passage(title, text)
        if bad:
            raise RowsError(bad)


def _of_folder(folder: Path) -> Iterator[Passage]:
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _ENDINGS and path.is_file()):
        title = file.relative_to(folder).as_posix()
        for passage in _cut(file.read_text(encoding="utf-8", errors="replace")):
            yield Passage(title, passage)


def _cut(text: str) -> Iterator[str]:
    """Paragraphs, joined while they are short."""
    joined = ""
    for paragraph in re.split(r"\n\s*\n", text):
        if joined and len(joined) + len(paragraph) > _PASSAGE:
            yield joined
            joined = ""
        joined = f"{joined}\n\n{paragraph}".strip()
    if joined:
        yield joined
