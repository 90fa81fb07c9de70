"""The records of a suite as one small archive: what its page is made from, so that others can make it again.

Configs, metrics, decisions and evaluations problem by problem; no weights, trajectories or logs. Unpacked anywhere it
is a suite to `vcppo report`, and `vcppo experiment` takes its runs for finished ones.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

# Below a suite's folder. The export's config.json says that a run was finished.
RECORDS = (
    "suite.json", "*/config.yaml", "*/stages.jsonl", "*/ledger.json", "*/export/config.json",
    "*/metrics/learner.jsonl", "*/metrics/generator-*.jsonl", "*/value_pretraining/decision.json",
    "*/reward_model/reward_model.json", "*/eval/*.json", "*/eval/*.jsonl", "*/eval/*/*.json",
)  # fmt: skip


def pack(suite: Path, archive: Path) -> None:
    """Write the records of the suite in `suite` to `archive` (.tar.xz), below its name.

    The same records give the same bytes: no times, no users.
    """
    paths = sorted({path for pattern in RECORDS for path in suite.glob(pattern)})
    archive.parent.mkdir(parents=True, exist_ok=True)
    staging = archive.with_name(f"{archive.name}.part")
    with tarfile.open(staging, "w:xz", preset=9) as file:
        for path in paths:
            entry = tarfile.TarInfo(f"{suite.resolve().name}/{path.relative_to(suite)}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                file.addfile(entry, content)
    staging.replace(archive)
