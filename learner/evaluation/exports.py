"""Hugging Face folders of the policy on the way, written by a thread while training goes on.

    exports/step-N    every learner.export_every steps; and of a version that is being evaluated, until that is done
    exports/best      of the best version that was evaluated
    exports/last      of the last version, where the run's own export is of a better one

Only the copy of the weights to the CPU holds training up; what is written is that copy.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import structlog
from torch import Tensor

from vcppo.common.config import VcppoConfig
from vcppo.common.files.room import shortage_of
from vcppo.common.files.whole_folder import remove_path, written_whole
from vcppo.common.run_folder import RunFolder
from vcppo.learner.engine.deepspeed_engine import TrainEngine, rank
from vcppo.learner.export import export_policy, write_export
from vcppo.learner.models.models import PolicyModel

log = structlog.get_logger(__name__)

_SAY_AFTER_SECONDS = 10.0


class Exports:
    """All ranks make one and call `begin`; only rank 0 writes. One folder is written at a time."""

    def __init__(self, config: VcppoConfig, actor: TrainEngine) -> None:
        self._config, self._actor = config, actor
        self._folder = RunFolder(config.run.path).exports
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def is_regular(self, version: int) -> bool:
        """Whether this version is exported whatever its figures."""
        every = self._config.learner.export_every
        return every > 0 and version > 0 and version % every == 0

    def begin(self, version: int) -> None:
        """Copy the weights of now and begin to write ``step-<version>``; first waits for the one before. Collective."""
        self.finish()
        began = time.monotonic()
        state = self._actor.gather_full_state_dict()
        if rank() != 0:
            return
        copied = time.monotonic() - began
        self._thread = threading.Thread(target=self._write, args=(version, state, copied), name="export", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until what was begun is there. Raises what the thread met; a full disk costs a line and that export."""
        thread = self._thread
        if thread is None:
            return
        while thread.is_alive():
            thread.join(_SAY_AFTER_SECONDS)
            if thread.is_alive():
                log.info("waiting_for_export", folder=str(self._folder), waiting_for="the disk")
        self._thread = None
        failed, self._failed = self._failed, None
        if failed is None:
            return
        if (shortage := shortage_of(failed, self._folder)) is None:
            raise failed
        log.error("export_not_written", **shortage.as_fields())

    def keep_as_best(self, version: int) -> bool:
        """``step-<version>`` becomes ``best`` too. Rank 0. False: it is not there, and the best stays what it was."""
        self.finish()
        found = self._step(version)
        if not found.is_dir():
            log.error("best_not_kept", policy_version=version, reason=f"{found} was not written")
            return False
        _copy(found, self._folder / "best")
        log.info("best_kept", folder=str(self._folder / "best"), policy_version=version)
        return True

    def drop(self, version: int) -> None:
        """Remove ``step-<version>`` unless it is a regular export. Rank 0."""
        if self.is_regular(version):
            return
        self.finish()
        if (folder := self._step(version)).exists():
            remove_path(folder)

    def export_result(self, folder: Path, best: int | None, version: int) -> None:
        """The run's own export: of the best version where one was kept, else of the weights of now. Collective."""
        self.finish()
        kept = self._folder / "best"
        if best is None or best == version or (rank() == 0 and not kept.is_dir()):
            export_policy(self._actor, self._config, folder)
            return
        export_policy(self._actor, self._config, self._folder / "last")
        if rank() == 0:
            _copy(kept, folder)
            log.info("policy_exported", folder=str(folder), policy_version=best, reason="the best that was evaluated",
                     last_version=version, last_folder=str(self._folder / "last"))  # fmt: skip

    def _step(self, version: int) -> Path:
        return self._folder / f"step-{version:06d}"

    def _write(self, version: int, state: dict[str, Tensor], copied_seconds: float) -> None:
        began, folder = time.monotonic(), self._step(version)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            assert isinstance(self._actor.module, PolicyModel)
            with written_whole(folder) as staging:
                write_export(self._actor.module, state, self._config, staging)
        except BaseException as error:  # noqa: BLE001  (`finish` raises it in the learner's own thread)
            self._failed = error
            return
        log.info("version_exported", folder=str(folder), policy_version=version,
                 copied_seconds=round(copied_seconds, 3), seconds=round(time.monotonic() - began, 2))  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    """Its files under another name, by hard links where the disk has them; whole or not at all."""
    with written_whole(target) as staging:
        shutil.copytree(source, staging, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
