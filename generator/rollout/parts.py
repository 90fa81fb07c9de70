"""What one generator process is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vcppo.common.config import VcppoConfig
from vcppo.common.store.run_store import RunStore
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.common.transport import TrajectorySender
from vcppo.generator.reward_sources.source import RewardSource
from vcppo.generator.turns.play import Player
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.generator.vllm_engine.engine import Engine


@dataclass(frozen=True)
class Generator:
    """One generator: its name, and the parts that its loops share. Whoever makes the parts closes them.

    Attributes:
        id: its name in the store, the log and the weight group.
        tokenizer: transformers', of the model the engine runs.
        verifiers: of a task of one turn; None: its environment judges.
        player: plays rollouts of several turns; None: the task has one.
        rewards: their source; None: the verifiers' verdicts give them.
        benchmarks: verifiers of ``eval.benchmarks`` by name.
    """

    config: VcppoConfig
    id: str
    engine: Engine
    store: RunStore
    sender: TrajectorySender
    verifiers: VerifierPool | None
    tokenizer: Any
    metrics: MetricsWriter
    player: Player | None = None
    rewards: RewardSource | None = None
    benchmarks: Mapping[str, VerifierPool] = field(default_factory=dict)
