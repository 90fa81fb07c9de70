"""``<run>/explainable.json``: what `vcppo explainable` has found, a row a policy version and position."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from vcppo.common.evaluation.continuations import Continued, Wanted
from vcppo.common.evaluation.explainable_variance import explainable_variance, group_mean_explains
from vcppo.common.evaluation.over_prompts import Figure
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.seeds import derive_seed
from vcppo.common.run_folder import RunFolder
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.run.run_config import RunError

SCHEMA_VERSION: Final = 1
Ends = tuple[FiniteFloat, FiniteFloat]
Values = dict[int, dict[int, float]]
"""problem → position → the critic's V."""


class ExplainableRow(BaseModel):
    """One policy version at one position; intervals are of 90 %, over prompts.

    Attributes:
        prefixes: responses that go on beyond the position; `continuations`: of each of them.
        mean, variance: of the returns.
        explainable: share of the variance that a perfect critic would explain; None where returns don't vary.
        explained: what the run's critic explains on the same prefixes; None without a critic.
        reached: explained / explainable, where it is certain that anything is explainable.
        group_mean: at position 0, what the mean of a group's other responses explains.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    version: NonNegativeInt
    position: NonNegativeInt
    prefixes: PositiveInt
    continuations: PositiveInt
    mean: FiniteFloat
    variance: FiniteFloat
    explainable: FiniteFloat | None
    explainable_interval: Ends | None
    explained: FiniteFloat | None
    explained_interval: Ends | None
    reached: FiniteFloat | None
    reached_interval: Ends | None
    group_mean: FiniteFloat | None


class Results(BaseModel):
    """The file."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    rows: list[ExplainableRow]


def rows_of(
    version: int,
    found: Continued,
    values: Values | None,
    wanted: Wanted,
    *,
    gamma: float,
    group_size: int,
    seed: int,
) -> list[ExplainableRow]:
    """The figures, from complete continuations; a position that no response reaches has no row.

    Args:
        values: of every response that reaches a position; None without a critic.
    """
    rows = []
    for position in wanted.positions:
        problems = found.problems_at(position, wanted)
        if not problems:
            continue
        returns = found.returns_at(position, wanted, gamma)
        critic = None if values is None else np.array([values[problem][position] for problem in problems], np.float64)
        each = explainable_variance(returns, critic, derive_seed(seed, "explainable", version, position))
        by_prompt = each.explainable.value if position == 0 else None
        rows.append(
            ExplainableRow(
                version=version,
                position=position,
                prefixes=len(problems),
                continuations=wanted.num_continuations,
                mean=each.mean,
                variance=each.variance,
                **_fields("explainable", each.explainable),
                **_fields("explained", each.explained),
                **_fields("reached", each.reached),
                group_mean=None if by_prompt is None else group_mean_explains(by_prompt, group_size),
            )
        )
    return rows


def _fields(name: str, figure: Figure | None) -> dict[str, Any]:
    value, interval = figure or (None, None)
    return {name: value, f"{name}_interval": None if interval is None else tuple(interval)}


def read_rows(folder: RunFolder) -> list[ExplainableRow]:
    """By version and position; none while there is no file.

    Raises:
        RunError: the file is damaged, or of another version of vcppo.
    """
    path = folder.explainable_results
    if not path.exists():
        return []
    remedy = f"move it away; `vcppo explainable` makes it again from what is in {folder.explainable}"
    try:
        return Results.model_validate_json(json.dumps(read_json_object(path, remedy))).rows
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = one_line(".".join(str(part) for part in first["loc"]))
        raise RunError(f"{path}: {field}: {one_line(first['msg'])}: {remedy}") from error


def keep_rows(folder: RunFolder, new: Iterable[ExplainableRow]) -> list[ExplainableRow]:
    """Put the rows into the file, in place of those of the same version and position. Returns all of them."""
    rows = {(row.version, row.position): row for row in [*read_rows(folder), *new]}
    kept = [row for _, row in sorted(rows.items())]
    write_whole(folder.explainable_results, Results(rows=kept).model_dump_json(indent=1) + "\n")
    return kept
