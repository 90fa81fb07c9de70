"""Five steps of docs/first_run.md with its pretrained model: `vcppo up`, as a newcomer types it, recording included."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import REPOSITORY
from benchmarks.gpu.findings import Findings, Number, Place, Speed
from benchmarks.gpu.requirements import REAL_JOB, is_installed, why_no_real_job
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics

STEPS = 5
_PAGE = REPOSITORY / "docs" / "first_run.md"
_DEADLINE_SECONDS = 1400.0


def run(place: Place) -> Findings:
    """All steps done, the ledger exact, the generator proven to run the learner's weights at each version."""
    if (reason := why_no_real_job(REAL_JOB, has_vllm=is_installed("vllm"))) is not None:
        return Findings.none(reason)
    with tempfile.TemporaryDirectory() as folder:
        run_folder, code, output = _up(place, Path(folder))
        rows = [row for row in read_metrics(run_folder.metrics_file("learner")) if row["stage"] == "rl"]
        events = _events(run_folder)
    if code != 0:
        return Findings([Number(f"real job: exit code; {output}", float(code), 0.0, "", "0")])
    complete = [event for event in events if event.get("event") == "run_complete"]
    sent = {  # version 0 twice: while value pretraining records, and when RL starts
        event["policy_version"]: event["canary_difference"]
        for event in events
        if event.get("event") == "weights_broadcast" and event["canary_difference"] is not None
    }
    found = Findings(
        [
            Number("real job: steps", abs(len({row["step"] for row in rows}) - STEPS), 0.0, "apart", str(STEPS)),
            Number("real job: the ledger is exact at the end", float(not complete), 0.0, "(0: it is)", "the run's log"),
            Number("real job: versions proven", abs(len(sent) - STEPS), 0.0, "apart", f"versions 0 to {STEPS - 1}"),
        ],
        [
            Speed(
                "real job: learner against generator, log-probs",
                max(sent.values(), default=0.0),
                "nats, mean, the worst",
            )
        ],
    )
    if speeds := [row["tokens/per_second"] for row in rows if row.get("tokens/per_second")]:
        found.speeds.append(Speed("real job: tokens trained", statistics.median(speeds), "tokens/s"))
    return found


def _settings(place: Place) -> list[str]:
    """The page's config, short, and learner and generator on one device."""
    learner = "cuda" if place.is_cuda else "cpu"
    short = (16, 48, 16) if place.quick else (64, 512, 64)
    tokens, recorded, batch = short
    return [
        f"sampling.max_response_tokens={tokens}",
        f"value_pretraining={{num_trajectories: {recorded}, batch_size: {batch}, max_steps: 4, eval_every: 2, "
        "held_out_fraction: 0.34, min_explained_variance: -10}",
        f"rl={{num_steps: {STEPS}, batch_size: {batch}, group_size: 4}}", "algorithm.num_mini_batches=2",
        "generator.gpu_memory_utilization=0.3", "broadcast.backend=gloo", f"learner.device={learner}",
        f"model.path={REAL_JOB / 'model'}", f"task.options.path={REAL_JOB / 'easy.jsonl'}",
    ]  # fmt: skip


def _up(place: Place, folder: Path) -> tuple[RunFolder, int, str]:
    """The run, its exit code and its last words."""
    page = re.search(r"```yaml\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert page is not None
    config = folder / "my.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(page[1])))
    command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", str(config), f"run.folder={folder / 'runs'}"]
    done = subprocess.run(
        [*command, "run.name=first", *_settings(place)], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        timeout=_DEADLINE_SECONDS,
    )  # fmt: skip
    return RunFolder(folder / "runs" / "first"), done.returncode, " / ".join(done.stderr.splitlines()[-4:])[-600:]


def _events(run_folder: RunFolder) -> list[dict[str, Any]]:
    log = run_folder.log_file("learner")
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
