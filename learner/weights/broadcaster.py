"""Weights from the learner to every generator: one `broadcast` per policy version.

    rank 0:  weight group ─▶ pause(keep) ─▶ start ─▶ update ‖ broadcast ─▶ finish(version)
             ─▶ proof (sums, canary) ─▶ resume ─▶ policy_version in the store
    others:  walk the parameters in lockstep (ZeRO-3 gathers), send nothing

`broadcast` is called on every learner rank. Rank 0 alone talks to generators and tells the others after each
attempt how it went, so all ranks make the same number of walks. A generator that fails is dropped by name, the
weight group is rebuilt without it and the update repeated for the rest; it may register again (new epoch).
A generator that fails the proof (`vcppo.learner.weights.weight_proof`) is put out alone: it drops what it has in flight
and is sent everything anew. One that fails, either way, ``broadcast.attempts`` times in a row is dismissed. If all fail
the proof the learner is likely wrong, and the run stops. Waits: every call and collective has
``broadcast.deadline_seconds``.

Backend ``gloo`` (CPU) is `vcppo.learner.weights.gloo_trainer`; ``nccl`` is vLLM's own trainer engine, driven by the
same code (not run here: no GPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import structlog
import torch

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.process import watchdog
from vcppo.common.store import facts
from vcppo.common.store.run_store import Fenced, Member, RunStore, Superseded
from vcppo.common.transport import ControlClient
from vcppo.common.transport.control import CallerSuperseded
from vcppo.common.transport.generator_calls import Abort, Resume
from vcppo.common.transport.ports import free_port
from vcppo.learner.engine.distributed import broadcast_object, rank
from vcppo.learner.weights.canary import CanaryError, CanaryProbe
from vcppo.learner.weights.fan_out import FanOut, MemberError, num_workers, unable
from vcppo.learner.weights.membership import Membership, Registration, dismiss, incarnation, tell
from vcppo.learner.weights.weight_proof import ProofVerdict, WeightProof

__all__ = [
    "BroadcastError",
    "BroadcastReport",
    "CanaryError",
    "CanaryProbe",
    "WeightBroadcaster",
    "WeightEngine",
]

log = structlog.get_logger(__name__)

_GRACE_SECONDS = 10.0  # gloo's deadline passes first, so that its reason, not ours, is reported


class BroadcastError(VcppoError):
    """No generator could be brought to the new weights; the text names each and why."""


_ERRORS = {"canary": CanaryError, "fenced": Superseded, "broadcast": BroadcastError}


class WeightEngine(Protocol):
    """What `vcppo.learner.engine.deepspeed_engine.TrainEngine` gives: parameters by Hugging Face name, tied ones once.

    ``weight_metadata`` is local; walking ``weight_source`` may gather (a collective) and yields the same order.
    """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    def weight_metadata(self) -> Sequence[tuple[str, torch.dtype, tuple[int, ...]]]:
        """(Name, type, whole shape) of each tensor, in the order of `weight_source`."""

    def weight_source(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Name, whole tensor ``[...]``), each valid until the next one is asked for."""


@dataclass(frozen=True, slots=True)
class BroadcastReport:
    """What one broadcast did.

    Attributes:
        seconds: whole call, repeats included.
        pause_seconds: longest time a generator stood still.
        num_bytes: of the weights, sent once to the whole weight group.
        members: ids of the generators in the weight group; they now run this version.
        dropped: ids of those left behind, those that failed the proof among them.
        canary_difference: largest mean |log-prob difference| of a generator (nats); None without a probe.
    """

    seconds: float
    pause_seconds: float
    num_bytes: int
    members: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    canary_difference: float | None = None


