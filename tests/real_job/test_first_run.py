"""The way of docs/first_run.md, short: its config, a real model in bfloat16, every command a newcomer types."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PAGE = ROOT / "docs" / "first_run.md"
NUM_STEPS = 3
# Fewer and shorter responses, and the type that every pretrained model comes in. What is left out is as documented.
SHORT = [
    "model.dtype=bfloat16",
    "sampling.max_response_tokens=16",
    "value_pretraining={num_trajectories: 48, batch_size: 16, max_steps: 2, eval_every: 1, held_out_fraction: 0.34}",
    "value_pretraining.min_explained_variance=-10",
    f"rl={{num_steps: {NUM_STEPS}, batch_size: 16, group_size: 4}}",
    "algorithm.num_mini_batches=2",
    # Sixty-four prompts of sixty tokens in flight: vLLM cuts their prefill into pieces.
    "generator.engine_options={max_num_batched_tokens: 512}",
    "eval={num_problems: 8, samples_per_problem: 2}",
]  # fmt: skip


def config_of_the_page() -> dict[str, object]:
    """The YAML of docs/first_run.md."""
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    tree: dict[str, object] = yaml.safe_load(found[1])
    return tree


class Job:
    """The run, and what `vcppo` says of it."""

    def __init__(self, folder: Path, real_job: Path) -> None:
        self.config = folder / "my.yaml"
        self.config.write_text(yaml.safe_dump(config_of_the_page()))
        self.folder = RunFolder(folder / "runs" / "first")
        self.settings = [
            *("-c", str(self.config), f"run.folder={folder / 'runs'}", "run.name=first"),
            f"model.path={real_job / 'model'}", f"task.options.path={real_job / 'easy.jsonl'}", *SHORT,
        ]  # fmt: skip

    def vcppo(self, *words: str, exit_code: int = 0, timeout: float = 1200) -> str:
        """Its standard output. Fails when it ends otherwise than expected."""
        command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == exit_code, (
            f"{' '.join(words)} → {done.returncode}\n{done.stderr}\n{done.stdout[-4000:]}"
        )
        return done.stdout

    def events(self, name: str) -> list[dict[str, object]]:
        lines = self.folder.log_file("learner").read_text().splitlines()
        return [record for line in lines if (record := json.loads(line)).get("event") == name]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, real_job: Path) -> Job:
    made = Job(tmp_path_factory.mktemp("first_run"), real_job)
    made.vcppo("check", *made.settings, "--json")
    made.vcppo("up", *made.settings)
    return made


def test_it_trains_at_the_defaults_of_the_page(job: Job) -> None:
    steps = {row["step"] for row in read_metrics(job.folder.metrics_file("learner")) if row["stage"] == "rl"}
    assert steps == set(range(1, NUM_STEPS + 1))
    assert (job.folder.export / "config.json").exists()


def test_every_update_was_proven_and_none_was_a_false_alarm(job: Job) -> None:
    assert job.events("weights_proven")
    sent = [record["policy_version"] for record in job.events("weights_broadcast")]
    assert sent == [0, *range(NUM_STEPS)]  # version 0 for the recording, and again when RL starts
    assert not job.events("canary_failed")
    assert not job.events("generator_dropped")


def test_every_prompt_is_accounted_for(job: Job) -> None:
    job.vcppo("ledger", "--run", str(job.folder.path))


def test_responses_of_both_stages_can_be_read(job: Job) -> None:
    for stage in ("value_pretraining", "rl"):
        lines = job.vcppo("samples", str(job.folder.path), "--stage", stage, "--json", "--limit", "4").splitlines()
        responses = [json.loads(line) for line in lines]
        assert len(responses) == 4
        assert all("final answer" in each["prompt"] and each["response"] for each in responses), responses


def test_it_is_evaluated_before_and_after(job: Job, real_job: Path) -> None:
    shown = job.vcppo("eval", *job.settings, "--model", str(real_job / "model"), "--model", str(job.folder.export))
    assert "export" in shown, shown
