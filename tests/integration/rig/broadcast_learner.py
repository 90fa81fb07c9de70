"""The learner's half of test_weight_broadcast.py, run under torchrun: `python broadcast_learner.py SPEC.json`.

For each case of the spec (a run with its generators, a ZeRO stage): train one step, broadcast, let the generators
sample, compare the log-probs they recorded with the learner's; with an update in mid-generation. Then, when asked,
break the weights and see the canary notice. Rank 0 writes what was seen to the spec's output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.records.trajectory import Prompt, Trajectory
from vcppo.common.records.wire import decode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.run_store import RunStore
from vcppo.common.transport import ControlClient, ControlError, ControlTimeout, TrajectoryReceiver
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.common.transport.generator_calls import Pause, StartWeightUpdate, Status
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.engine.deepspeed_engine import (
    EngineOptions,
    TrainEngine,
    broadcast_bytes,
    init_distributed,
    num_ranks,
    rank,
)
from vcppo.learner.models.models import load_policy
from vcppo.learner.weights.broadcaster import CanaryError, CanaryProbe, WeightBroadcaster
from vcppo.learner.weights.canary_probe import make_probe

PROMPT_LENGTH = 29
DEADLINE = 300.0  # a slow machine, and others on it


def as_trajectory(tokens: Any, prompt_length: int = PROMPT_LENGTH) -> Trajectory:
    response = np.asarray(tokens[prompt_length:], np.int32)
    return Trajectory(
        id="probe",
        prompt_id="probe",
        group_id="probe",
        sample_index=0,
        task="probe",
        prompt_token_ids=np.asarray(tokens[:prompt_length], np.int32),
        response_token_ids=response,
        action_mask=np.ones(len(response), np.bool_),
        behaviour_log_probs=np.zeros(len(response), np.float32),
        version_spans=(),
        finish_reason="stop",
        reward=0.0,
        outcome="wrong",
        generator_id="none",
        issue_version=0,
    )


class Case:
    """One run, one ZeRO stage: the engine, the broadcaster and, on rank 0, the store and the receiving end."""

    def __init__(self, config: VcppoConfig, zero_stage: Any, members: int = 2) -> None:
        self.config = config
        options = EngineOptions(zero_stage=zero_stage, dtype=config.model.dtype)
        policy = load_policy(config.model.path, dtype=options.torch_dtype)
        self.engine = TrainEngine(policy, learning_rate=5e-3, options=options)
        self.random = np.random.default_rng(zero_stage)
        self.store: RunStore | None = None
        self.version = 0
        if rank() == 0:
            self.store = RunStore.connect(str(config.redis.url), config.run.name, 10.0)
            self.receiver = TrajectoryReceiver(endpoints_of(config)[0], config.transport)
            self.version = facts.POLICY_VERSION.read(self.store) or 0
        self.broadcaster = WeightBroadcaster(config, self.store, self.engine)
        if rank() == 0:
            self.broadcaster.wait_for_members(members, DEADLINE)
        self.probe_tokens = np.random.default_rng(7).integers(2, 32, PROMPT_LENGTH + 64).astype(np.int32)

    def close(self) -> None:
        self.broadcaster.close()
        if self.store is not None:
            self.receiver.close()
            self.store.close()

    def train(self) -> None:
        """One step on noise: the weights move a lot, all of them."""
        tokens = self.random.integers(2, 32, 200)
        output = self.engine.forward(build_packed([as_trajectory(tokens)]), 1.0)
        self.engine.accumulate(-output.log_probs.mean() / num_ranks())
        self.engine.step()

    def log_probs(self, trajectories: list[Trajectory]) -> list[Any]:
        """The learner's, one array a trajectory. Collective."""
        packed = build_packed(trajectories)
        flat = self.engine.infer(packed, self.config.sampling.temperature).log_probs.numpy()
        return np.split(flat, np.cumsum([len(t.response_token_ids) for t in trajectories])[:-1])

    def probe(self) -> CanaryProbe | None:
        return make_probe(self.engine, [self.probe_tokens.tolist()], self.config)

    def broadcast(self) -> Any:
        self.version += 1
        return self.broadcaster.broadcast(self.version, self.probe())

    def issue(self, count: int, max_tokens: int) -> list[str]:
        if self.store is None:
            return []
        prompts = [
            Prompt(
                id=f"p-{self.version}-{time.time_ns()}-{i}",
                group_id="g",
                sample_index=i,
                task="chain_arithmetic",
                token_ids=self.random.integers(2, 32, PROMPT_LENGTH).astype(np.int32),
                answer={"answer": "000"},
                seed=i,
                issue_version=self.version,
                purpose="rl",
                max_response_tokens=max_tokens,
            )
            for i in range(count)
        ]
        self.store.issue(prompts)
        return [p.id for p in prompts]

    def wait_until_generating(self) -> None:
        """Both generators have sequences in flight."""
        if self.store is None:
            return
        for member in self.store.members("generator"):
            client, end = ControlClient(member.control_endpoint), time.monotonic() + DEADLINE
            while client.ask(Status(), 10.0).num_in_flight == 0:
                assert time.monotonic() < end, f"{member.id} takes no prompts"
            client.close()

    def collect(self, prompt_ids: list[str]) -> list[Trajectory]:
        """The trajectories of these prompts, on every rank."""
        payloads: dict[str, bytes] = {}
        end = time.monotonic() + DEADLINE
        while self.store is not None and len(payloads) < len(prompt_ids):
            assert time.monotonic() < end, f"{len(payloads)} of {len(prompt_ids)} trajectories came"
            received = self.receiver.poll(1.0)
            for item in received:
                found = decode_trajectory(item.payload).prompt_id
                if found in prompt_ids:
                    payloads[found] = bytes(item.payload)
            self.receiver.ack(received)
        if self.store is not None:
            self.store.expire(prompt_ids, "test")
        packed = broadcast_bytes(msgpack.packb(list(payloads.values())) if rank() == 0 else None)
        return [decode_trajectory(payload) for payload in msgpack.unpackb(packed)]


