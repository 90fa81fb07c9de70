"""From a YAML file and ``section.field=value`` overrides to a `VcppoConfig`, or one clear line per problem."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vcppo.common.config.fields import config_fields
from vcppo.common.config.removed import REMOVED
from vcppo.common.config.tree import PROBLEM_SEPARATOR, VcppoConfig
from vcppo.common.errors import ConfigError
from vcppo.common.text.yaml_text import MAX_CHARACTERS, Refused, one_line, read_yaml, write_yaml

_COMMAND_LINE = "command line"
_MAX_PROBLEMS = 30  # lines; the rest is a number
_MAX_NAME = 120
_MAX_OVERRIDE_DEPTH = 20
_MAX_BASES = 10


class Override(NamedTuple):
    """``rl.batch_size=64`` → (("rl", "batch_size"), 64)."""

    path: tuple[str, ...]
    value: object


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> VcppoConfig:
    """Read, override and check the tree.

    Args:
        path: a YAML file; ``extends: base.yaml`` in it lays it over another.
        overrides: ``section.field=value``, values in YAML; the last one of a field wins.

    Raises:
        ConfigError: one line per problem, each naming file (or command line), field, value and remedy.
    """
    if path is None:
        raise ConfigError("no config file: give one with -c CONFIG.yaml (`vcppo check --help` says where examples are)")
    tree = _read_with_bases(path)
    parsed = [parse_override(text) for text in overrides]
    for override in parsed:
        _apply(tree, override)
    try:
        return VcppoConfig.model_validate(tree)
    except ValidationError as error:
        sources = _Sources(str(path), [override.path for override in parsed])
        raise ConfigError(*_problems(error, sources)) from None


def dump_config(config: VcppoConfig) -> str:
    """The resolved tree as YAML; `load_config` of it gives the same tree."""
    tree = config.model_dump(mode="json")
    return write_yaml(tree, width=120)


def parse_override(text: str) -> Override:
    """Split ``section.field=value``; the value is YAML, an empty one is null."""
    name, equals, value = text.partition("=")
    path = tuple(name.split("."))
    if not equals or not all(path) or len(path) > _MAX_OVERRIDE_DEPTH:
        what = f"{_COMMAND_LINE}: {_shown(text)} is no override"
        raise ConfigError(f"{what}: write section.field=value, e.g. rl.batch_size=64")
    try:
        return Override(path, read_yaml(value))
    except Refused as error:
        raise ConfigError(f"{_COMMAND_LINE}: {_dotted(path)} = {_shown(value)}: {one_line(error)}") from None
    except yaml.YAMLError as error:
        what = f"{_COMMAND_LINE}: {_dotted(path)} = {_shown(value)}"
        raise ConfigError(f"{what} is not YAML ({one_line(error)}): quote it") from None


def _read_with_bases(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's tree over that of the file its top-level ``extends:`` names, relative to it.

    Sections are laid over each other field by field; a list, as any value, replaces the base's.
    """
    tree = _read(path)
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{path}: extends = {_shown(base)}: must be the path of one YAML file, relative to this one")
    chain = (*above, path.resolve())
    below = path.parent / base
    if below.resolve() in chain or len(chain) > _MAX_BASES:
        raise ConfigError(f"{path}: extends = {_shown(base)}: the files extend each other in a circle: leave one out")
    return _overlaid(_read_with_bases(below, chain), tree)


def _overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            tree = read_yaml(file.read(4 * MAX_CHARACTERS).decode("utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ": check the path given with -c"
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}): give a readable YAML file") from None
    except Refused as error:
        raise ConfigError(f"{path}: line {error.line}: {one_line(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {one_line(error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds a {type(tree).__name__}: the top level must be sections (model:, rl:, ...)")
    return tree


def _apply(tree: dict[str, Any], override: Override) -> None:
    """Set one value in the raw tree, making the mappings on the way to it; digits index lists."""
    node: Any = tree
    for depth, key in enumerate(override.path):
        last = depth == len(override.path) - 1
        if isinstance(node, list):
            key = _index(node, override.path, depth)  # type: ignore[assignment]
        elif not isinstance(node, dict):
            name, parent = _dotted(override.path), _dotted(override.path[:depth])
            raise ConfigError(f"{_COMMAND_LINE}: {name}: {parent} is a value ({_shown(node)}), not a section")
        if last:
            node[key] = override.value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]


