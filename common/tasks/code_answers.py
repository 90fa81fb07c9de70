"""Reading a program out of a response, tests out of a row, and comparing what was printed with what should be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.prompts.columns import value_of
from vcppo.common.tasks.rows import Row

_MARKS = " \t>"  # blanks, and a quote's marks
_LIST_MARK = re.compile(r"(?:[-*+]|\d{1,3}[.)])[ \t]{1,8}")
_FENCE = re.compile(r"(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)\Z")
_CLOSE = re.compile(r"[ \t>]*(?P<fence>`{3,}|~{3,})[\s.,;:!?)*_]*\Z")
_LABEL = re.compile(r"\s*\{?\s*[.=]?\s*(?:lang(?:uage)?[-=:])?\s*\"?([A-Za-z+#]+)")
_MAX_NESTED = 2
_MAX_LABEL = 60

_PYTHON = frozenset(("python", "py", "pypy", "cpython", "ipython", "sage"))
_SHELL = frozenset(("bash", "sh", "shell", "zsh", "fish", "dash"))
_SCRIPT = frozenset(("js", "javascript", "node", "ts", "typescript", "mjs"))
_OWN_LABELS = {
    **dict.fromkeys(("python", "pypy"), _PYTHON),
    **dict.fromkeys(("sh", "bash", "dash", "zsh"), _SHELL),
    **dict.fromkeys(("node", "deno", "bun"), _SCRIPT),
    **{name: frozenset(labels) for name, *labels in (("ruby", "ruby", "rb"), ("perl", "perl", "pl"), ("php", "php"))},
}
_OTHER_PROGRAMS = frozenset(
    (
        "c",
        "cpp",
        "c++",
        "cc",
        "cxx",
        "h",
        "hpp",
        "java",
        "kotlin",
        "kt",
        "scala",
        "js",
        "javascript",
        "node",
        "ts",
        "typescript",
    )
    + (
        "go",
        "golang",
        "rust",
        "rs",
        "ruby",
        "rb",
        "perl",
        "pl",
        "php",
        "swift",
        "cs",
        "csharp",
        "c#",
        "fsharp",
        "haskell",
        "hs",
    )
    + (
        "ocaml",
        "ml",
        "lua",
        "julia",
        "jl",
        "r",
        "dart",
        "d",
        "nim",
        "pascal",
        "lisp",
        "scheme",
        "clojure",
        "elixir",
        "zig",
    )
)
_WRITING = frozenset(("markdown", "md", "mdx"))
_NO_PROGRAM = frozenset(
    (
        "text",
        "txt",
        "plaintext",
        "plain",
        "output",
        "out",
        "stdout",
        "stdin",
        "input",
        "in",
        "bash",
        "sh",
        "shell",
        "zsh",
        "fish",
    )
    + (
        "console",
        "terminal",
        "cmd",
        "bat",
        "batch",
        "powershell",
        "ps",
        "pycon",
        "json",
        "yaml",
        "yml",
        "toml",
        "xml",
        "html",
    )
    + (
        "csv",
        "diff",
        "log",
        "latex",
        "tex",
        "math",
        "result",
        "results",
        "example",
        "sample",
        "mermaid",
        "dot",
        "none",
        "pseudocode",
    )
)
# A line that says what follows is no solution: "Example:", "**Sample output**", "Run it:", "Here are some test cases:".
_NAMES_AN_EXAMPLE = re.compile(
    r"[\W_]*(?:(?:the|an?|some|few|more|here\s+(?:is|are)|here's|let\s+me|let's|for|now|then|and|expected|sample|example|test|program"
    r"|usage|unit|quick|simple|sanity|its)\s+)*"
    r"(?:inputs?|outputs?|usages?|runs?|examples?|samples?|test(?:s|\s*cases?|\s*suite)?|results?|stdin|stdout|prints?|checks?|driver(?:\s+code)?"
    r"|verify|verification|demo(?:nstration)?|e\.?g|(?:to\s+)?run(?:\s+(?:it|this))?|for\s+(?:example|instance)|(?:to\s+)?test\s+it)"
    r"(?:\s*#?\d+)?(?:\s+(?:with|as|like\s+this|by|is|and|an?|usage|run|cases?|example|inputs?|outputs?))*[\W_]*",
    re.IGNORECASE,
)
# What stands before is called or run: "You can test it with:", "Running this with 3 gives:".
_USES_IT = re.compile(
    r"\b(?:(?:call|invoke?|execute?|test|runn?|verify)(?:ing|s)?\s+(?:it|this|that)\b"
    r"|(?:call|invoke?|execute?|test|runn?|try|verify)(?:ing|s)?\s+(?:the|your|our|this|my)"
    r"\s+(?:function|class|method|program|script|code|solution|implementation)\b"
    r"|us(?:e|ing)\s+(?:the|your|our|this|my)\s+(?:function|class|method)\b|(?:use|using|try|trying)\s+it\b)",
    re.IGNORECASE,
)
# One that has it print: "This will print:", "The output should be:".
_PRINTS = re.compile(
    r"(?:\b(?:it|this|that|which|program|code|script)\s+(?:(?:will|should|would)\s+)?"
    r"(?:print|output|produce|give|display|show|return)s?|\boutputs?\s+(?:will|should|would)\s+be|\boutput\s+is"
    r"|\byou(?:'ll|\s+(?:will|should|would))\s+(?:see|get))[\s:.*_`]*\Z",
    re.IGNORECASE,
)
# Whatever it says besides: what follows is another attempt.
_NAMES_A_SOLUTION = re.compile(
    r"\b(?:final|correct(?:ed)?|complete|full|fix(?:ed)?|improved?|revised?|updated?|optimi[sz]ed|better|faster|instead)\b",
    re.IGNORECASE,
)
_MAX_INTRODUCTION = 200

# ASCII on purpose: what a judge's checker reads as a number.
_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}\Z")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?\Z")
_WORD = re.compile(r"[^ \t\n\r\f\v]+")


class Case(NamedTuple):
    """What a program reads on stdin and what it must print."""

    input: str
    output: str


class Block(NamedTuple):
    """A closed fenced block.

    Attributes:
        label: the language in lower case, without version; empty without one.
        content: its lines, without the fence's own indentation.
        is_example: the line before it names an example, an output or a way to run.
    """

    label: str
    content: str
    is_example: bool


def last_code_block(text: str, interpreter: str = "python") -> str | None:
    """The program in a response: a closed fenced block (``` or ~~~), None without one. Linear in the length of `text`.

    The last block of the best kind: marked as the interpreter's language; marked as a program in any; unmarked. Of one
    kind, those that are introduced as an example or an output come last. Blocks marked as text, output, data or shell
    are never the program (but a shell's own).

    Args:
        interpreter: name of what runs it, without a version.
    """
    blocks = list(_blocks(text, _MAX_NESTED))
    own = _OWN_LABELS.get(interpreter, frozenset((interpreter,)))
    best: tuple[int, bool, int] | None = None
    for number, block in enumerate(blocks):
        kind = _kind(block.label, own)
        if kind and (best is None or (kind, not block.is_example, number) > best):
            best = kind, not block.is_example, number
    return None if best is None else blocks[best[2]].content


def same_output(expected: str, printed: str, tolerance: float) -> bool:
    """Equal word by word; white space does not count.

    With a `tolerance` (relative or absolute) decimals may be off by it. Integers may not: where an integer is expected
    and one is printed, in whatever notation, they must be equal at any size.
    """
    wanted, given = _WORD.findall(expected), _WORD.findall(printed)
    return len(wanted) == len(given) and all(_same_word(a, b, tolerance) for a, b in zip(wanted, given, strict=True))


def cases_of(row: Row, column: str) -> list[Case]:
    """The row's tests: a list of ``{input, output}``, or ``{input: [...], output: [...]}``, or either as JSON text.

    Raises:
        TaskError: anything else, or none; the text names the row's place.
    """
    value = value_of(row, column, "tests_column")
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError as error:
            raise TaskError(f"{row.place}: {column!r} is text, but {error}") from error
    if isinstance(value, Mapping):
        inputs, outputs = (value.get(name, value.get(f"{name}s")) for name in Case._fields)
        if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
            raise TaskError(f"{row.place}: {column!r} is not {{input: [...], output: [...]}} with lists of one length")
        value = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    if not isinstance(value, list) or not value:
        raise TaskError(f"{row.place}: {column!r} is not a list of tests: give at least one, or drop the row")
    return [_test(test, f"{row.place}: {column!r} number {number}") for number, test in enumerate(value, start=1)]


class _Opening(NamedTuple):
    """A line that opens a block: what stands before its fence, the fence, what stands behind."""

    before: str
    fence: str
    info: str


def _opening(line: str) -> _Opening | None:
    rest = line.lstrip(_MARKS)
    if (mark := _LIST_MARK.match(rest)) is not None:
        rest = rest[mark.end() :]
    match = _FENCE.match(rest)
    return None if match is None else _Opening(line[: len(line) - len(rest)], match["fence"], match["info"])


def _blocks(text: str, nested: int) -> Iterator[Block]:
    opening: _Opening | None = None
    content: list[str] = []
    last_line = introduction = ""
    for line in re.sub(r"\r\n?", "\n", text).split("\n"):
        if opening is None:
            opening, content, introduction = _opening(line), [], last_line
        elif _closes(opening, line):
            label, inside = _label(opening.info), "\n".join(content) + "\n"
            if label in _WRITING and nested:
                yield from _blocks(inside, nested - 1)
            else:
                yield Block(label, inside, _introduces_an_example(introduction[:_MAX_INTRODUCTION]))
            opening, last_line = None, ""
        else:
            content.append(_without_indentation(line, opening.before))
        if opening is None and line.strip():
            last_line = line if _CLOSE.match(line) is None else ""


def _introduces_an_example(line: str) -> bool:
    line = line.replace("’", "'")
    if _NAMES_AN_EXAMPLE.fullmatch(line) is not None:
        return True
    if _NAMES_A_SOLUTION.search(line) is not None:
        return False
    return _USES_IT.search(line) is not None or _PRINTS.search(line) is not None


def _closes(opening: _Opening, line: str) -> bool:
    """A fence as long as the opening one and without a label, not further in than a list's text may be."""
    match = _CLOSE.match(line)
    indentation = len(line) - len(line.lstrip(_MARKS))
    return match is not None and match["fence"].startswith(opening.fence) and indentation <= len(opening.before) + 3


def _without_indentation(line: str, before: str) -> str:
    """The line without as much of quote marks and blanks as stand before the opening fence."""
    marks = before.count(">")
    for _ in range(marks):
        rest = line.lstrip(" \t")
        if not rest.startswith(">"):
            break
        line = rest[1:].removeprefix(" ")
    width = len(before.rpartition(">")[2].removeprefix(" ") if marks else before)
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(blanks, width) :]


def _label(info: str) -> str:
    match = _LABEL.match(info.strip()[:_MAX_LABEL])
    return "" if match is None else match[1].lower()


def _kind(label: str, own: frozenset[str]) -> int:
    """How sure it is that a block of this label is the program; 0: it is none. `own`: labels of the task's language."""
    if label in own:
        return 3
    if label in _NO_PROGRAM or label in _SHELL:
        return 0
    return 2 if label in _OTHER_PROGRAMS or label in _PYTHON or label in _SCRIPT else 1


def _test(value: object, place: str) -> Case:
    texts = [value.get(name) for name in Case._fields] if isinstance(value, Mapping) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TaskError(f"{place}: not {{input: text, output: text}}")
    return Case(*map(str, texts))


def _same_word(wanted: str, given: str, tolerance: float) -> bool:
    if wanted == given:
        return True
    if tolerance == 0 or not all(_INTEGER.match(word) or _DECIMAL.match(word) for word in (wanted, given)):
        return False
    if _INTEGER.match(wanted):
        if _INTEGER.match(given):
            return int(wanted) == int(given)
        value = Fraction(given)
        if value.denominator == 1:  # 1e9 where 1000000007 is expected
            return value == int(wanted)
    try:
        numbers = float(wanted), float(given)
    except OverflowError:  # an integer beyond floats
        return False
    return all(map(math.isfinite, numbers)) and math.isclose(*numbers, rel_tol=tolerance, abs_tol=tolerance)
