"""`vcppo reject`: give prompts of a run up by hand, whatever state they are in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vcppo.common.records.ids import prompt_named_by
from vcppo.common.store import facts
from vcppo.common.store.ledger import Outstanding
from vcppo.common.store.run_store import RunStore
from vcppo.common.text.yaml_text import one_line

REASON = "rejected by hand"
_WHAT_FOLLOWS = {
    "queued": "replaced by a new prompt",
    "leased": "replaced by a new prompt; a trajectory that still comes is refused as a duplicate",
    "buffered": "replaced by a new prompt",
}


def reject(store: RunStore, names: Sequence[str], detail: str = "") -> tuple[list[str], bool]:
    """Reject the prompts that `names` name (a prompt, or a trajectory of one), each with a dead letter.

    Returns:
        A line for each, and whether all of them were open.
    """
    lines: list[str] = []
    for prompt_id in dict.fromkeys(map(prompt_named_by, names)):
        shown = one_line(prompt_id, 256)
        open_prompts = {entry.prompt_id: entry for entry in store.outstanding()}
        entry = open_prompts.get(prompt_id)
        if entry is None:
            lines.append(f"{shown}: not open: never issued in this run, or trained, rejected or expired already")
            continue
        if entry.claimed_step is not None and _is_last_of_its_step(entry, open_prompts.values()):
            facts.note_emptied_step(store, entry.claimed_step)
        if store.reject(prompt_id, REASON, detail=detail):
            lines.append(f"{shown}: was {entry.state}, is rejected: {_what_follows(entry)}")
        else:
            lines.append(f"{shown}: was {entry.state} a moment ago and is settled now")
    return lines, all(", is rejected: " in line for line in lines)


def _is_last_of_its_step(entry: Outstanding, others: Iterable[Outstanding]) -> bool:
    return sum(other.claimed_step == entry.claimed_step for other in others) == 1


def _what_follows(entry: Outstanding) -> str:
    if entry.claimed_step is None:
        return _WHAT_FOLLOWS[entry.state]
    return f"step {entry.claimed_step} is trained without it when the learner replays it"
