"""Which cases `vcppo plan --simulate` asks the model for, and what their answers say. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from vcppo.common.records.simulated import Simulated, Workload

NUM_GENERATORS = (*(2**power for power in range(13)), 10_000)
CLOSE = 0.95  # of the best throughput: as good
PAUSES_DOMINATE = 0.10  # of all time
TRAJECTORIES_A_CASE = 150_000
GROUP_EFFICIENCY = 0.9  # of a group of devices, for each doubling: assumed
_MOST_STEPS, _LEAST_STEPS = 32, 8


def by_number(measured: Workload, num_measured: int, learner_grows: bool) -> dict[int, Workload]:
    """The same with each number of generators, on machines of their own: training takes nothing from them.

    Args:
        num_measured: generators of the run.
        learner_grows: batch and learner's speed are in proportion to the generators. Numbers whose batch would take
            too long to simulate are left out.
    """
    cases = {}
    for count in NUM_GENERATORS:
        changed = measured.model_copy(update={"num_generators": count, "lost_to_training": 0.0})
        factor = count / num_measured
        if learner_grows:
            units = max(1, round(measured.batch_size * factor / measured.group_size))
            changed = with_learner(changed, factor).model_copy(update={"batch_size": units * measured.group_size})
            if changed.batch_size * _LEAST_STEPS > TRAJECTORIES_A_CASE:
                break
        cases[count] = _with_steps(changed)
    return cases


def with_learner(case: Workload, factor: float) -> Workload:
    """A learner that many times as fast, its checkpoints and records included."""
    return case.model_copy(
        update={
            "learner_seconds_per_token": [seconds / factor for seconds in case.learner_seconds_per_token],
            "other_seconds": case.other_seconds / factor,
            "checkpoint_seconds": case.checkpoint_seconds / factor,
        }
    )


def by_settings(case: Workload) -> dict[str, Workload]:
    """`case` with other staleness, batches, groups of devices, and with what may go wrong."""
    update = case.model_copy
    cases = {f"rl.max_staleness={eta}": update(update={"max_staleness": eta}) for eta in (0, 1, 2, 4)}
    for factor in (1, 2, 4):
        size = case.batch_size * factor
        cases[f"rl.batch_size={size}"] = update(update={"batch_size": size})
    for devices in (1, 2, 4):
        if case.num_generators % devices == 0:
            cases[f"{case.num_generators // devices} engines of {devices}"] = in_groups(case, devices)
    longest = max(case.lengths)
    tail = sorted(case.lengths)[: ceil(0.98 * len(case.lengths))]
    cases["no response of the longest 2 %"] = update(update={"lengths": tail})
    cases["1 response in 100 four times the longest"] = update(
        update={"lengths": _with_tail(case.lengths, 4 * longest)}
    )
    cases["1 generator in 10 half as fast"] = update(update={"slow_share": 0.1, "slow_factor": 2.0})
    cases["pauses ten times as long"] = update(
        update={
            "pause_seconds": [10 * seconds for seconds in case.pause_seconds],
            "pause_seconds_per_generator": 10 * case.pause_seconds_per_generator,
        }
    )
    return {name: _with_steps(changed) for name, changed in cases.items()}


def in_groups(case: Workload, devices: int) -> Workload:
    """As many devices, `devices` to an engine: it has their slots and `GROUP_EFFICIENCY` of their speed a doubling."""
    gain = devices * GROUP_EFFICIENCY ** (devices.bit_length() - 1)
    return case.model_copy(
        update={
            "num_generators": case.num_generators // devices,
            "slots": case.slots * devices,
            "token_base_seconds": case.token_base_seconds * devices / gain,
            "token_seconds_per_sequence": case.token_seconds_per_sequence / gain,
        }
    )


def enough(results: Mapping[int, Simulated]) -> int:
    """The fewest generators that are as good as the best number."""
    best = max(result.tokens_per_second for result in results.values())
    return min(count for count, result in results.items() if result.tokens_per_second >= CLOSE * best)


def recommendations(
    by_count: Mapping[int, Simulated], cases: Mapping[int, Workload], changed: Mapping[str, Simulated]
) -> list[str]:
    """What to take, a sentence each."""
    count = enough(by_count)
    at, case = by_count[count], cases[count]
    more = (
        f"more make it at most {1 / CLOSE - 1:.0%} faster" if count < max(by_count) else "the most simulated are best"
    )
    said = [f"{count:,} generators: {more}. {_who_waits(at)}"]
    said.append(f"{_best('rl.max_staleness=', changed)} at that number: the lowest that is as good as any")
    said.append(f"{_best('rl.batch_size=', changed)} at that number: the smallest that is as good as any")
    if engines := [name for name in changed if " engines of " in name]:
        best = max(engines, key=lambda name: changed[name].tokens_per_second)
        said.append(f"{best}: fastest, if a group has {GROUP_EFFICIENCY:.0%} of its devices' speed for each doubling")
    places = case.num_generators * case.slots
    credits = case.batch_size * (case.max_staleness + 1)
    if credits < places:
        said.append(f"{credits:,} credits leave {places - credits:,} of {places:,} places empty: see rl.batch_size")
    said.append(_first_over("pauses", "generators_paused", PAUSES_DOMINATE, by_count))
    said.append(_first_over("Redis' thread", "store_busy", 0.8, by_count))
    for name in ("1 response in 100 four times the longest", "1 generator in 10 half as fast"):
        cost = 1 - changed[name].tokens_per_second / at.tokens_per_second
        said.append(f"{name}: {cost:.0%} slower" if cost > 0.005 else f"{name}: costs nothing")
    return said


def _who_waits(result: Simulated) -> str:
    if result.learner_waiting > result.generators_waiting:
        return f"The learner waits {result.learner_waiting:.0%} of its time: generators set the pace"
    return f"Generators wait {result.generators_waiting:.0%} of their slots' time: the learner sets the pace"


def _best(prefix: str, changed: Mapping[str, Simulated]) -> str:
    """The first, in the order of asking, that is as good as the best."""
    speeds = {name: result.tokens_per_second for name, result in changed.items() if name.startswith(prefix)}
    return next(name for name, speed in speeds.items() if speed >= CLOSE * max(speeds.values()))


def _first_over(what: str, share: str, limit: float, by_count: Mapping[int, Simulated]) -> str:
    over = [count for count, result in by_count.items() if getattr(result, share) >= limit]
    if not over:
        return f"{what}: below {limit:.0%} of the time at every number up to {max(by_count):,}"
    return f"{what}: {limit:.0%} of the time and more from {min(over):,} generators on"


def _with_tail(lengths: Sequence[int], longest: int) -> list[int]:
    """One in a hundred is that long."""
    every = list(lengths) * ceil(99 / len(lengths))
    return every + [longest] * max(1, len(every) // 99)


def _with_steps(case: Workload) -> Workload:
    """As many steps as are affordable; the first versions, while staleness builds up, are left out."""
    num_steps = min(_MOST_STEPS, max(_LEAST_STEPS, TRAJECTORIES_A_CASE // case.batch_size))
    return case.model_copy(
        update={"num_steps": num_steps, "warm_up_steps": min(num_steps // 2, case.max_staleness + 3)}
    )
