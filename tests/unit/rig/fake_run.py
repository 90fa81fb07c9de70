"""A run folder as a finished demo leaves it, with made-up numbers: for tests of what reads run folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.deploy.evaluation.explainable_results import ExplainableRow, keep_rows

LEDGER = {
    "issued": 2048,
    "queued": 0,
    "leased": 0,
    "buffered": 0,
    "claimed": 0,
    "trained": 2040,
    "rejected": 5,
    "expired": 3,
}


RECORDED = {
    "stage": "value_pretraining",
    "vp/recorded": 256,
    "vp/reward": -0.89,
    "vp/length/mean": 61.0,
    "vp/length/max": 128,
    "vp/num_prompts_with_both": 3,
    "vp/cut_fraction": 57 / 256,
    "vp/num_cut": 57,
    **{f"vp/num_outcome/{n}": c for n, c in (("correct", 14), ("wrong", 173), ("unparsable", 69), ("timeout", 0))},
    **{f"vp/outcome/{n}": c / 256 for n, c in (("correct", 14), ("wrong", 173), ("unparsable", 69), ("timeout", 0))},
}
CLOSED = {
    "passed": False,
    "explained_variance": 0.12,
    "low": -0.2,
    "high": 0.31,
    "best_explained_variance": 0.19,
    "best_step": 35,
    "threshold": 0.3,
    "stopped_because": "max_steps = 100 reached while it still got better",
    "held_out": {"num_responses": 32, "num_prompts": 8, "num_right": 2, "num_prompts_with_both": 1},
    "message": "value pretraining: <too little>: raise value_pretraining.max_steps to 200",
    "warnings": ["the interval contains the gate"],
    "history": [],
}


def make_closed_run(root: Path) -> RunFolder:
    """A run that ended at the gate of value pretraining."""
    folder = make_run(root, num_steps=0)
    writer = MetricsWriter(folder.path, "learner", "fake")
    writer.write(256, RECORDED)
    for step in (0, 5, 10):
        figure = {"vp/held_out_explained_variance": 0.01 * step}
        ends = {f"vp/held_out_explained_variance_{end}": 0.01 * step + by for end, by in (("low", -0.1), ("high", 0.1))}
        writer.write(step, {"stage": "value_pretraining", **figure, **ends})
    writer.close()
    (folder.value_pretraining / "decision.json").write_text(json.dumps(CLOSED))
    return folder


WORTH = (("critic", 0.6), ("prompt_mean", 0.2))


def config_of(folder: Path, name: str = "fake") -> VcppoConfig:
    return VcppoConfig.model_validate(
        {"run": {"name": name, "folder": folder}, "model": {"path": "model"}, "rl": {"num_steps": 30}}
    )


def make_run(root: Path, name: str = "fake", num_steps: int = 30) -> RunFolder:
    config = config_of(root, name)
    folder = RunFolder(config.run.path).create()
    folder.config.write_text(dump_config(config))
    writer = MetricsWriter(folder.path, "learner", name)
    for step in range(5, 45, 5):
        writer.write(
            step,
            {
                "stage": "value_pretraining",
                "vp/train_loss": 0.5 * math.exp(-step / 12) + 0.15,
                "vp/held_out_loss": 0.5 * math.exp(-step / 12) + 0.17,
                "vp/held_out_explained_variance": 0.7 * (1 - math.exp(-step / 10)),
            },
        )
    for step in range(1, num_steps + 1):
        writer.write(step, rl_row(step))
    writer.close()
    for index in range(2):
        generator = MetricsWriter(folder.path, f"generator-{index}", name)
        for second in range(20):
            generator.write(
                second,
                {
                    "generator/tokens_per_second": 3000.0 + 200 * math.sin(second + index),
                    "generator/in_flight": 60.0,
                    "generator/unacked": 1.0,
                    "generator/policy_version": float(second),
                },
            )
        generator.close()
    folder.value_pretraining.mkdir()
    decision = {
        "passed": True,
        "best_step": 35,
        "best_explained_variance": 0.68,
        "threshold": 0.3,
        "history": [],
        "stopped_because": "patience",
    }
    (folder.value_pretraining / "decision.json").write_text(json.dumps(decision))
    for model, share in (("cold_start", 0.34), ("export", 0.86)):
        (folder.eval / f"{model}.json").write_text(
            json.dumps({"pass_at_1": share, "pass_at_k": share, "k": 1, "mean_length": 180.0, "num_problems": 512})
        )
    keep_rows(folder, [explainable_row(version, position) for version in (0, 20) for position in (0, 60, 120)])
    (folder.path / "ledger.json").write_text(json.dumps(LEDGER))
    (folder.path / "stages.jsonl").write_text(
        "".join(
            json.dumps({"stage": s, "seconds": t}) + "\n" for s, t in (("sft", 130.0), ("up", 520.5), ("eval", 90.0))
        )
    )
    folder.log_file("learner").write_text(
        json.dumps({"time": "2026-01-02T03:04:05.678Z", "level": "info", "service": "learner", "event": "ready"}) + "\n"
    )
    return folder


def explainable_row(version: int, position: int) -> ExplainableRow:
    share = (0.2 + position / 200) * (1 - version / 50)
    ends = (share - 0.1, share + 0.1)
    return ExplainableRow(
        version=version, position=position, prefixes=64, continuations=8, mean=0.1, variance=0.99, explainable=share,
        explainable_interval=ends, explained=share / 2, explained_interval=None, reached=0.5, reached_interval=None,
        group_mean=share - (1 - share) / 7 if position == 0 else None,
    )  # fmt: skip


def rl_row(step: int) -> dict[str, object]:
    share = 1 - math.exp(-step / 6)
    wobble = 0.03 * math.sin(step * 1.7)
    accuracy = 0.34 + 0.52 * share + wobble
    return {
        "stage": "rl",
        "reward/mean": 2 * accuracy - 1,
        "reward/accuracy": accuracy,
        "turns/mean": 1 + share,
        "turns/tool_calls": share,
        "turns/tool_errors": 0.1 * share,
        "reward/brevity": 1 - 0.4 * share,
        "length/mean": 127 + 80 * share,
        "length/max": 250.0,
        "length/truncated_fraction": 0.01,
        "explained_variance/token": 0.6 + wobble,
        "explained_variance/sequence": 0.5 + wobble,
        "explained_variance/within_prompt": 0.4 + wobble if step > 2 else None,
        **{f"critic_worth/{who}/{kind}": height + wobble for who, height in WORTH for kind in ("token", "sequence")},
        **{f"critic_worth/{who}/within_prompt": height - 0.2 for who, height in WORTH},
        **{f"critic_worth/{who}/by_position": [height * i / 9 for i in range(10)] for who, height in WORTH},
        **{f"critic_worth/{who}/by_staleness": [height, height if step > 1 else None] for who, height in WORTH},
        "turns/reward_by_turn": [0.1 * share, share],
        "advantages/by_position": [0.1 * math.sin(i + step / 5) for i in range(10)],
        "values/by_position": [share * i / 10 for i in range(10)],
        "policy/loss": 0.01,
        **{
            f"off_policy/{by}/{what}_1": 0.1
            for by in ("staleness", "versions")
            for what in ("mismatch_kl", "ess", "rejected")
        },
        "staleness/mean": 0.6 + wobble if step > 1 else 0.0,
        "staleness/max": 1.0 if step > 1 else 0.0,
        "staleness/mixed_version_fraction": 0.45 if step > 1 else 0.0,
        "time/claim": 1.1,
        "time/values": 0.6,
        "time/old_log_probs": 0.6,
        "time/update": 4.2,
        "time/checkpoint": 0.4 if step % 5 == 0 else 0.0,
        "time/broadcast": 0.3,
        "time/pause": 0.05,
        "time/step": 7.0,
        **{f"dynamic_sampling/{kind}": float(step % 4) for kind in ("all_correct", "all_wrong", "same_reward")},
        "dynamic_sampling/trained_without_signal": 0.0,
        **{f"difficulty/problems/{pool}": 10.0 + step for pool in ("new", "easy", "edge", "hard")},
        "tokens/step": 25000.0,
        "tokens/per_second": 3500 + 300 * math.sin(step),
        **{f"ledger/{state}": float(count) for state, count in LEDGER.items()},
    }
