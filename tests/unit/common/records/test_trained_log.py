"""A replay trains what was trained before; prompts that were rejected meanwhile may be missing."""

from __future__ import annotations

import json
from pathlib import Path

from vcppo.common.records.trained_log import replays_differ


def line(step: int, *prompts: str) -> str:
    ids = [f"{prompt}@g.0" for prompt in prompts]
    return json.dumps(
        {
            "step": step,
            "policy_version": step - 1,
            "prompt_ids": prompts,
            "trajectory_ids": ids,
            "staleness": [0] * len(ids),
        }
    )


def test_a_replay_without_what_was_rejected_is_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "trained.jsonl"
    path.write_text("\n".join([line(1, "a", "b"), line(2, "c", "d"), line(1, "a"), line(2, "d", "c")]) + "\n")
    assert replays_differ(path) == [1, 2]
    assert replays_differ(path, {"b"}) == [2]
    assert replays_differ(path, {"a", "b", "c", "d"}) == []
