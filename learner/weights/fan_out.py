"""One call to many generators at once: the control-plane client vLLM's trainer engines drive."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from vcppo.common.errors import DeadlineExceeded, VcppoError
from vcppo.common.store.run_store import Member
from vcppo.common.transport import ControlClient
from vcppo.common.transport.control import CallerSuperseded
from vcppo.common.transport.generator_calls import (
    Answer,
    Call,
    FinishWeightUpdate,
    InitWeightTransfer,
    Pause,
    StartWeightUpdate,
    Status,
    UpdateWeights,
)

T = TypeVar("T")
STATUS_SECONDS = 5.0  # a generator that does not say who it is in this time is taken for dead
_GRACE_SECONDS = 5.0  # a call's own deadline passes first
_MAX_WORKERS = 4096  # of one generator
_MAX_WHY = 500


class MemberError(Exception):
    """Some generators failed a call; ``failures`` maps their ids to what happened."""

    def __init__(self, method: str, failures: Mapping[str, Exception]) -> None:
        text = "; ".join(f"{name}: {error}" for name, error in failures.items())
        super().__init__(f"{method} failed at {text}")
        self.failures = dict(failures)

    @property
    def superseded(self) -> list[str]:
        """What those say who obey a newer learner than this one."""
        return [str(error) for error in self.failures.values() if isinstance(error, CallerSuperseded)]


@dataclass
class FanOut:
    """vLLM's weight-sync client for many generators at once: each call goes to all of them in parallel.

    Satisfies vLLM's ``VLLMWeightSyncClient`` protocol. A call ends at the first failure, so one dead generator
    holds up nobody; the others' calls end by their own deadlines.
    """

    clients: dict[str, ControlClient]
    num_workers: dict[str, int]
    deadline_seconds: float
    policy_version: int = 0
    received: dict[str, Any] = field(default_factory=dict)  # what each said of the weights of the last update

    @property
    def world_size(self) -> int:
        """Of the transfer group: learner rank 0 and all generators' workers."""
        return 1 + sum(self.num_workers.values())

    def ask(self, call: Call[Answer], names: Collection[str] | None = None) -> dict[str, Answer]:
        """Ask all generators, or those named, the same; returns the answers by id. Raises MemberError."""
        return self.ask_each(dict.fromkeys(self.clients if names is None else names, call))

    def ask_each(self, calls: Mapping[str, Call[Answer]]) -> dict[str, Answer]:
        """Ask each generator its own call of one kind; returns the answers by id.

        Raises MemberError at the first failure.
        """

        def one(name: str) -> Callable[[], Answer]:
            return lambda: self.clients[name].ask(calls[name], self.deadline_seconds)

        futures: dict[Future[Answer], str] = {beside(one(name)): name for name in calls}
        done, _ = wait(futures, timeout=self.deadline_seconds + _GRACE_SECONDS, return_when=FIRST_EXCEPTION)
        failures = {futures[f]: error for f in done if isinstance(error := f.exception(), Exception)}
        if not failures:
            late = [name for f, name in futures.items() if f not in done]
            failures = {name: DeadlineExceeded(f"no answer in {self.deadline_seconds:.0f} s") for name in late}
        if failures:
            raise MemberError(next(iter(calls.values())).method, failures)
        return {name: f.result() for f, name in futures.items()}

    def release(self) -> None:
        """Between updates: hold no connections."""
        for client in self.clients.values():
            client.release()

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Tell each generator its first rank in the group, one after the other, and the host it binds to."""
        offset = int(init_info["rank_offset"])
        calls: dict[str, InitWeightTransfer] = {}
        for name, num in self.num_workers.items():
            info = init_info | {"rank_offset": offset}
            if "bind_host" in info:
                info["bind_host"] = urlsplit(self.clients[name].endpoint).hostname
            calls[name] = InitWeightTransfer(info)
            offset += num
        self.ask_each(calls)

    def start_weight_update(self) -> None:
        """Generators stand still from here until they are told to resume."""
        self.ask(Pause())
        self.ask(StartWeightUpdate())

    def update_weights(self, update_info: Any) -> None:
        """Make all generators receive what `update_info` lists. Raises MemberError at the first failure."""
        self.ask(UpdateWeights(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Make the weights count as `policy_version`; `received` then holds what each got.

        vLLM's own `weight_version` is not used.
        """
        answers = self.ask(FinishWeightUpdate(self.policy_version))
        self.received = {name: answer.received for name, answer in answers.items()}


def beside(function: Callable[[], T]) -> Future[T]:
    """Run it in a daemon thread: unlike an executor's, one stuck on a dead peer can't keep the process from exiting."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001  (handed to whoever asks for the result)
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def unable(members: Sequence[Member], incarnation: int) -> dict[str, str]:
    """Why, by id, of those that can take no call: all are asked at once, and must be free within `STATUS_SECONDS`.

    `incarnation`: of this learner. Raises CallerSuperseded when one of them obeys a newer one.

    After a broken update its victims are free again at once, while one that is stuck in it stays busy. One whose engine
    died says so until its process ends.
    """
    asked = {member.id: beside(lambda m=member: _why_unable(m, incarnation)) for member in members}  # type: ignore[misc]
    return {name: why for name, answer in asked.items() if (why := answer.result())}


def _why_unable(member: Member, incarnation: int) -> str:
    """ "" when it can take a call."""
    if why := _no_member(member):
        return why
    client = ControlClient(member.control_endpoint, incarnation)
    end = time.monotonic() + STATUS_SECONDS
    try:
        while (busy := client.ask(Status(), STATUS_SECONDS).busy) is not None:
            if time.monotonic() > end:
                return f"is busy with {busy[:64]} for more than {STATUS_SECONDS:g} s"
            time.sleep(0.1)
    except CallerSuperseded:
        raise
    except VcppoError as error:  # nobody there, an answer that is no status, a dead engine
        return f"can take no call: {str(error)[:_MAX_WHY]}"
    finally:
        client.close()
    return ""


def _no_member(member: Member) -> str:
    """What it wrote into the store that no generator writes."""
    try:
        host = urlsplit(member.control_endpoint).hostname
    except ValueError:
        host = None
    if not host:
        return f"registered with control_endpoint {member.control_endpoint[:64]!r}, which has no host"
    count = num_workers(member)
    return "" if 1 <= count <= _MAX_WORKERS else f"registered with num_workers {member.info.get('num_workers')!r:.40}"


def num_workers(member: Member) -> int:
    """How many workers of its engine join the weight group; 0: what it says is no number."""
    found = member.info.get("num_workers", 1)
    return found if type(found) is int else 0
