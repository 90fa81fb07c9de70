"""From a YAML file and ``section.field=value`` overrides to a `VcppoConfig`, or one clear line per problem."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from common.config.fields import config_fields
from common.config.tree import PROBLEM_SEPARATOR, VcppoConfig
from common.errors import ConfigError

_COMMAND_LINE = "command line"
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INTEGER = re.compile(r"^[-+]?[0-9]+$")
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")


class Override(NamedTuple):
    """``rl.batch_size=64`` → (("rl", "batch_size"), 64)."""

    path: tuple[str, ...]
    value: object


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> VcppoConfig:
    """Read, override and check the tree.

    Args:
        path: a YAML file.
        overrides: ``section.field=value``, values in YAML; the last one of a field wins.

    Raises:
        ConfigError: one line per problem, each naming file (or command line), field, value and remedy.
    """
    if path is None:
        raise ConfigError("no config file: give one with -c CONFIG.yaml (see deploy/configs/ for examples)")
    tree = _read(path)
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
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def parse_override(text: str) -> Override:
    """Split ``section.field=value``; the value is YAML, an empty one is null."""
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"{_COMMAND_LINE}: {text!r} is no override: write section.field=value, e.g. rl.batch_size=64")
    try:
        return Override(tuple(name.split(".")), yaml.load(value, _Loader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{_COMMAND_LINE}: {name} = {value!r} is not YAML ({_flat(error)}): quote it") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [each.name for each in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ": check the path given with -c"
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error}): give a readable YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {_flat(error)}") from None
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
            name, parent = ".".join(override.path), ".".join(override.path[:depth])
            raise ConfigError(f"{_COMMAND_LINE}: {name}: {parent} is a value ({node!r}), not a section")
        if last:
            node[key] = override.value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[key]


def _index(node: list[Any], path: tuple[str, ...], depth: int) -> int:
    key, name = path[depth], ".".join(path[:depth])
    if not key.isdecimal() or int(key) >= len(node):
        raise ConfigError(f"{_COMMAND_LINE}: {'.'.join(path)}: {name} has {len(node)} items: {key!r} is none of them")
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
    for details in error.errors():
        if details["type"] == "value_error" and not details["loc"]:  # the cross-field checks of the whole tree
            text = str(details["ctx"]["error"])
            source = f"{sources.file} and {_COMMAND_LINE}" if sources.overridden else sources.file
            lines += [f"{source}: {line}" for line in text.split(PROBLEM_SEPARATOR)]
        else:
            lines.append(_problem(details, sources))
    return lines


def _problem(details: ErrorDetails, sources: _Sources) -> str:
    location = [str(part) for part in details["loc"]]
    name, source = ".".join(location), sources.of(location)
    value = details["input"]
    if details["type"] == "missing":
        name = "model.path" if name == "model" else name  # the only section that has no default
        return f"{source}: {name} is missing: {_description(name) or 'add it'}"
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


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and booleans (3e-5 is a number, `no` is a word), no duplicate keys."""

    # Without the 1.1 resolvers, which PyYAML keeps by first character.
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML reads a class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                first = seen[key_node.value]
                raise yaml.YAMLError(f"{key_node.value!r} is given twice, in lines {first} and {line}: keep one")
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose plain scalars mean the same to `_Loader`."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def as_overrides(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A nested mapping as override strings; the inverse of applying them (used to start child runs of a sweep)."""
    texts: list[str] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            texts += as_overrides(value, f"{prefix}{key}.")
        else:
            text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10**9)
            scalar = text.removesuffix("\n").removesuffix("\n...")  # PyYAML ends a lone scalar with a document mark
            texts.append(f"{prefix}{key}={scalar}")
    return texts
