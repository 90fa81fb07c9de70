"""The real learner process, but for its weight broadcast: there are no engines to send to (see test_learner.py)."""

from __future__ import annotations

from vcppo.common.config import VcppoConfig
from vcppo.common.process.end_process import end_process
from vcppo.common.store import facts
from vcppo.common.store.run_store import RunStore
from vcppo.learner.__main__ import main
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.weights.broadcaster import BroadcastReport
from vcppo.learner.weights.canary import CanaryProbe


class NoMemberBroadcaster:
    """Walks the weights as a broadcast does, and announces the version."""

    def __init__(self, config: VcppoConfig, store: RunStore | None, actor: TrainEngine) -> None:
        self._store, self._actor = store, actor

    def broadcast(self, policy_version: int, canary: CanaryProbe | None = None) -> BroadcastReport:
        num_bytes = sum(tensor.nbytes for _, tensor in self._actor.weight_source())
        if self._store is not None:
            facts.POLICY_VERSION.write(self._store, policy_version)
        return BroadcastReport(0.0, 0.0, num_bytes, ())

    def out_of_sync(self, policy_version: int) -> list[str]:
        return []

    def wait_for_members(self, count: int, deadline_seconds: float) -> list[str]:
        return []

    def close(self) -> None: ...


if __name__ == "__main__":
    end_process(main(None, NoMemberBroadcaster))
