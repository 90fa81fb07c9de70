"""The records of a suite as one small archive: what its page is made from, so that others can make it again.

Configs, metrics, decisions and evaluations problem by problem; no weights, trajectories or logs. Unpacked anywhere it
is a suite to `vcppo report`, and `vcppo experiment` takes its runs for finished ones.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

from vcppo.common.files.whole_file import whole_file

REPOSITORY = Path(__file__).resolve().parents[2]

# Below a suite's folder. The export's config.json says that a run was finished.
RECORDS = (
    "suite.json", "choices.json", "*/config.yaml", "*/stages.jsonl", "*/ledger.json", "*/export/config.json",
    "*/metrics/learner.jsonl", "*/metrics/generator-*.jsonl", "*/value_pretraining/decision.json",
    "*/value_pretraining/adopted.json",
    "*/reward_model/reward_model.json", "*/eval/*.json", "*/eval/*.jsonl", "*/eval/*/*.json",
)  # fmt: skip


def pack(suite: Path, archive: Path) -> None:
    """Write the records of the suite in `suite` to `archive` (.tar.xz), below its name.

    The same records give the same bytes: no times, no users. Where they were made stays private: paths are those of a
    suite below runs/ of a checkout.
    """
    places = {suite.absolute().parent: "runs", suite.resolve().parent: "runs", REPOSITORY: "."}
    paths = sorted({path for pattern in RECORDS for path in suite.glob(pattern)})
    archive.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(archive) as partial, tarfile.open(partial, "w:xz", preset=9) as file:
        for path in paths:
            entry = tarfile.TarInfo(f"{suite.resolve().name}/{path.relative_to(suite)}")
            text = path.read_text(encoding="utf-8")
            for place, here in places.items():
                text = re.sub(rf"{re.escape(str(place))}(?![^/\"'\s])", here, text)  # not the start of a longer name
            content = text.encode()
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
