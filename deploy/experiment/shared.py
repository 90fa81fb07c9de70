"""What runs of a suite take from each other: recordings of value pretraining, and critics.

Copied, whole or not at all, with a note whose they are (`adopted.json`), so a run folder stays complete in itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from vcppo.common.files.whole_file import whole_file, write_whole
from vcppo.common.files.whole_folder import written_whole
from vcppo.common.run_folder import ADOPTED_FILE, CRITIC_FOLDER, DECISION_FILE, RECORD_FILE, RECORDED_WITH_FILE
from vcppo.deploy.experiment.suite import Run
from vcppo.deploy.run.run_data import read_json


def has_decided(run: Run) -> bool:
    """Its recording is whole: value pretraining decides after that only, passed or not."""
    return (run.folder.value_pretraining / DECISION_FILE).exists()


def adopt(run: Run, others: Iterable[Run]) -> Run | None:
    """Give `run` what another run of the suite has made of the same settings; returns that run.

    The critic and its decision where value pretraining was the same to the end, else the recording alone where the
    same was recorded; nothing where `run` has begun on its own.
    """
    target = run.folder.value_pretraining
    if not run.pretrains or target.exists():
        return None
    donors = [other for other in others if other.pretrains and other.recording == run.recording and has_decided(other)]
    donors.sort(key=lambda other: other.critic != run.critic)
    if not donors:
        return None
    donor, source = donors[0], donors[0].folder.value_pretraining
    decision = read_json(source / DECISION_FILE) or {}
    same = donor.critic == run.critic and bool(decision.get("passed"))
    note = {"from": donor.config.run.name, "what": "recording and critic" if same else "recording"}
    with written_whole(target) as staging:
        staging.mkdir(parents=True)
        shutil.copyfile(source / RECORD_FILE, staging / RECORD_FILE)
        if (source / RECORDED_WITH_FILE).exists():  # by it the learner knows it for its own
            shutil.copyfile(source / RECORDED_WITH_FILE, staging / RECORDED_WITH_FILE)
        if same:
            shutil.copytree(source / CRITIC_FOLDER, staging / CRITIC_FOLDER)
            shutil.copyfile(source / DECISION_FILE, staging / DECISION_FILE)
        write_whole(staging / ADOPTED_FILE, json.dumps(note) + "\n")
    return donor


def publish_recording(run: Run, place: Path) -> None:
    """Put the run's recording where this seed's reward models find it; the first one stays."""
    source = run.folder.value_pretraining / RECORD_FILE
    if has_decided(run) and source.exists() and not place.exists():
        with whole_file(place) as partial:
            shutil.copyfile(source, partial)
