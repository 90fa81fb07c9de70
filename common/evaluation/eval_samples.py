"""The files of an evaluation: one line a sample as it comes, from any number of processes; at the end the figures.

    FILE.samples/<plan>.<worker>.jsonl    a line a sample, in the order they finished, response included
    FILE.samples/<plan>.inputs.json       what these samples depend on, so that a person can see what differs
    FILE.jsonl                            a line a problem
    FILE.json                             the figures: written last, whole or not at all

A process that is killed loses what it was generating; the next one reads what is there and makes the rest. `<plan>` is
a hash of whatever the samples depend on (`vcppo.common.evaluation.evaluation_inputs`), so samples of another model or
temperature are never taken for these: they stay, unread.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vcppo.common.evaluation.evaluation_inputs import differences
from vcppo.common.evaluation.intervals import wilson
from vcppo.common.evaluation.pass_at_k import mean_interval, pass_figures
from vcppo.common.files.json_file import parse_json
from vcppo.common.files.json_lines import Row, append_line, read_json_lines
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.trajectory import Outcome
from vcppo.common.tasks import Problem

Key = tuple[str, int]
_INPUTS = ".inputs.json"
OUTCOMES: tuple[str, ...] = get_args(Outcome)
CUT = "cut"  # in the table of outcomes: cut off by length, whatever the verdict


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response. ``problem`` is of `problem_keys`, ``sample`` its number, ``length`` in tokens."""

    problem: str
    sample: int
    outcome: str
    extracted: str | None
    finish_reason: str
    length: int
    seconds: float
    response: str

    @property
    def key(self) -> Key:
        """(problem, number of the sample): by it a resumed evaluation knows which samples it has already."""
        return self.problem, self.sample


_OUTCOMES = get_args(Outcome)
_FIELD_TYPES = get_type_hints(Sample)


@dataclass(slots=True)
class ProblemRecord:
    """What became of one problem: one entry a sample, in the order of their numbers."""

    index: int
    problem: str
    prompt: Any
    lengths: list[int] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    extracted: list[str | None] = field(default_factory=list)

    @property
    def num_correct(self) -> int:
        """Samples judged correct: pass@k is computed from it."""
        return self.outcomes.count("correct")


def problem_keys(problems: Sequence[Problem]) -> list[str]:
    """The same question with the same answer has the same key, wherever it stands; said again, one with a number."""
    seen = Counter[str]()
    keys = []
    for problem in problems:
        digest = _digest([problem.prompt, problem.answer])
        seen[digest] += 1
        keys.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return keys


def plan_key(depends_on: Mapping[str, object]) -> str:
    """Of everything JSON-able that the samples depend on, the problems apart."""
    return _digest(depends_on)


class SampleFiles:
    """The samples of one plan beside `output` (FILE.json). `add` appends to this worker's own file."""

    def __init__(self, output: Path, plan: str, worker: int) -> None:
        self._folder = output.with_suffix(".samples")
        self.plan = plan
        self._file = self._folder / f"{plan}.{worker}.jsonl"

    def read(self) -> dict[Key, Sample]:
        """All workers' samples of the plan, also of workers that were killed; a line that broke off is none."""
        found: dict[Key, Sample] = {}
        for path in sorted(self._folder.glob(f"{self.plan}.*.jsonl")):
            for row in read_json_lines(path):
                sample = _sample_of(row)
                if sample is not None:
                    found.setdefault(sample.key, sample)
        return found

    def note_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Write down what the plan's samples depend on. Several workers may write the same."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / f"{self.plan}{_INPUTS}", json.dumps(inputs, indent=1, default=str) + "\n")

    def changed_since_last(self, inputs: Mapping[str, Any]) -> list[str]:
        """What differs from the plan whose samples were begun last, by dotted name; empty when this is the first."""
        others = [path for path in self._folder.glob(f"*{_INPUTS}") if path.name != f"{self.plan}{_INPUTS}"]
        if not others:
            return ["(no record of what they depended on)"] if any(self._folder.glob("*.jsonl")) else []
        last = max(others, key=lambda path: path.stat().st_mtime_ns)
        try:
            before = parse_json(last.read_bytes())
        except (OSError, ValueError):
            before = {}
        return differences(before if isinstance(before, dict) else {}, json.loads(json.dumps(inputs, default=str)))

    def add(self, sample: Sample) -> None:
        """On its way to the disk when this returns: a killed process loses none it has added."""
        append_line(self._file, json.dumps(asdict(sample), ensure_ascii=True).encode() + b"\n")


def records_of(
    problems: Sequence[Problem], samples: Mapping[Key, Sample], samples_per_problem: int
) -> list[ProblemRecord] | None:
    """A record a problem; None while a sample is missing."""
    records = []
    for index, (key, problem) in enumerate(zip(problem_keys(problems), problems, strict=True)):
        record = ProblemRecord(index, key, problem.prompt)
        for number in range(samples_per_problem):
            sample = samples.get((key, number))
            if sample is None:
                return None
            record.lengths.append(sample.length)
            record.outcomes.append(sample.outcome)
            record.finish_reasons.append(sample.finish_reason)
            record.extracted.append(sample.extracted)
        records.append(record)
    return records


def summarise(records: Sequence[ProblemRecord], k: int, seed: int) -> dict[str, Any]:
    """The figures of FILE.json, from all problems' records."""
    lengths = [length for record in records for length in record.lengths]
    outcomes = Counter(outcome for record in records for outcome in record.outcomes)
    reasons = Counter(reason for record in records for reason in record.finish_reasons)
    marks = {outcome: [[each == outcome for each in record.outcomes] for record in records] for outcome in OUTCOMES}
    marks[CUT] = [[each == "length" for each in record.finish_reasons] for record in records]
    return {
        **pass_figures([(len(record.outcomes), record.num_correct) for record in records], k, seed),
        "num_problems": len(records),
        "num_samples": len(lengths),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": max(lengths),
        "truncated_fraction": reasons["length"] / len(lengths),
        "outcomes": dict(outcomes),
        "responses": {name: _rate(each, seed) for name, each in marks.items()},
    }


def _rate(marks: Sequence[Sequence[bool]], seed: int) -> dict[str, Any]:
    """How many of all samples, their share and its 95 % interval: `vcppo.common.evaluation.pass_at_k`'s, as for pass@1.

    Args:
        marks: problem → sample → whether it counts.
    """
    count, num = sum(map(sum, marks)), sum(map(len, marks))
    rates = [sum(each) / len(each) for each in marks]
    interval = wilson(count, num) if len(marks) == num else mean_interval(rates, seed)
    return {"count": count, "of": num, "rate": count / num, "interval": interval}


def write_results(output: Path, figures: Mapping[str, Any], records: Sequence[ProblemRecord]) -> None:
    """FILE.json after FILE.jsonl, each whole or not at all. Several workers may write the same."""
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_whole(output.with_suffix(".jsonl"), lines)
    write_whole(output, json.dumps(figures, indent=2) + "\n")


def _sample_of(values: Row) -> Sample | None:
    if values.keys() != _FIELD_TYPES.keys():
        return None
    are_right = all(_is_of(value, _FIELD_TYPES[name]) for name, value in values.items())
    if not are_right or values["outcome"] not in _OUTCOMES:
        return None
    return Sample(**values)


def _is_of(value: object, kind: Any) -> bool:
    """Has a JSON value the type of a field? A bool is no integer; an integer will do for a float."""
    if get_origin(kind) in (list, dict):
        return isinstance(value, get_origin(kind))
    if kind is float and type(value) is int:
        return True
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return blake2b(text.encode(), digest_size=8).hexdigest()
