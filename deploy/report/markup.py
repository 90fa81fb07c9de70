"""Fills the templates in ``templates/``: they hold the markup of pages, Python holds what is computed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape


class Picture(NamedTuple):
    """A figure of a page: `name`.png lies beside the page."""

    name: str
    title: str
    caption: str
    png: bytes


def render(template: str, **values: object) -> str:
    """The text of ``templates/<template>``.

    Values are escaped unless the name ends in ``.md.j2``. A name in the template without a value is an error.
    """
    return _ENVIRONMENT.get_template(template).render(values)


def _data_uri(png: bytes) -> str:
    """The picture itself as an address, so that a page needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _belief(colour: float) -> str:
    """-1 to 1 as red to green, faint in the middle."""
    red_green_blue = "31,138,76" if colour > 0 else "201,58,58"
    return f"rgba({red_green_blue},{0.6 * abs(colour):.2f})"


def _doubt(share: float) -> str:
    """0 to 1 as nothing to orange."""
    return f"rgba(234,115,23,{0.7 * share:.2f})"


def templates_in(folder: Path) -> Environment:
    """Templates of a folder, escaping as `render` says."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


_ENVIRONMENT = templates_in(Path(__file__).with_name("templates"))
_ENVIRONMENT.filters["data_uri"] = _data_uri
_ENVIRONMENT.filters["belief"] = _belief
_ENVIRONMENT.filters["doubt"] = _doubt
