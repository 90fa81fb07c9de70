r"""`task.options.prompt_template`: plain text with ``{question}`` in it.

``{question}`` is the only placeholder, and it must be there. Any other ``{name}`` is refused: it would stand in every
prompt as it is. Braces meant literally are doubled (``{{name}}`` gives ``{name}``). LaTeX needs no doubling: a group
behind a command, ``^`` or ``_`` (``\boxed{answer}``, ``x^{n}``), empty braces and anything that is no name are literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vcppo.common.tasks.interface import TaskError
from vcppo.common.text.yaml_text import one_line

_QUESTION = "question"
_PIECE = re.compile(
    r"\{\{(?P<literal>[^{}]*)\}\}"
    r"|\{(?P<question>question)\}"
    r"|(?P<latex>(?:\\[A-Za-z]+\*?(?:\[[^\[\]{}]*\])?|[\^_])(?:\{(?!question\})[^{}]*\})+)"
    r"|\{(?P<name>\s*[A-Za-z_][\w. ]*(?:\[[^\]{}]*\])?\s*(?:![rsa])?(?::[^{}]*)?|\d+)\}"
)


def fill_in(template: str) -> Callable[[str], str]:
    """What makes a prompt of a question.

    Raises:
        TaskError: no ``{question}``, or a placeholder that nothing fills in.
    """
    parts: list[str | None] = []  # None: here comes the question
    unknown: list[str] = []
    end = 0
    for match in _PIECE.finditer(template):
        parts.append(template[end : match.start()])
        end = match.end()
        if match["question"]:
            parts.append(None)
        elif match["name"] is not None:
            unknown.append(match[0])
        else:
            parts.append(f"{{{match['literal']}}}" if match["literal"] is not None else match[0])
    parts.append(template[end:])
    where = f"task.options.prompt_template = {one_line(repr(template), 120)}"
    if unknown:
        doubled = ", ".join("{" + name + "}" for name in unknown)
        raise TaskError(
            f"{where}: nothing fills in {one_line(', '.join(unknown))}: write {{{_QUESTION}}} where the question goes "
            f"(task.options.question_column names its column); for braces in the prompt itself write "
            f"{one_line(doubled)}"
        )
    if None not in parts:
        hint = " ({{question}} with two braces is literal text)" if "{{" in template and _QUESTION in template else ""
        raise TaskError(
            f"{where}: has no {{{_QUESTION}}}{hint}, so every prompt would be the same: add {{{_QUESTION}}}"
        )
    return lambda question: "".join(question if part is None else part for part in parts)


def check_no_placeholder(text: str, option: str) -> None:
    """TaskError for ``{question}`` where nothing is filled in."""
    if f"{{{_QUESTION}}}" in text:
        raise TaskError(
            f"task.options.{option} = {one_line(repr(text), 120)}: {{{_QUESTION}}} belongs in prompt_template only. "
            "Here it would stand in every prompt as it is: take it out"
        )