class Corrupting:
    """An engine whose weights are spoilt on their way out."""

    def __init__(self, engine: TrainEngine) -> None:
        self.engine = engine
        self.device = engine.device

    def weight_metadata(self) -> Any:
        return self.engine.weight_metadata()

    def weight_source(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.engine.weight_source():
            yield name, tensor.flip(0) * 3 if name.endswith("layers.1.mlp.down_proj.weight") else tensor


def prove(case: Case) -> dict[str, Any]:
    """Two updates: one at rest, one in mid-generation; what the generators sampled against the learner."""
    case.train()
    first = case.broadcast()
    at_rest = case.collect(case.issue(12, 48))
    differences = [
        float(np.abs(mine - t.behaviour_log_probs).max())
        for mine, t in zip(case.log_probs(at_rest), at_rest, strict=True)
    ]
    ids = case.issue(16, 400)
    case.wait_until_generating()
    case.train()
    second = case.broadcast()
    moved = case.collect(ids)
    mixed = [t for t in moved if len(t.version_spans) > 1]
    return {
        "versions_at_rest": sorted({s.version for t in at_rest for s in t.version_spans}),
        "version": first and case.version - 1,
        "generators": sorted({t.generator_id for t in at_rest}),
        "behaviour_difference": max(differences),
        "canary_difference": max(first.canary_difference, second.canary_difference),
        "num_mixed": len(mixed),
        "spans_add_up": all(sum(s.count for s in t.version_spans) == len(t.response_token_ids) for t in moved),
        "mixed_versions": sorted({tuple(s.version for s in t.version_spans) for t in mixed}),
        "pause_seconds": [first.pause_seconds, second.pause_seconds],
        "seconds": [first.seconds, second.seconds],
        "members": list(second.members),
        "dropped": list(first.dropped + second.dropped),
    }


def caught(case: Case) -> str:
    """The canary's complaint about the next broadcast; empty when it has none."""
    try:
        case.broadcast()
    except CanaryError as error:
        return str(error)
    return ""


TENSORS = {"names": ["w"], "dtype_names": ["float32"], "shapes": [[2, 2]], "chunks": [1]}
GROUP = {"master_address": "127.0.0.1", "master_port": 1, "rank_offset": 1, "world_size": 2, "group": "g",
         "bind_host": "127.0.0.1", "deadline_seconds": 30.0}  # fmt: skip
HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("canary", {"token_ids": [1, 2, 10**9], "prompt_length": 1}),
    ("canary", {"token_ids": [1, 2, -1], "prompt_length": 1}),
    ("canary", {"token_ids": [1] * 20_000, "prompt_length": 1}),
    ("canary", {"token_ids": [1, 2, 3], "prompt_length": 9}),
    ("canary", {"token_ids": [1, 2, 3], "prompt_length": 1, "num_sampled": 10**6}),
    ("start_weight_update", {}),
    ("update_weights", {"update_info": TENSORS}),
    ("finish_weight_update", {"policy_version": 3}),
    ("finish_weight_update", {"policy_version": -(2**63)}),
    ("resume", {}),
    ("init_weight_transfer_engine", {"init_info": {}}),
    ("init_weight_transfer_engine", {"init_info": GROUP | {"world_size": 2**40}}),
    ("init_weight_transfer_engine", {"init_info": GROUP | {"deadline_seconds": float("inf")}}),
    ("pause", {}),
    ("start_weight_update", {}),
    ("start_weight_update", {}),
    ("canary", {"token_ids": [1, 2, 3], "prompt_length": 1}),
    ("resume", {}),
    ("update_weights", {"update_info": TENSORS | {"dtype_names": ["float33"]}}),
    ("update_weights", {"update_info": TENSORS | {"shapes": [[2**40, 2**40]]}}),
    ("finish_weight_update", {"policy_version": 3}),
]


