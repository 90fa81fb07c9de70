"""`vcppo contamination`: do questions of the training task occur in a benchmark, by shared n-grams of words?"""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcppo.common.config import VcppoConfig
from vcppo.common.tasks import load_task
from vcppo.common.text.shared_ngrams import Overlap, find_overlaps

SHOWN = 10


def check_contamination(train: VcppoConfig, test: VcppoConfig, num_train: int, n: int, console: Console) -> bool:
    """Print what was found; True if nothing was. Raises TaskError when a task can't be loaded."""
    trained_on = load_task(train.task).questions("train", num_train)
    task = load_task(test.task)
    asked = task.questions("held_out", test.eval.num_problems)
    overlaps = find_overlaps(trained_on, asked, n)
    console.print(
        f"{len(overlaps)} of {len(asked)} test questions share a run of {n} words with one of {len(trained_on)} "
        "training questions",
        highlight=False,
    )
    if overlaps:
        console.print(_table(overlaps[:SHOWN], asked))
    return not overlaps


def _table(overlaps: list[Overlap], asked: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("test", "train", "shared", "question", "run of words"):
        table.add_column(heading, no_wrap=heading != "question")
    for each in overlaps:
        question = " ".join(asked[each.test].split())[:60]
        table.add_row(str(each.test), str(each.train), f"{each.share:.0%}", escape(question), escape(each.run[:60]))
    return table
