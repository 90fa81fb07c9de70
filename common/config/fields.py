"""The config tree as a flat list of fields, and as the page docs/configuration.md.

``python -m vcppo.common.config > docs/configuration.md`` writes the page; a test fails when it is stale.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vcppo.common.config.tree import VcppoConfig


class ConfigField(NamedTuple):
    """One leaf of the tree.

    Attributes:
        name: dotted, as an override takes it; ``[]`` marks a list of sections.
        type: in words: ``int >= 1``, ``float or null``, ``gae | group_mean``.
        default: as YAML would have it, or ``required``.
        description: what it does.
    """

    name: str
    type: str
    default: str
    description: str


def config_fields(section: type[BaseModel] = VcppoConfig, prefix: str = "") -> Iterator[ConfigField]:
    """Every leaf field below a section, in the order of the schema."""
    for name, info in section.model_fields.items():
        annotation: Any = info.annotation
        inner = _list_item(annotation)
        if _is_section(annotation):
            yield from config_fields(annotation, f"{prefix}{name}.")
        elif _is_section(inner):
            yield from config_fields(inner, f"{prefix}{name}[].")
        else:
            yield ConfigField(
                f"{prefix}{name}", _type_text(info), _default_text(info), " ".join((info.description or "").split())
            )


def render_markdown() -> str:
    """The text of docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "Made from the field texts by `python -m vcppo.common.config > docs/configuration.md`. Edit those.",
        "",
        "A run is one YAML file (`vcppo up -c run.yaml`). Any field can be overridden on the command line by its",
        "dotted name: `rl.batch_size=64`, `redis.url=null`, `sft.phases.0.steps=200`. Unknown keys are refused.",
        "",
        "    vcppo config                               every setting of this page",
        "    vcppo config lambda                        those with this word in their name or text",
        "    vcppo config -c my.yaml rl.batch_size=64   your file with all defaults and this setting",
        "",
        "Options of the built-in tasks: [dataset.md](dataset.md) and [built_in_tasks.md](built_in_tasks.md).",
    ]
    for name, info in VcppoConfig.model_fields.items():
        section: Any = info.annotation
        lines += ["", f"## {name}", "", (section.__doc__ or "").strip(), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [_table_row(field) for field in config_fields(section, f"{name}.")]
    return "\n".join(lines) + "\n"


def _table_row(field: ConfigField) -> str:
    cells = (f"`{field.name}`", field.type, f"`{field.default}`", field.description)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _list_item(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is list else None


def _default_text(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def _type_text(info: FieldInfo) -> str:
    bounds = []
    for constraint in info.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            bound = getattr(constraint, name, None)
            if bound is not None:
                bounds.append(f"{sign} {bound:g}")
    return " ".join([_name(info.annotation), ", ".join(bounds)]).strip()


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if arg is types.NoneType else _name(arg) for arg in args)
    if origin is list:
        return f"list of {_name(args[0])}"
    if origin is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _name(args[0])
    return "path" if annotation is Path else str(getattr(annotation, "__name__", annotation))
