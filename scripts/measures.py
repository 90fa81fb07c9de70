"""How the code base is built, in figures: `make measures`.

Read from the source; nothing of ours is imported. tests/unit/test_architecture.py asserts the limits; this prints them.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple, TypeGuard

ROOT = Path(__file__).resolve().parents[1]
WINGS = ("common", "generator", "learner", "deploy")
LONG_FUNCTION = 50
ARRAYS = re.compile(r"Tensor|NDArray|Float\d+Array|Int\d+Array|BoolArray")
SHAPES = re.compile(r"\[[A-Z0-9*·, ]+[a-z]*\]|``\[|scalar|(Float|Int)\d*\[|Bool\[")


class Module(NamedTuple):
    """One file of ours: ``learner.rl.loop`` at learner/rl/loop.py."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def room(self) -> str:
        """``learner.rl``; a loose file of a wing is a room of its own."""
        return ".".join(self.name.split(".")[:2])

    @property
    def wing(self) -> str:
        return self.name.partition(".")[0]


def modules() -> dict[str, Module]:
    """All modules of the four wings by name, without the leading ``vcppo.``."""
    found = {}
    for wing in WINGS:
        for path in sorted((ROOT / wing).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return found


def imports_of(module: Module, known: Mapping[str, Module]) -> set[str]:
    """Modules of ours that are imported when this one runs; what only type checkers see is left out."""
    for_types = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(module.tree):
        if id(node) in for_types:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
            if f"{node.module}.{node.names[0].name}".removeprefix("vcppo.") in known:
                names.pop()  # a module out of a package: the package itself is not what is wanted
        found |= {name.removeprefix("vcppo.") for name in names if name.startswith("vcppo.")} & known.keys()
    return found - {module.name}


def graph(known: Mapping[str, Module]) -> dict[str, set[str]]:
    return {name: imports_of(module, known) for name, module in known.items()}


def room_graph(known: Mapping[str, Module], arrows: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Who imports whom among the rooms of one wing."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in arrows.items():
        here = known[name]
        rooms[here.room] |= {
            known[target].room for target in targets if known[target].wing == here.wing and target != here.wing
        } - {here.room}
    return dict(rooms)


def circle(arrows: Mapping[str, Iterable[str]]) -> list[str]:
    """A chain of imports that ends where it began; empty when there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def loose_modules(known: Mapping[str, Module]) -> dict[str, int]:
    """Files of a folder that are neither ``__init__`` nor ``__main__``."""
    counts: dict[str, int] = defaultdict(int)
    for module in known.values():
        if module.path.stem not in ("__init__", "__main__"):
            counts[module.path.parent.relative_to(ROOT).as_posix()] += 1
    return dict(counts)


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def length_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(module: Module) -> Iterator[Definition]:
    """Functions and classes of the module, and methods of its public classes, whose names have no underscore."""
    for node in module.tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield inner


def takes_arrays(node: Definition) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef]:
    if isinstance(node, ast.ClassDef):
        return False
    hints = [argument.annotation for argument in [*node.args.args, *node.args.kwonlyargs]] + [node.returns]
    return any(hint is not None and ARRAYS.search(ast.unparse(hint)) for hint in hints)


def gives_shapes(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    returned = "" if node.returns is None else ast.unparse(node.returns)
    return bool(SHAPES.search((ast.get_docstring(node) or "") + ast.unparse(node.args) + returned))


def sentences(text: str) -> list[int]:
    """Words of each sentence of a Markdown page: no code, tables, headings or links' targets."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s{4,}|\s*[|#<!]", line)]
    prose = re.sub(r"\]\([^)]*\)|[`*_\[\]]", "", "\n".join(lines))
    blocks = re.split(r"\n\s*\n|\n\s*(?:-|\d+\.)\s", prose)
    pieces = (piece for block in blocks for piece in re.split(r"(?<=[.!?:;])\s+", " ".join(block.split())))
    return [count for piece in pieces if (count := len(piece.split())) > 2]


def main() -> int:
    known = modules()
    arrows = graph(known)
    rooms = room_graph(known, arrows)
    loose = loose_modules(known)
    print(f"{'wing':<11}{'modules':>8}{'rooms':>7}{'arrows':>8}{'circle':>9}{'loose files, most':>28}")
    for wing in WINGS:
        mine = {room: targets for room, targets in rooms.items() if room.startswith(f"{wing}.")}
        most = max((name for name in loose if name.partition("/")[0] == wing), key=loose.__getitem__)
        print(
            f"{wing:<11}{sum(name.startswith(f'{wing}.') for name in known):>8}{len(mine):>7}"
            f"{sum(map(len, mine.values())):>8}{' ← '.join(circle(mine)) or 'none':>9}{f'{loose[most]} in {most}':>28}"
        )
    print(f"\ncircle of modules: {' ← '.join(circle(arrows)) or 'none'}")

    lengths = sorted(
        ((length_of(each), f"{module.name}:{each.name}") for module in known.values() for each in functions(module)),
        reverse=True,
    )
    long = [entry for entry in lengths if entry[0] > LONG_FUNCTION]
    print(f"functions: {len(lengths)}, of which above {LONG_FUNCTION} lines (docstrings left out): {len(long)}")
    for lines, name in long:
        print(f"  {lines:>4}  {name}")

    public = [(module, node) for module in known.values() for node in public_definitions(module)]
    documented = [node for _, node in public if ast.get_docstring(node) is not None]
    arrays = [node for _, node in public if takes_arrays(node)]
    shaped = [node for node in arrays if gives_shapes(node)]
    print(f"public names with a docstring: {len(documented)} of {len(public)} ({len(documented) / len(public):.0%})")
    print(
        f"public functions of arrays that give shapes: {len(shaped)} of {len(arrays)} ({len(shaped) / len(arrays):.0%})"
    )
    if "--missing" in sys.argv:
        for module, node in public:
            if ast.get_docstring(node) is None or (takes_arrays(node) and not gives_shapes(node)):
                print(f"  {module.path.relative_to(ROOT)}:{node.lineno} {node.name}")

    print("\nwords a sentence       mean  median  above 25")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        counts = sentences(page.read_text(encoding="utf-8"))
        if counts:
            above = sum(count > 25 for count in counts)
            mean, median = statistics.mean(counts), statistics.median(counts)
            print(f"  {page.name:<22}{mean:>4.1f}{median:>7.0f}{above:>5} of {len(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
