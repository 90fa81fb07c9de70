"""Did the bytes that were sent arrive, and where they are used? Sums of each tensor, from both ends. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from vcppo.common.tensor_sums import names_sum

_MOST_NAMED = 3
_STALE_HEAD = (
    "its head, tied to the embedding, still computes with a copy from before the update: this version of vLLM packs "
    "weights in a way that is not known here; use the version of the lock file, or a model whose head is its own"
)


class SentWeights(NamedTuple):
    """What the learner handed to the transport: the tensors' names and the sums of their bytes, in order."""

    names: tuple[str, ...] = ()
    sums: tuple[int, ...] = ()


def transport_fault(reports: Any, sent: SentWeights) -> str:
    """What is wrong with what a generator says it received; "" when every worker received what was sent.

    Args:
        reports: `Received.received` of the generator: one SumsReport a worker.
    """
    if not isinstance(reports, list) or not reports:
        return "it returned no sums of the weights it received: it runs another version of this program"
    for worker, report in enumerate(reports):
        if fault := _fault_of(report, sent):
            return f"worker {worker}: {fault}" if len(reports) > 1 else fault
    return ""


def _fault_of(report: Any, sent: SentWeights) -> str:
    if not isinstance(report, dict) or not _are_integers(report.get("sums")):
        return "it returned no sums of the weights it received: its weight-transfer engine is not ours"
    sums = report["sums"]
    names, stale = report.get("names"), report.get("stale", 0)
    if not _are_integers([names, stale]):
        return f"it returned no sums of the weights it received: names and stale are {str([names, stale])[:80]}"
    if len(sums) != len(sent.sums) or names != names_sum(sent.names):
        return f"it received {len(sums)} tensors, {len(sent.sums)} were sent, or their names or order differ"
    differing = [name for name, theirs, ours in zip(sent.names, sums, sent.sums, strict=True) if theirs != ours]
    if not differing:
        return _STALE_HEAD if stale else ""
    more = f" and {len(differing) - _MOST_NAMED} more" if len(differing) > _MOST_NAMED else ""
    return (
        f"the bytes it received of {', '.join(differing[:_MOST_NAMED])}{more} are not those that were sent: look at "
        "the memory and the network of its machine"
    )


def _are_integers(found: Any) -> bool:
    """Anything may have come: an array in a list's place would raise when it is compared."""
    return isinstance(found, list) and all(type(each) is int for each in found)
