"""Every place of a run's processes that writes files, and what it does where there is no room.

A new one fails this test: decide what it does, and write it down here.
"""

from __future__ import annotations

import re

from tests.paths import ROOT

WRITES = re.compile(
    r"\.open\(\"[wax]|\.open\(\"r\+|append_line\(|LineFile\(|KeptLines\(|write_text\(|write_bytes\(|write_whole\(|"
    r"whole_file\(|written_whole\(|save_file\(|save_pretrained\(|save_checkpoint\(|EventFileWriter\(|\.touch\(|"
    r"export_chrome_trace\(|\"--output\", str\("
)
WINGS = ("common", "learner", "generator")

WAITS = "tries again until there is room"
KEPT = "keeps it in memory until there is room"
ENDS = "raises; the process ends with code 75, and is started again"
COSTS = "is said, and costs what was to be written"
OTHER = "writes no file of a run: a helper, or inside a sandbox"

SITES = {
    "common/evaluation/continuations.py": ENDS,
    "common/evaluation/eval_samples.py": ENDS,
    "common/files/json_lines.py": OTHER,
    "common/files/kept_lines.py": KEPT,
    "common/files/whole_file.py": OTHER,
    "common/files/whole_folder.py": OTHER,
    "common/model_folder/tokenizer.py": ENDS,
    "common/process/living.py": ENDS,
    "common/process/watchdog.py": COSTS,
    "common/sandbox/keeper.py": OTHER,
    "common/sandbox/root.py": OTHER,
    "common/telemetry/metric_sinks.py": COSTS,
    "common/telemetry/metrics.py": KEPT,
    "common/trackers/position.py": WAITS,
    "common/transport/endpoints.py": ENDS,
    "common/transport/spool.py": KEPT,
    "generator/check/tokenizer_checks.py": OTHER,
    "learner/batching/trajectory_file.py": WAITS,
    "learner/cold_start/reward_model.py": ENDS,
    "learner/cold_start/sft.py": ENDS,
    "learner/cold_start/starting_point.py": ENDS,
    "learner/critic_training/lesson.py": WAITS,
    "learner/critic_values.py": ENDS,
    "learner/engine/checkpoint.py": WAITS,
    "learner/engine/deepspeed_engine.py": WAITS,
    "learner/engine/reference.py": WAITS,
    "learner/evaluation/evaluator.py": WAITS,
    "learner/evaluation/exports.py": COSTS,
    "learner/export.py": ENDS,
    "learner/models/adapters.py": ENDS,
    "learner/models/base_model.py": WAITS,
    "learner/models/model_folder.py": OTHER,
    "learner/models/models.py": ENDS,
    "learner/models/saving.py": ENDS,
    "learner/profiling/flame_graphs.py": COSTS,
    "learner/profiling/torch_trace.py": COSTS,
    "learner/rl/resume.py": WAITS,
    "common/records/sample_table.py": COSTS,
    "learner/rl/trained_log.py": WAITS,
    "learner/supply/drawn_problems.py": WAITS,
    "learner/value_pretraining/recorded_with.py": ENDS,
    "learner/value_pretraining/stage.py": ENDS,
}


def test_every_writer_is_known() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for wing in WINGS
        for path in sorted((ROOT / wing).rglob("*.py"))
        if WRITES.search(path.read_text(encoding="utf-8"))
    }
    assert found == SITES.keys()
