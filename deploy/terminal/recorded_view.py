"""Value pretraining for people: what was recorded, and what the gate made of it, as rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vcppo.deploy.run.run_data import Row
from vcppo.deploy.terminal.display import number

OUTCOMES = ("correct", "wrong", "unparsable", "timeout", "crash")


def shares(recorded: Row) -> list[tuple[str, int, float]]:
    """(outcome, responses, share) of a recording's metrics row; last, those cut by length, whatever their outcome."""
    names = [(name, f"vp/num_outcome/{name}", f"vp/outcome/{name}") for name in OUTCOMES]
    names.append(("cut by length", "vp/num_cut", "vp/cut_fraction"))
    return [(name, int(recorded[count]), recorded[share]) for name, count, share in names if count in recorded]


def outcomes_line(recorded: Row) -> str:
    """``14 correct (5.5 %) · 173 wrong (67.6 %) · …``; what did not occur is left out."""
    return " · ".join(f"{count:,} {name} ({share:.1%})" for name, count, share in shares(recorded) if count)


def lengths_line(recorded: Row) -> str:
    """Reward, lengths, and prompts with both kinds of response."""
    reward, length = number(recorded.get("vp/reward"), "{:.2f}"), number(recorded.get("vp/length/mean"), "{:.0f}")
    both = f"{number(recorded.get('vp/num_prompts_with_both'), '{:.0f}')} prompts with right and other responses"
    longest = number(recorded.get("vp/length/max"), "{:.0f}")
    return f"reward {reward} · length {length}, longest {longest} · {both}"


def figure(decision: Mapping[str, Any]) -> str:
    """The explained variance that was judged, with its interval: ``0.412 (90 %: 0.35 to 0.47)``."""
    value = decision.get("explained_variance", decision.get("best_explained_variance"))
    text = number(value)
    if decision.get("low") is not None:
        text += f" (90 %: {number(decision['low'], '{:.2f}')} to {number(decision.get('high'), '{:.2f}')})"
    return text


def behind(decision: Mapping[str, Any]) -> str:
    """The counts behind the figure; empty where an older run did not write them."""
    held_out = decision.get("held_out")
    if not isinstance(held_out, Mapping):
        return ""
    return (
        f"{held_out.get('num_responses')} held-out responses to {held_out.get('num_prompts')} prompts, "
        f"{held_out.get('num_right')} right, {held_out.get('num_prompts_with_both')} prompts with both"
    )


def why(decision: Mapping[str, Any]) -> list[str]:
    """What a person must know about the decision: why it failed, and what makes it doubtful."""
    return [str(text) for text in (decision.get("message"), *(decision.get("warnings") or ())) if text]
