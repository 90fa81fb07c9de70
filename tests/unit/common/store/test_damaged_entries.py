"""What another program has written into the store is one line that says so, and never a traceback."""

from __future__ import annotations

import msgpack
import pytest

from vcppo.common.errors import VcppoError
from vcppo.common.store import facts
from vcppo.common.store.codec import claims_from, outstanding_from

ID = b"rl-00000001-0"
FACTS = msgpack.packb(["rl-00000001", 3])
ARRIVAL = msgpack.packb(["rl-00000001-0@generator-0.1", 3, 40])


@pytest.mark.parametrize("steps", [{}, {ID: b"x"}, {ID: b"9" * 5000}, {ID: b"\xff"}])
def test_claims_that_are_none_are_one_line(steps: dict[bytes, bytes]) -> None:
    with pytest.raises(VcppoError, match=r"list of claimed prompts can't be read .* restore the store") as error:
        claims_from([ID], steps)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("order", "known", "arrival"),
    [
        (b"x", FACTS, ARRIVAL),
        (b"1", b"", ARRIVAL),
        (b"1", b"\xc1", ARRIVAL),
        (b"1", msgpack.packb(7), ARRIVAL),
        (b"1", msgpack.packb(["g"]), ARRIVAL),
        (b"1", FACTS, msgpack.packb([1])),
        (b"1", FACTS, b"\x91"),
    ],
)
def test_what_is_no_entry_is_one_line(order: bytes, known: bytes, arrival: bytes) -> None:
    with pytest.raises(VcppoError, match="list of open prompts can't be read") as error:
        outstanding_from([[], [], [ID], []], [{ID: order}, {ID: known}, {ID: arrival}, {}])
    assert str(error.value).isprintable()


def test_a_long_value_of_a_fact_is_cut() -> None:
    class Store:
        def get_value(self, name: str) -> str:
            return "9" * 5000

    with pytest.raises(VcppoError, match="policy_version = '999") as error:
        facts.POLICY_VERSION.read(Store())
    assert len(str(error.value)) < 300
