"""Responses of a step with what the learner made of them: the columns of ``samples/step-000012.parquet``.

One row a response. Lists have one entry a response token; numbers that only actions have are null for other tokens.
pyarrow is imported when a file is written or read, not before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vcppo.common.errors import VcppoError
from vcppo.common.files.whole_file import whole_file
from vcppo.common.records.trajectory import BoolArray, Trajectory
from vcppo.common.text.yaml_text import one_line

if TYPE_CHECKING:
    import pyarrow

FloatArray = NDArray[np.float32]

SCHEMA_VERSION = 1
RESPONSE_COLUMNS = {
    "step": ("int32", "RL step that trained it"),
    "id": ("string", "of the trajectory: `<prompt_id>@<generator>.<attempt>`, and `#<segment>` where that is not 0"),
    "prompt_id": ("string", "of the prompt"),
    "group_id": ("string", "shared by the responses to one problem"),
    "sample_index": ("int32", "which response of its group"),
    "segment": (
        "int32",
        "which conversation of its rollout: 0 the one that ended last; an agent's others from 1, of the same reward",
    ),
    "task": ("string", "name of the task"),
    "generator": ("string", "who made it"),
    "issue_version": ("int32", "the learner's policy version when the prompt was issued"),
    "staleness": ("int32", "policy versions between its oldest token and the step's policy"),
    "outcome": ("string", "`correct`, `wrong`, `unparsable`, `timeout` or `crash`"),
    "finish_reason": ("string", "`stop` or `length`"),
    "reward": ("float64", "trained on"),
    "components": ("map<string, float64>", "parts of the reward by name, unweighted"),
    "turn_rewards": (
        "list<float64>",
        "of the turns that an environment answered; empty: the reward is the last turn's",
    ),
    "length": ("int32", "actions: tokens that the policy chose"),
    "turns": ("int32", "turns of the policy"),
    "believed": ("float32", "V before its last action: what the critic believed at the end; null without a critic"),
    "last_value": ("float32", "V after the last token, which only a cut response's targets use; null without a critic"),
    "largest_advantage": ("float32", "largest absolute advantage of its tokens"),
    "largest_mismatch": ("float32", "largest absolute difference of the two log-probs of a token"),
    "prompt": ("string", "its text, special tokens included"),
    "response": ("string", "the same of the response"),
    "prompt_token_ids": ("list<int32>", "tokens of the prompt"),
}
"""Name: type and meaning of what a response has once."""
TOKEN_COLUMNS = {
    "token_ids": ("int32", "the token"),
    "tokens": ("string", "what it adds to the text"),
    "turn": ("int32", "number of its turn, from 0; null where the environment speaks"),
    "versions": ("int32", "policy version that sampled it"),
    "behaviour_log_probs": ("float32", "log-prob when it was sampled, as vLLM said"),
    "old_log_probs": ("float32", "log-prob under the learner's policy before the step"),
    "values": ("float32", "V before the token: what the critic believed; null without a critic"),
    "value_targets": ("float32", "what the critic was trained towards; null without a critic"),
    "advantages": ("float32", "trained on, whitened where the run does that"),
    "importance_weights": ("float32", "of the objective's off-policy correction"),
    "is_trained": ("bool", "whether the actor was trained on it; null where the environment speaks"),
    "entropy": (
        "float32",
        "of the learner's policy before the step at this place, nats: how undecided it was; null with"
        " `algorithm.old_log_probs=behaviour`",
    ),
}
"""The same of what each token has: lists, named without their ``list<>``."""


class SampleError(VcppoError):
    """A file of samples that can't be read; the text names it."""


class TokenNumbers(NamedTuple):
    """What the learner knew of one response, ``[A]`` float32 over its actions; `is_trained` bool.

    `values` and `value_targets` are None without a critic, `entropy` where the learner did not go through the policy.
    """

    old_log_probs: FloatArray
    values: FloatArray | None
    value_targets: FloatArray | None
    advantages: FloatArray
    importance_weights: FloatArray
    is_trained: BoolArray
    entropy: FloatArray | None


@dataclass(frozen=True)
class SampleRow:
    """One response, as it is written.

    Attributes:
        step: which trained it.
        prompt, response: texts.
        pieces: of the response's text, one a token.
        last_value: V after the last token; None without a critic.
        segment: which conversation of its rollout.
    """

    step: int
    trajectory: Trajectory
    numbers: TokenNumbers
    prompt: str
    response: str
    pieces: Sequence[str]
    last_value: float | None
    segment: int = 0


def write_samples(path: Path, rows: Sequence[SampleRow]) -> None:
    """Write the file, whole or not at all. Raises OSError."""
    from pyarrow import parquet

    with whole_file(path) as partial:
        parquet.write_table(_table(rows), partial, compression="zstd")


