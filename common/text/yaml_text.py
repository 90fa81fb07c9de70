"""YAML in and out, with 1.2's numbers and booleans (3e-5 is a number, `no` is a word) and no surprises:

no key twice, no tag but the plain ones, no text that would talk to a terminal, and no document that means more than it
says: aliases of aliases, or nesting without end.
"""

# Why not ruamel.yaml: version 0.19.1 was tried in November 2026 (YAML 1.2, safe). It agrees on booleans and on floats
# like 1e-6. It refuses a key that is given twice and names the line. That would save about 15 lines of this file. It
# lets the rest through: 1e999 as infinity, any number of digits, 0x10, 1_000, dates, sets, binary, keys that are
# numbers or lists, control characters, lone surrogates, an alias inside itself, aliases that stand for 9**9 values.
# Wrong tags and deep nesting end in KeyError, ValueError or RecursionError. This loader would stay, on other classes.
# py-yaml12 0.2.0 keeps the last of two equal keys and writes all aliases out. yamlcore 0.0.4 is PyYAML with other
# resolvers, which are ten lines here.

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import yaml

MAX_CHARACTERS = 1 << 18
_MAX_DEPTH = 40
_MAX_NODES = 20_000  # with every alias counted as what it stands for
_MAX_ERROR = 300

_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_INTEGER = re.compile(r"^[-+]?[0-9]+$")
_BOOLEAN = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(~|null|Null|NULL|)$")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str) -> Any:
    """The document in `text`: None, bool, 64-bit int, float, str, lists and dicts. Raises `yaml.YAMLError`."""
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"longer than {MAX_CHARACTERS} characters: no config is")
    return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader with fewer types)


def write_yaml(value: Any, **style: Any) -> str:
    """YAML that `read_yaml` reads as `value`."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style)
    return text


def one_line(error: object, limit: int = _MAX_ERROR) -> str:
    """The text of an error, or a name, as one printable line of bounded length, whatever was quoted in it."""
    text = " ".join(str(error).split())
    text = text if len(text) <= limit else text[:limit] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


class Refused(yaml.YAMLError):
    """YAML that says what no config may. The text is the problem; ``line`` is where, from 1."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem)
        self.line = mark.line + 1


class _Extent(NamedTuple):
    """Of a node with every alias in it written out."""

    num_nodes: int
    height: int


class _Loader(yaml.SafeLoader):
    # Without the 1.1 resolvers, which PyYAML keeps by first character.
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML reads a class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # Without dates, binary and sets: a config has no use for them, and their readers fail in many ways.
    yaml_constructors = {  # noqa: RUF012
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[1] in ("seq", "map")
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._extents: dict[yaml.Node, _Extent] = {}
        self._num_open = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._num_open += 1
        self._check(_Extent(1, 1), mark)
        node = super().compose_node(parent, index)
        if node is not None:
            extent = self._extents.get(node) if is_alias else self._extent(node)
            if extent is None:
                raise Refused("an alias stands inside what it names", mark)
            self._extents[node] = extent
            self._check(extent, mark)
        self._num_open -= 1
        return node

    def _extent(self, node: yaml.Node) -> _Extent:
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        inner = [self._extents[part] for part in parts]
        return _Extent(1 + sum(each.num_nodes for each in inner), 1 + max((each.height for each in inner), default=0))

    def _check(self, extent: _Extent, mark: yaml.Mark) -> None:
        if self._num_open + extent.height - 1 > _MAX_DEPTH:
            raise Refused(f"nested more than {_MAX_DEPTH} deep", mark)
        if extent.num_nodes > _MAX_NODES:
            raise Refused(f"means more than {_MAX_NODES} values", mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[object, int] = {}
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else []:  # else refused below
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                first = seen[key_node.value]
                raise yaml.YAMLError(f"{key_node.value!r} is given twice, in lines {first} and {line}: keep one")
            seen[key_node.value] = line
        made = super().construct_mapping(node, deep)
        for key in made:
            if type(key) is not str:
                raise Refused(f"a key is {str(key)[:40]!r}, which is no text: quote it", node.start_mark)
        return made


class _Dumper(yaml.SafeDumper):
    """SafeDumper whose plain scalars mean the same to `_Loader`."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _scalar(is_one: Callable[[str], object], make: Callable[[str], Any], what: str) -> Callable[[_Loader, Any], Any]:
    def construct(loader: _Loader, node: Any) -> Any:
        text = loader.construct_scalar(node)
        if not is_one(text):
            raise Refused(f"{text[:40]!r} is no {what}", node.start_mark)
        return make(text)

    return construct


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, tuple[Callable[[str], object], Callable[[str], Any], str]] = {
    "null": (_NULL.match, lambda _: None, "null"),
    "bool": (_BOOLEAN.match, lambda text: text.lower() == "true", "true or false"),
    "int": (lambda text: _INTEGER.match(text) and len(text) < 25 and abs(int(text)) < 2**63, int, "64-bit integer"),
    "float": (lambda text: _FLOAT.match(text) and math.isfinite(_float(text)), _float, "finite number"),
    "str": (lambda text: not _CONTROL.search(text), str, "plain text: it has control characters or lone surrogates"),
}
for _name, _parts in _SCALARS.items():
    _Loader.add_constructor(_TAG + _name, _scalar(*_parts))
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_TAG + "bool", _BOOLEAN, list("tTfF"))
    _class.add_implicit_resolver(_TAG + "int", _INTEGER, list("-+0123456789"))
    _class.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+0123456789."))