def throw(case: Case) -> list[str]:
    """Hostile calls to each generator, one after the other; those that were taken."""
    assert case.store is not None
    taken: list[str] = []
    for member in case.store.members("generator"):
        client = ControlClient(member.control_endpoint)
        for method, arguments in HOSTILE:
            try:
                client.call(method, arguments, 60.0)
                taken.append(method)
            except ControlTimeout:
                raise
            except ControlError as error:
                refused = str(error).removeprefix(f"{member.control_endpoint} {method}: ")
                if f"{method}: " not in refused:
                    taken.append(refused)
        assert client.ask(Status(), 10.0).busy is None
        client.close()
    return taken


def break_off(case: Case) -> Any:
    """A learner that dies in the middle of an update, and the next one's first broadcast."""
    assert case.store is not None
    for member in case.store.members("generator"):
        client = ControlClient(member.control_endpoint)
        for call in (Pause(), StartWeightUpdate()):
            client.ask(call, 30.0)
        client.close()
    case.broadcaster.close()
    case.broadcaster = WeightBroadcaster(case.config, case.store, case.engine)
    case.train()
    return case.broadcast()


def break_weights(case: Case, flag: Path) -> dict[str, Any]:
    """What the canary says of weights spoilt on the way and of a head left unpacked; right ones mend it."""
    seen: dict[str, Any] = {}
    good, case.broadcaster = case.broadcaster, WeightBroadcaster(case.config, case.store, Corrupting(case.engine))  # type: ignore[arg-type]
    good.close()
    seen["corrupted"] = caught(case)
    case.broadcaster.close()
    case.broadcaster = WeightBroadcaster(case.config, case.store, case.engine)
    case.train()
    seen["after_corrupted"] = caught(case)
    flag.touch()
    case.train()
    seen["head_not_repacked"] = caught(case)
    flag.unlink()
    case.train()
    seen["after_head"] = caught(case)
    seen["taken"] = throw(case)
    report = break_off(case)
    seen["after_broken_off"] = [len(report.members), len(report.dropped)]
    return seen


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    init_distributed("cpu")
    seen: list[dict[str, Any]] = []
    for entry in spec["cases"]:
        case = Case(load_config(Path(entry["config"]), []), entry["zero_stage"], entry.get("members", 2))
        seen.append(entry | {"ranks": num_ranks()} | prove(case))
        if entry.get("break_flag"):
            seen[-1] |= break_weights(case, Path(entry["break_flag"]))
        case.close()
    if rank() == 0:
        Path(spec["output"]).write_text(json.dumps(seen, indent=2))


if __name__ == "__main__":
    main()
