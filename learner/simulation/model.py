"""A run as a discrete-event model: generators, credits, batches, weight updates, Redis' one thread. No I/O.

What is issued and which batch is next is decided by the functions that decide it in a run
(`vcppo.learner.supply.credits`). The rest follows docs/architecture.md:

    issue by credit ▶ lease, oldest first, by whoever has free slots ▶ tokens ▶ append, one after the other
    learner: issue ▶ wait for the batch ▶ train ▶ records, checkpoint ▶ send weights, generators paused ▶ prove them

What is left out: verifying, which takes place beside sampling; prefill; lost generators; evaluations. A generator's
speed does not depend on other generators: on one machine, measure it with as many as are simulated.

Time is SimPy's. The length of the response to prompt i, and what is drawn for step s, depend on the seed and on i or s
alone. So two cases with one seed differ in nothing but what their workloads say.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Generator, Sequence
from functools import partial

import simpy

from vcppo.common.records.simulated import Simulated, Workload
from vcppo.learner.simulation.simulated_engine import Engine, SimulatedPrompt
from vcppo.learner.supply.credits import Entry, Ready, Unit, Wait, make_units, num_units_to_issue, select_batch

Events = Generator[simpy.Event, object, None]


class Simulation:
    """One case. `run` it to the end, or step through `env` and look at `ledger`.

    Attributes:
        version: the learner's; `sent_version`: of the weights in the generators.
        staleness: of what was trained after the first steps.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.env = simpy.Environment()
        self.version = self.sent_version = 0
        self.staleness: Counter[int] = Counter()
        self._lengths, self._draws, self._order = (random.Random(f"{workload.seed} {what}") for what in "lds")
        self._engines = _engines(workload)
        self._asking = dict.fromkeys(self._engines)  # those that wait for prompts, in order
        self._queue: deque[SimulatedPrompt] = deque()
        self._open: dict[str, SimulatedPrompt] = {}
        self._needed: set[str] = set()  # by the learner, which waits
        self._batch_is_there = self.env.event()
        self._num_issued = self._tokens_trained = 0
        self._num_on_the_way = 0  # to Redis
        self._settled: Counter[str] = Counter()
        self._store_free_at = self._store_busy = 0.0
        self._pauses: list[float] = []
        self._seconds = dict.fromkeys(("waiting", "training", "sending", "other"), 0.0)
        self._before: dict[str, float] = {}  # all sums, at the end of the first steps
        self.done = self.env.process(self._learner())

    def run(self) -> Simulated:
        """To the end."""
        self.env.run(self.done)
        return self._result()

    def ledger(self) -> Counter[str]:
        """Prompts by where they are, each counted at that place, and `issued`."""
        in_engines = sum(len(engine.running) + len(engine.waiting) for engine in self._engines)
        states = Counter(prompt.state for prompt in self._open.values())
        return Counter(
            issued=self._num_issued, queued=len(self._queue), in_engines=in_engines, on_the_way=self._num_on_the_way,
            leased=states["leased"], buffered=states["buffered"], trained=self._settled["trained"],
            expired=self._settled["expired"],
        )  # fmt: skip

    # ---- the learner

    def _learner(self) -> Events:
        workload = self.workload
        while self.version < workload.num_steps:
            if self.version == workload.warm_up_steps:
                self._begin_to_measure()
            self._issue()
            began = self.env.now
            while not isinstance(decision := self._decide(), Ready):
                yield self._until_there(decision.on)
            self._seconds["waiting"] += self.env.now - began
            batch = [self._open.pop(prompt_id) for prompt_id in decision.prompt_ids]
            self._expire(decision.dropped)
            yield from self._train(batch)
            yield from self._send_weights()

    def _issue(self) -> None:
        workload = self.workload
        steps_left = workload.max_staleness + 1  # as in the middle of a run
        count = num_units_to_issue(len(self._units()), self._units_per_step, workload.max_staleness, steps_left)
        for _ in range(count * workload.group_size):
            number = self._num_issued
            length = self._lengths.choice(workload.lengths)
            prompt = SimulatedPrompt(number, number // workload.group_size, self.version, length)
            self._open[prompt.id] = prompt
            self._queue.append(prompt)
            self._num_issued += 1
        asking = list(self._asking)
        self._order.shuffle(asking)  # who is first takes as much as it has room for
        for engine in asking:
            if not self._queue:
                return
            self._serve(engine)

    def _train(self, batch: Sequence[SimulatedPrompt]) -> Events:
        workload = self.workload
        for prompt in batch:
            assert prompt.start_version is not None
            prompt.state = "trained"
            self.staleness[self.version - prompt.start_version] += 1
        num_tokens = sum(prompt.length for prompt in batch)
        self._settled["trained"] += len(batch)
        training = self._draws.choice(workload.learner_seconds_per_token) * num_tokens
        self._set_pace(1 - workload.lost_to_training)
        yield self._spend("training", training)
        self._set_pace(1.0)
        self._tokens_trained += num_tokens
        self.version += 1
        is_due = self.version % workload.checkpoint_every == 0
        yield self._spend("other", workload.other_seconds + (workload.checkpoint_seconds if is_due else 0.0))

    def _set_pace(self, pace: float) -> None:
        """Of all generators; they share a machine with the learner."""
        if not self.workload.lost_to_training:
            return
        for engine in self._engines:
            engine.advance(self.env.now)
            engine.pace = pace
            self._serve(engine)

    def _send_weights(self) -> Events:
        workload = self.workload
        pause = self._draws.choice(workload.pause_seconds)
        pause += workload.pause_seconds_per_generator * workload.num_generators
        for engine in self._engines:
            engine.advance(self.env.now)
            engine.is_paused = True
            engine.event += 1
        yield self._spend("sending", pause)
        self._pauses.append(pause)
        self.sent_version = self.version
        for engine in self._engines:
            engine.advance(self.env.now)
            engine.is_paused = False
            self._serve(engine)
        yield self._spend("sending", workload.broadcast_seconds)  # the proof: sequences go on, with the new weights

    def _decide(self) -> Ready | Wait:
        workload = self.workload
        return select_batch(
            self._units(), version=self.version, units_per_step=self._units_per_step,
            max_staleness=workload.max_staleness, straggler=workload.straggler,
        )  # fmt: skip

    def _units(self) -> list[Unit]:
        entries = (
            Entry(prompt.id, str(prompt.group), prompt.issue_version, prompt.state == "buffered")
            for prompt in self._open.values()
        )
        return make_units(entries, self.workload.group_size, self.workload.max_staleness)

    @property
    def _units_per_step(self) -> int:
        return self.workload.batch_size // self.workload.group_size

    def _until_there(self, prompt_ids: Sequence[str]) -> simpy.Event:
        self._needed, self._batch_is_there = set(prompt_ids), self.env.event()
        return self._batch_is_there

    def _expire(self, prompt_ids: Sequence[str]) -> None:
        for prompt_id in prompt_ids:
            prompt = self._open.pop(prompt_id)
            if prompt.state == "queued":
                self._queue.remove(prompt)
            prompt.state = "expired"
            self._settled["expired"] += 1

    def _spend(self, on: str, seconds: float) -> simpy.Event:
        self._seconds[on] += seconds
        return self.env.timeout(seconds)

    # ---- generators and the store

    def _serve(self, engine: Engine) -> None:
        """After a change: lease, fill its slots, and plan the end of its next response."""
        while (wanted := engine.wanted) and self._queue:
            for _ in range(min(wanted, len(self._queue))):
                prompt = self._queue.popleft()
                prompt.state = "leased"
                engine.waiting.append(prompt)
        engine.advance(self.env.now)
        engine.begin(self.sent_version)
        if engine.wanted:
            self._asking[engine] = None
        else:
            self._asking.pop(engine, None)
        engine.event += 1
        if (seconds := engine.until_next()) is not None:
            self.env.timeout(seconds).callbacks.append(partial(self._ended, engine, engine.event))

    def _ended(self, engine: Engine, event: int, _: simpy.Event) -> None:
        if event != engine.event:
            return
        engine.advance(self.env.now)
        for prompt in engine.finished():
            self._append(prompt)
        self._serve(engine)

    def _append(self, prompt: SimulatedPrompt) -> None:
        """Redis takes one after the other; heartbeats take a share of its time."""
        workload = self.workload
        cost = workload.store_seconds + workload.store_seconds_per_token * prompt.length
        cost /= max(1e-3, 1 - workload.heartbeat_share)
        self._store_free_at = max(self._store_free_at, self.env.now) + cost
        self._store_busy += cost
        self._num_on_the_way += 1
        arrival = self.env.timeout(self._store_free_at - self.env.now)
        arrival.callbacks.append(partial(self._arrived, prompt))

    def _arrived(self, prompt: SimulatedPrompt, _: simpy.Event) -> None:
        self._num_on_the_way -= 1
        if prompt.state != "leased":  # given up meanwhile
            return
        prompt.state = "buffered"
        if prompt.id in self._needed:
            self._needed.remove(prompt.id)
            if not self._needed:
                self._batch_is_there.succeed()

    # ---- what came of it

    def _begin_to_measure(self) -> None:
        self.staleness.clear()
        self._pauses.clear()
        self._before = self._sums()

    def _sums(self) -> dict[str, float]:
        for engine in self._engines:
            engine.advance(self.env.now)
        return {
            **self._seconds, "now": self.env.now, "busy": sum(engine.busy_seconds for engine in self._engines),
            "store": self._store_busy, "tokens": self._tokens_trained, "trained": self._settled["trained"],
            "expired": self._settled["expired"],
        }  # fmt: skip

    def _result(self) -> Simulated:
        workload = self.workload
        sums = {name: value - self._before.get(name, 0.0) for name, value in self._sums().items()}
        seconds, num_steps = sums["now"], workload.num_steps - workload.warm_up_steps
        slot_seconds = seconds * workload.num_generators * workload.slots
        busy, paused = sums["busy"] / slot_seconds, sum(self._pauses) / seconds
        return Simulated(
            tokens_per_second=sums["tokens"] / seconds,
            trajectories_per_second=sums["trained"] / seconds,
            seconds_per_step=seconds / num_steps,
            staleness=[self.staleness[i] / sums["trained"] for i in range(workload.max_staleness + 1)],
            learner_waiting=sums["waiting"] / seconds,
            learner_training=sums["training"] / seconds,
            learner_sending=sums["sending"] / seconds,
            learner_other=sums["other"] / seconds,
            generators_busy=busy,
            generators_paused=paused,
            generators_waiting=max(0.0, 1 - busy - paused),  # no rounding below 0
            store_busy=min(1.0, workload.heartbeat_share + sums["store"] / seconds * (1 - workload.heartbeat_share)),
            pause_seconds=sum(self._pauses) / len(self._pauses),
            expired=int(sums["expired"]),
        )


def simulate(workload: Workload) -> Simulated:
    """Run one case. Equal workloads give equal results."""
    return Simulation(workload).run()


def _engines(workload: Workload) -> list[Engine]:
    num_slow = max(1, round(workload.slow_share * workload.num_generators)) if workload.slow_share else 0
    factors = [workload.slow_factor if number < num_slow else 1.0 for number in range(workload.num_generators)]
    return [
        Engine(workload.slots, workload.ahead, workload.token_base_seconds * factor,
               workload.token_seconds_per_sequence * factor)
        for factor in factors
    ]  # fmt: skip
