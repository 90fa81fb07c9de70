"""A stage of its own process that makes one folder, once: the cold start, the reward model.

What comes out is marked by a hash of everything it depends on: the stage is skipped when it has been done, and done
again when its config has changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import read_json_object
from vcppo.common.process.main import process_parser, run_process
from vcppo.learner.engine.deepspeed_engine import shutdown_distributed

log = structlog.get_logger(__name__)


class Product(NamedTuple):
    """What a stage makes.

    Attributes:
        name: of its log events, ``<name>_present``; `words`: with its article, for errors.
        marker: the file in its folder that holds the hash.
        elsewhere: how to have it made in another folder, for errors.
    """

    name: str
    words: str
    marker: str
    elsewhere: str

    def is_there(self, folder: Path, inputs: Mapping[str, Any]) -> bool:
        """Whether `folder` was made of `inputs` (see `fingerprinted`). Raises VcppoError when it is something else."""
        if not folder.exists():
            return False
        if not (folder / self.marker).exists():
            raise VcppoError(
                f"{folder} exists and is not {self.words} (no {self.marker}): move it away, or {self.elsewhere}"
            )
        remedy = f"move {folder} away, and it is made again"
        if read_json_object(folder / self.marker, remedy).get("hash") == inputs["hash"]:
            log.info(f"{self.name}_present", path=str(folder), hash=inputs["hash"])
            return True
        log.warning(f"{self.name}_outdated", path=str(folder), reason="made from another config; it is made again")
        return False


def fingerprinted(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs`, and the hash of them under ``hash``."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return {**inputs, "hash": blake2b(text.encode(), digest_size=16).hexdigest()}


def refuse_long_sequences(config: VcppoConfig, service: str) -> None:
    """Raise VcppoError where only several ranks together could take the longest sequence: here each has its own."""
    longest, learner = config.generator.max_model_len, config.learner
    if learner.micro_batch_tokens < longest:
        raise VcppoError(
            f"learner.sequence_parallel_size = {learner.sequence_parallel_size}: ranks share no sequences in {service},"
            f" and generator.max_model_len = {longest} is more than learner.micro_batch_tokens ="
            f" {learner.micro_batch_tokens}: raise the latter to {longest} for this stage"
        )


def run_stage(
    service: str, about: str | None, make: Callable[[VcppoConfig], object], arguments: Sequence[str] | None
) -> int:
    """The whole process of ``python -m vcppo.learner.cold_start.<service>``. Returns the exit code."""

    def work(config: VcppoConfig) -> None:
        refuse_long_sequences(config, service)
        make(config)

    given = process_parser(f"python -m vcppo.learner.cold_start.{service}", about).parse_args(arguments)
    return run_process(given, service, work, at_end=shutdown_distributed)
