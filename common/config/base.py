"""What the sections of the config tree are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Lambda = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Folder = Annotated[Path, Field(strict=False)]  # YAML gives text


def _compiled(pattern: str) -> str:
    """Raises ValueError, whose text names the place."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}: correct it") from error
    if not pattern:
        raise ValueError("is empty, which is found in every name: leave it out")
    return pattern


Pattern = Annotated[str, AfterValidator(_compiled)]


class Section(BaseModel):
    """A part of the tree: frozen, strict about types and unknown keys; the string below a field documents it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
