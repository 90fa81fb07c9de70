"""What mkdocs does not check by itself: links out of docs/, and that docs/api.md has every public name.

`make docs` runs mkdocs in strict mode: each warning here ends the build.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(?:#[^)]*)?\)")

log = logging.getLogger("mkdocs.hooks.vcppo")


def on_pre_build(config: Any) -> None:
    """Every name of ``vcppo.__all__`` is on docs/api.md and has a docstring."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: vcppo\.(\w+)$", page, re.MULTILINE))
    package = griffe.load("vcppo", search_paths=[str(ROOT)])
    names = set(package.exports or ())
    if names != listed:
        log.warning("docs/api.md and vcppo.__all__ differ in: %s", ", ".join(sorted(names ^ listed)))
    for name in sorted(names):
        if package[name].docstring is None:
            log.warning("vcppo.%s has no docstring", name)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file outside docs/ becomes the file's name: the site does not hold it. It must be there."""
    folder = (DOCS / page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        text, target = link[1], (folder / link[2]).resolve()
        if target.is_relative_to(DOCS):
            return link[0]  # mkdocs looks at these
        if not target.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, link[2])
        path = f"`{target.relative_to(ROOT)}`"
        return path if text.strip("`") == path.strip("`") else f"{text} ({path})"

    return LINK.sub(shown, markdown)