def _table(rows: Sequence[SampleRow]) -> pyarrow.Table:
    import pyarrow as pa

    heads = [_head(row) for row in rows]
    columns = {
        name: pa.array([head[name] for head in heads], _type_of(kind)) for name, (kind, _) in RESPONSE_COLUMNS.items()
    }
    columns |= dict(_token_columns(rows))
    meanings = RESPONSE_COLUMNS | TOKEN_COLUMNS
    schema = pa.schema(
        [pa.field(name, column.type, metadata={"description": meanings[name][1]}) for name, column in columns.items()],
        metadata={"vcppo_samples": str(SCHEMA_VERSION)},
    )
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _head(row: SampleRow) -> dict[str, Any]:
    made, numbers = row.trajectory, row.numbers
    behaviour = made.behaviour_log_probs[made.action_mask]
    return {
        "step": row.step,
        "id": made.id,
        "prompt_id": made.prompt_id,
        "group_id": made.group_id,
        "sample_index": made.sample_index,
        "segment": row.segment,
        "task": made.task,
        "generator": made.generator_id,
        "issue_version": made.issue_version,
        "staleness": row.step - 1 - made.oldest_version,
        "outcome": made.outcome,
        "finish_reason": made.finish_reason,
        "reward": made.reward,
        "components": list(made.components.items()),
        "turn_rewards": list(made.turn_rewards),
        "length": int(made.action_mask.sum()),
        "turns": made.num_turns,
        "believed": None if numbers.values is None else float(numbers.values[-1]),
        "last_value": row.last_value,
        "largest_advantage": float(np.abs(numbers.advantages).max()),
        "largest_mismatch": float(np.abs(numbers.old_log_probs - behaviour).max()),
        "prompt": row.prompt,
        "response": row.response,
        "prompt_token_ids": made.prompt_token_ids,
    }


def _token_columns(rows: Sequence[SampleRow]) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa

    made = [row.trajectory for row in rows]
    borders = pa.array(np.cumsum([0, *(len(each.response_token_ids) for each in made)]), pa.int32())
    mask = _joined([each.action_mask for each in made], np.bool_)

    def lists(flat: Any) -> Any:
        return pa.ListArray.from_arrays(borders, flat)

    def of_actions(parts: list[Any], dtype: type[np.generic]) -> Any:
        """Parts of actions only, at their places; null elsewhere. A part of None is null throughout."""
        flat, known = np.zeros(len(mask), dtype), mask.copy()
        ends = np.cumsum([len(each.response_token_ids) for each in made])
        for each, part, end in zip(made, parts, ends, strict=True):
            here = slice(int(end) - len(each.response_token_ids), int(end))
            if part is None:
                known[here] = False
            else:
                flat[here][each.action_mask] = part
        return lists(pa.array(flat, mask=~known))

    yield "token_ids", lists(pa.array(_joined([each.response_token_ids for each in made], np.int32)))
    yield "tokens", lists(pa.array([piece for row in rows for piece in row.pieces], pa.string()))
    yield "turn", of_actions([np.cumsum(each.turn_begins)[each.action_mask] - 1 for each in made], np.int32)
    spans = [span for each in made for span in each.version_spans]
    versions = np.repeat([span.version for span in spans], [span.count for span in spans]).astype(np.int32)
    yield "versions", lists(pa.array(versions))
    behaviour = [each.behaviour_log_probs[each.action_mask] for each in made]
    yield "behaviour_log_probs", of_actions(behaviour, np.float32)
    for name in TokenNumbers._fields:
        parts = [getattr(row.numbers, name) for row in rows]
        yield name, of_actions(parts, np.bool_ if name == "is_trained" else np.float32)


def _joined(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)


def _type_of(kind: str) -> Any:
    import pyarrow as pa

    nested = {
        "list<int32>": pa.list_(pa.int32()),
        "list<float64>": pa.list_(pa.float64()),
        "map<string, float64>": pa.map_(pa.string(), pa.float64()),
    }
    return nested.get(kind) or pa.type_for_alias(kind)


class SampleTable:
    """A file that was read: all of it, or the columns that are named; those that it is too old to have are left out.

    Raises:
        SampleError: it is none of ours, of a later version, or damaged.
    """

    def __init__(self, path: Path, columns: Collection[str] | None = None) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                there = [name for name in file.schema_arrow.names if columns is None or name in columns]
                self._table = file.read(there)
        except (pa.ArrowException, OSError) as error:
            raise SampleError(f"{path}: not readable as samples: {one_line(error)}") from error
        known = (self._table.schema.metadata or {}).get(b"vcppo_samples")
        if known != str(SCHEMA_VERSION).encode():
            raise SampleError(f"{path}: has no samples of version {SCHEMA_VERSION}: this file is not of this program")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def responses(self) -> pyarrow.Table:
        """What each response has once, `RESPONSE_COLUMNS`."""
        return self._with_later_columns().select(list(RESPONSE_COLUMNS))

    def _with_later_columns(self) -> pyarrow.Table:
        """Files of before rollouts had several conversations, or of before that, lack some."""
        import pyarrow as pa

        later = {"segment": pa.array(np.zeros(len(self), np.int32)), "believed": pa.nulls(len(self), pa.float32())}
        table = self._table
        for name, column in later.items():
            if name not in table.column_names:
                table = table.append_column(name, column)
        return table

    def heads(self) -> list[dict[str, Any]]:
        """The same as rows."""
        return as_heads(self.responses())

    def tokens(self, number: int, names: Iterable[str] = tuple(TOKEN_COLUMNS)) -> dict[str, list[Any]]:
        """Of a response by its place in the file: these of `TOKEN_COLUMNS`, one entry a token, None for null.

        A column that the file is too old to have is null throughout.
        """
        row = self._table.slice(number, 1)
        there = set(row.column_names)
        length = len(row.column("token_ids")[0])
        return {name: row.column(name)[0].as_py() if name in there else [None] * length for name in names}


def as_heads(responses: pyarrow.Table) -> list[dict[str, Any]]:
    """Rows of `SampleTable.responses`; `components` as a dict."""
    rows: list[dict[str, Any]] = responses.to_pylist()
    for row in rows:
        row["components"] = dict(row["components"])
    return rows


def column_rows() -> Iterable[tuple[str, str, str]]:
    """Name, type and meaning of every column, for the docs."""
    for name, (kind, meaning) in RESPONSE_COLUMNS.items():
        yield name, kind, meaning
    for name, (kind, meaning) in TOKEN_COLUMNS.items():
        yield name, f"list<{kind}>", meaning