class WeightBroadcaster:
    """Brings all generators to a policy version. Make it and call `broadcast` on every learner rank.

    Args:
        store: rank 0's connection; None elsewhere.
        engine: the actor's; its device decides ``broadcast.backend: auto``.
    """

    def __init__(self, config: VcppoConfig, store: RunStore | None, engine: WeightEngine) -> None:
        self._config = config.broadcast
        self._store = store
        self._weights = engine
        self._rank = rank()
        self._backend = config.transfer_backend(on_cuda=engine.device.type == "cuda")
        self._fan_out: FanOut | None = None
        self._joined: frozenset[Registration] = frozenset()
        self._membership = Membership(store, config.broadcast.attempts) if store is not None else None
        self._engine: Any = None
        self._source: Any = None
        self._num_groups = 0
        self._engines: dict[str, int] = {}  # generator -> incarnation of its engine, of the weight group
        self._proof = WeightProof(config.broadcast)

    # Membership (rank 0)

    @property
    def store(self) -> RunStore:
        """Rank 0's. Raises RuntimeError on other ranks."""
        if self._store is None:
            raise RuntimeError("only rank 0 has the store")
        return self._store

    @property
    def membership(self) -> Membership:
        """Rank 0's view of who generates. Raises RuntimeError on other ranks."""
        if self._membership is None:
            raise RuntimeError("only rank 0 knows the generators")
        return self._membership

    def out_of_sync(self, policy_version: int) -> list[str]:
        """Ids of live generators that do not run ``policy_version``. Rank 0 only."""
        return self.membership.out_of_sync(policy_version)

    def wait_for_members(self, count: int, deadline_seconds: float) -> list[Member]:
        """Return when ``count`` generators are registered. Raises DeadlineExceeded. Rank 0 only."""
        import vcppo.learner.weights.gloo_trainer  # noqa: F401  (vLLM's interface takes seconds to import: now, while others start)

        return self.membership.wait(count, deadline_seconds)

    # One broadcast

    def broadcast(self, policy_version: int, canary: CanaryProbe | None = None) -> BroadcastReport:
        """Send the weights; returns on every rank when all generators left run them. Collective.

        Without any generator the version is only announced: whoever joins is out of sync, and sent it then.

        Raises:
            CanaryError: no generator's log-probs agree with the probe's; they have been told to stop generating.
            BroadcastError: no generator is left.
            Superseded: the store or a generator knows a newer learner than this one.
        """
        began = time.monotonic()
        dropped: list[str] = []
        failures: dict[str, int] = {}
        if self._rank == 0:
            self._make_source()
        with self._membership.round() if self._membership is not None else nullcontext():
            while True:
                outcome = broadcast_object(self._attempt(policy_version, canary, dropped, failures))
                if outcome["state"] == "error":
                    raise _ERRORS[outcome["kind"]](outcome["text"])
                if outcome["state"] == "done":
                    break
        report = BroadcastReport(
            seconds=round(time.monotonic() - began, 6),
            pause_seconds=outcome["pause_seconds"],
            num_bytes=sum(math.prod(m[2]) * m[1].itemsize for m in self._weights.weight_metadata()),
            members=tuple(outcome["members"]),
            dropped=tuple(outcome["dropped"]),
            canary_difference=outcome["canary_difference"],
        )
        if self._rank == 0:
            facts.POLICY_VERSION.write(self.store, policy_version)
            log.info("weights_broadcast", policy_version=policy_version, **asdict(report))
        return report

    def _make_source(self) -> None:
        if self._source is None:
            from vcppo.learner.weights.gloo_trainer import LockstepSource

            self._source = LockstepSource(self._weights, sum_on_cpu=self._backend == "gloo")

    def _attempt(
        self, policy_version: int, canary: CanaryProbe | None, dropped: list[str], failures: dict[str, int]
    ) -> dict[str, Any] | None:
        """One walk of the parameters on every rank; rank 0 returns how it went (``done``, ``again`` or ``error``)."""
        if self._rank != 0:
            for _ in self._weights.weight_source():
                pass
            return None
        self._source.begin_round()
        outcome: dict[str, Any]
        try:
            outcome = {"state": "done", "dropped": dropped} | self._update(policy_version, canary, dropped)
        except CanaryError as error:
            outcome = {"state": "error", "kind": "canary", "text": str(error)}
        except (Fenced, CallerSuperseded) as error:
            outcome = {"state": "error", "kind": "fenced", "text": str(error)}
        except VcppoError as error:
            outcome = {"state": "error", "kind": "broadcast", "text": str(error)}
        except Exception as error:  # noqa: BLE001  (gloo, NCCL and generators fail in many kinds; all mean: find out who)
            outcome = self._after_failure(error, dropped, failures)
        self._source.complete_round()
        return outcome

    def _update(self, policy_version: int, canary: CanaryProbe | None, dropped: list[str]) -> dict[str, Any]:
        self._follow_membership(policy_version, dropped)
        if self._fan_out is None:
            return {"members": [], "pause_seconds": 0.0, "canary_difference": None}
        self._fan_out.policy_version = policy_version
        watchdog.stage("broadcast", waiting_for=sorted(self._fan_out.clients))
        self._engine.send_weights()  # pauses them
        joined = self._joined
        verdict = self._prove(canary)
        dropped.extend(verdict.faults)
        if not self._fan_out.clients:
            return {"state": "again"}
        self.store.confirm()  # the last moment: what is resumed is generated with, and trained
        resumed = self._fan_out.ask(Resume())
        self._fan_out.release()
        self.membership.synced([each for each in joined if each[0] in self._fan_out.clients], policy_version)
        return {
            "members": list(self._fan_out.clients),
            "pause_seconds": max(each.paused_seconds for each in resumed.values()),
            "canary_difference": verdict.difference,
        }

    def _follow_membership(self, policy_version: int, dropped: list[str]) -> None:
        """Rebuild the weight group when a generator joined, left or came back in a new epoch.

        Everybody is asked for a sign of life first: a death costs `STATUS_SECONDS` here, a whole deadline later.
        """
        found = self.membership.members()
        self._drop(unable(found, self.store.incarnation), found, dropped)
        found = self.membership.members()
        joined = frozenset((m.id, m.epoch) for m in found)
        if joined and joined == self._joined:
            return
        self._leave_group()
        if not found:
            log.warning("no_generators", policy_version=policy_version, effect="whoever joins is sent the weights then")
            return
        log.info("weight_group_rebuilt", members=sorted(m.id for m in found), backend=self._backend)
        self._fan_out = FanOut(
            clients={m.id: ControlClient(m.control_endpoint, self.store.incarnation) for m in found},
            num_workers={m.id: num_workers(m) for m in found},
            deadline_seconds=self._config.deadline_seconds + _GRACE_SECONDS,
            policy_version=policy_version,
        )
        self._engine = self._make_engine(self._fan_out)
        self._joined = joined
        self._engines = {m.id: incarnation(m) for m in found}

    def _make_engine(self, fan_out: FanOut) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self._num_groups += 1
        buffer_bytes = int(self._config.packed_buffer_mib * 2**20)
        info: Any
        if self._backend == "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            info = NCCLTrainerInitInfo(
                master_address=self._config.host,
                master_port=free_port(self._config.host),
                world_size=fan_out.world_size,
                packed_buffer_size_bytes=buffer_bytes,
                rank=0,
            )
        else:
            from vcppo.learner.weights.gloo_trainer import GlooTrainerInitInfo

            info = GlooTrainerInitInfo(
                master_address=self._config.host,
                world_size=fan_out.world_size,
                group=f"weights-{self.store.incarnation}-{self._num_groups}",
                deadline_seconds=self._config.deadline_seconds,
                buffer_bytes=buffer_bytes,
                rank=0,
            )
        return WeightTransferTrainerFactory.trainer_init(info, client=fan_out, source=self._source)

    def _prove(self, probe: CanaryProbe | None) -> ProofVerdict:
        """Put out those that fail. Raises CanaryError when nobody passes and sending again won't help."""
        assert self._fan_out is not None
        verdict = self._proof.check(self._fan_out, self._engines, self._source.sent, probe)
        if verdict.faults:
            joined, self._joined = self._joined, frozenset()  # they come back: rebuild it whatever their entries say
            worn_out = [each for each in joined if each[0] in verdict.worn_out]
            self.membership.drop(worn_out, {name: verdict.faults[name] for name in verdict.worn_out})
        for name, fault in verdict.faults.items():
            self._put_out(name, fault, for_good=name in verdict.worn_out)
        if verdict.is_hopeless:
            raise CanaryError(f"generators do not run the weights they were sent: {verdict.text}")
        return verdict

    def _put_out(self, name: str, fault: str, *, for_good: bool) -> None:
        """Let a generator drop what it has in flight and ask for a new update; the one that failed too often ends."""
        assert self._fan_out is not None
        client = self._fan_out.clients.pop(name)
        log.error("canary_failed", generator_id=name, reason=fault)
        tell(name, client, Abort())
        if for_good:
            dismiss(name, client, f"its canary failed again and again: {fault}")
        client.close()

    # When something failed (rank 0)

    def _after_failure(self, error: Exception, dropped: list[str], failures: dict[str, int]) -> dict[str, Any]:
        """Name who is to blame, drop them, and say whether to try again."""
        log.warning("broadcast_failed", error=str(error), kind=type(error).__name__)
        if isinstance(error, MemberError) and (texts := error.superseded):
            return {"state": "error", "kind": "fenced", "text": texts[0]}
        members = self.membership.members()
        self._leave_group()
        gone = unable(members, self.store.incarnation)
        blamed = dict(gone)
        if not gone and isinstance(error, MemberError):
            for name in error.failures:
                failures[name] = failures.get(name, 0) + 1
            blamed = {name: str(e) for name, e in error.failures.items() if failures[name] > 1}
        failures[""] = failures.get("", 0) + 1
        self._drop(blamed, members, dropped)
        nobody_can = not gone and bool(blamed) and len(blamed) == len(members)
        for member in members:
            if member.id in blamed and not gone and not nobody_can:
                self.membership.failed(member, blamed[member.id])
        if nobody_can or failures[""] > 2 + len(members):
            return {"state": "error", "kind": "broadcast", "text": f"no generator took the weights: {error}"}
        return {"state": "again"}

    def _drop(self, blamed: Mapping[str, str], members: Sequence[Member], dropped: list[str]) -> None:
        self.membership.drop([(m.id, m.epoch) for m in members if m.id in blamed], blamed)
        dropped.extend(blamed)

    def _leave_group(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
        if self._fan_out is not None:
            for client in self._fan_out.clients.values():
                client.close()
        self._engine = self._fan_out = None
        self._joined = frozenset()

    def close(self) -> None:
        """Leave the weight group. Generators keep their weights and go on."""
        self._leave_group()
