"""The run's export to a Hugging Face hub repository (``learner.push_to_hub``), at its end."""

from __future__ import annotations

from pathlib import Path

import structlog
from huggingface_hub import HfApi

from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)


def push_to_hub(folder: Path, repository: str, message: str) -> bool:
    """Upload `folder` as one commit; the repository is made, private, where there is none.

    Token and address are the hub's own settings: ``HF_TOKEN`` or a login, and ``HF_ENDPOINT``. A hub that is away or
    refuses costs a line and no run: the folder is there, and the line says how to upload it.

    Args:
        repository: ``name`` or ``organisation/name``.
        message: of the commit.

    Returns whether it is there.
    """
    api = HfApi()
    log.info("pushing_to_hub", folder=str(folder), repository=repository)
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # noqa: BLE001  (its client raises anything, and no run that is complete ends by it)
        log.error("not_pushed_to_hub", repository=repository, error=one_line(error)[:300] or type(error).__name__,
                  remedy=f"hf auth login, then: hf upload {repository} {folder}")  # fmt: skip
        return False
    log.info("pushed_to_hub", repository=repository, commit=done.oid)
    return True
