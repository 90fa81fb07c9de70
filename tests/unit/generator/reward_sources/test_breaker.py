"""The circuit breaker against a plain telling of its rule, over any history of requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from vcppo.generator.reward_sources.breaker import Breaker, BreakerState

EVENT = st.one_of(
    st.tuples(st.just("wait"), st.floats(0.0, 4.0)),
    st.tuples(st.just("send"), st.just(0.0)),
    st.tuples(st.sampled_from(["good", "bad"]), st.floats(0.0, 1.0)),
)


@dataclass
class Told:
    """The rule in words: a list of what happened, looked through anew each time."""

    history: list[tuple[float, str]] = field(default_factory=list)

    def in_a_row(self) -> list[float]:
        times: list[float] = []
        for at, what in self.history:
            times = [] if what == "good" else [*times, at]
        return times


@given(st.integers(1, 4), st.lists(EVENT, max_size=60))
def test_any_history(limit: int, events: list[tuple[str, float]]) -> None:
    breaker, told, now = Breaker(limit, 2.0), Told(), 0.0
    under_way: list[bool] = []  # whether each is a probe
    for what, number in events:
        if what == "wait":
            now += number
        elif what == "send" and breaker.may_send(now):
            probe = breaker.state(now) is not BreakerState.CLOSED
            assert not (probe and breaker.probing)
            breaker = breaker.sent(now)
            under_way.append(probe)
        elif what in ("good", "bad") and under_way:
            probe = under_way.pop(int(number * (len(under_way) - 1)))
            breaker = breaker.succeeded() if what == "good" else breaker.failed(now, probe=probe)
            told.history.append((now, what))
            if what == "bad" and probe:
                assert breaker.state(now) is BreakerState.OPEN and not breaker.may_send(now)
        row = told.in_a_row()
        assert breaker.failures == len(row)
        assert breaker.failing_since == (row[0] if row else None)
        assert (breaker.state(now) is BreakerState.CLOSED) == (len(row) < limit)
        if breaker.state(now) is BreakerState.CLOSED:
            assert breaker.may_send(now) and not breaker.probing


def test_it_opens_probes_once_and_closes() -> None:
    breaker = Breaker(2, 10.0).failed(1.0, probe=False)
    assert breaker.may_send(1.0)
    breaker = breaker.failed(2.0, probe=False)
    assert breaker.state(11.9) is BreakerState.OPEN and not breaker.may_send(11.9)
    assert breaker.failed(11.0, probe=False).state(12.0) is BreakerState.HALF_OPEN  # a late one of before
    assert breaker.may_send(12.0) and not breaker.sent(12.0).may_send(12.0)
    again = breaker.sent(12.0).failed(13.0, probe=True)
    assert again.state(22.9) is BreakerState.OPEN and again.may_send(23.0) and again.failing_since == 1.0
    assert again.sent(23.0).succeeded() == Breaker(2, 10.0)
