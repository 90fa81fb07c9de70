"""How prompts are named: ``rl-00000012-3`` is sample 3 of problem 12 of the RL stage. Pure."""

from __future__ import annotations

from vcppo.common.records.trajectory import Purpose

PURPOSE_PREFIX: dict[Purpose, str] = {"value_pretraining": "vp", "rl": "rl"}


def group_name(purpose: Purpose, number: int) -> str:
    """Id of problem `number` of a stage: ``rl-00000012``."""
    return f"{PURPOSE_PREFIX[purpose]}-{number:08d}"


def prompt_name(group_id: str, sample: int) -> str:
    """Id of one sample of a problem: ``rl-00000012-3``."""
    return f"{group_id}-{sample}"
