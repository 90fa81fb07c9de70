"""Which model adapters belong to: its path and a digest of its files, kept beside them.

    checkpoints/step-N/base_models.json           {"actor": {...}, "critic": {...}}
    value_pretraining/critic/base_models.json     {"critic": {...}}

A base that has moved is the same base: the digest counts, the path is for people.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.files.fingerprints import WEIGHT_SUFFIXES, model_contents
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole

FILE = "base_models.json"


class OtherBase(VcppoError):
    """Adapters are of another base model than the config's, or there are none where some are asked for."""

    exit_code = EXIT_REFUSED


def critic_base(config: VcppoConfig) -> str:
    """Path of the model whose backbone the critic's adapters are over."""
    if config.critic.init in ("value_pretrained", "policy") or has_adapter(config.critic.init):
        return config.critic.model or config.model.path
    return config.critic.init


def has_adapter(folder: str | Path) -> bool:
    """Whether the folder holds adapters of ours and not a whole model."""
    return (Path(folder) / FILE).is_file()


def base_models(config: VcppoConfig) -> dict[str, dict[str, str]]:
    """Engine → ``path`` and ``digest`` of its base; empty without adapters."""
    if config.lora.rank is None:
        return {}
    paths = {"actor": config.model.path}
    if config.algorithm.has_critic:
        paths["critic"] = critic_base(config)
    return {name: {"path": path, "digest": base_digest(path)} for name, path in paths.items()}


def base_digest(path: str) -> str:
    """Of the weights and the config.json at a model path."""
    contents: dict[str, Any] = {
        name: each
        for name, each in model_contents(path).items()
        if Path(name).suffix in WEIGHT_SUFFIXES or name == "config.json"
    }
    return blake2b(json.dumps(contents, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_base_models(folder: Path, bases: dict[str, dict[str, str]]) -> None:
    """Beside the adapters; nothing where there is no base."""
    if bases:
        write_whole(folder / FILE, json.dumps(bases, indent=1))


def check_base_models(folder: Path, config: VcppoConfig, *engines: str) -> None:
    """Raise OtherBase unless the adapters in `folder` belong to the config's models.

    Args:
        engines: of which the adapters are wanted; none: of all that `folder` has.
    """
    now, path = base_models(config), folder / FILE
    if not path.is_file():
        if now:
            raise OtherBase(
                f"{folder}: was made without adapters: set lora.rank = null to go on with it, or start a new run"
            )
        return
    if not now:
        raise OtherBase(
            f"{folder}: holds adapters only, and lora.rank is null: set lora.rank as it was, or start a new run"
        )
    then = read_json_object(path, "restore the folder")
    for engine in engines or then:
        before, here = then.get(engine, {}), now.get(engine)
        if here is not None and before.get("digest") != here["digest"]:
            raise OtherBase(
                f"{folder}: its adapters of the {engine} belong to the model that was at {before.get('path')}, and the"
                f" files at {here['path']} are others: put that model back, or start a new run"
            )