def _index(node: list[Any], path: tuple[str, ...], depth: int) -> int:
    key, name = path[depth], _dotted(path[:depth])
    if not key.isdecimal() or len(key) > 9 or int(key) >= len(node):
        what = f"{_COMMAND_LINE}: {_dotted(path)}: {name} has {len(node)} items"
        raise ConfigError(f"{what}: {_shown(key)} is none of them")
    return int(key)


class _Sources(NamedTuple):
    """Where a value came from: the file, unless an override touched it."""

    file: str
    overridden: list[tuple[str, ...]]

    def of(self, location: Sequence[str]) -> str:
        for path in self.overridden:
            shared = min(len(path), len(location))
            if tuple(path[:shared]) == tuple(location[:shared]) and len(location) >= len(path):
                return _COMMAND_LINE
        return self.file


def _problems(error: ValidationError, sources: _Sources) -> list[str]:
    lines: list[str] = []
    found = error.errors(include_url=False)
    for details in found[:_MAX_PROBLEMS]:
        if details["type"] == "value_error" and not details["loc"]:  # the cross-field checks of the whole tree
            text = str(details["ctx"]["error"])
            source = f"{sources.file} and {_COMMAND_LINE}" if sources.overridden else sources.file
            lines += [f"{source}: {line}" for line in text.split(PROBLEM_SEPARATOR)[:_MAX_PROBLEMS]]
        else:
            lines.append(_problem(details, sources))
    if len(found) > _MAX_PROBLEMS:
        lines.append(f"{sources.file}: {len(found) - _MAX_PROBLEMS} more problems like these")
    return lines


def _problem(details: ErrorDetails, sources: _Sources) -> str:
    location = [str(part) for part in details["loc"]]
    name, source = _dotted(location), sources.of(location)
    value = details["input"]
    if details["type"] == "missing":
        name = "model.path" if name == "model" else name  # the only section that has no default
        return f"{source}: {name} is missing: {_description(name) or 'add it'}"
    if details["type"] == "extra_forbidden" and name in REMOVED:
        return f"{source}: {name} = {_shown(value)}: {REMOVED[name]}"
    if details["type"] == "extra_forbidden":
        return f"{source}: {name} = {_shown(value)}: unknown field; {_suggestion(location)}"
    if details["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{source}: {name} = {_shown(value)}: must be a section with fields of its own"
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    must = message if message != details["msg"] and details["type"] == "value_error" else f"must be {message}"
    description = _description(name)
    return f"{source}: {name} = {_shown(value)}: {must}" + (f" ({description})" if description else "")


def _suggestion(location: list[str]) -> str:
    """The nearest known name: a sibling first, then a field of that name in another section."""
    names = [field.name.replace("[]", "") for field in config_fields()]
    location = [part for part in location if not part.isdigit()]
    parents, key = location[:-1], location[-1]
    siblings = sorted({name.split(".")[len(parents)] for name in names if name.split(".")[: len(parents)] == parents})
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.7)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    elsewhere = [name for name in names if name.split(".")[-1] == key]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)
    known = ", ".join(siblings)
    return f"did you mean {'.'.join([*parents, near[0]])}?" if near else f"known here: {known}"


def _description(name: str) -> str:
    flat = re.sub(r"\.\d+\.", "[].", name)
    return next((field.description.rstrip(".") for field in config_fields() if field.name == flat), "")


def _shown(value: object) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(path: Sequence[str]) -> str:
    return one_line(".".join(path), _MAX_NAME)


def as_overrides(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A nested mapping as override strings; the inverse of applying them (used to start child runs of a sweep)."""
    texts: list[str] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            texts += as_overrides(value, f"{prefix}{key}.")
        else:
            text = write_yaml(value, default_flow_style=True, width=10**9)
            scalar = text.removesuffix("\n").removesuffix("\n...")  # PyYAML ends a lone scalar with a document mark
            texts.append(f"{prefix}{key}={scalar}")
    return texts
