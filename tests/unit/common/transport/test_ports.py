"""A port chosen for a process must still be free when it gets there."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.transport.ports import dealt_by_the_kernel, free_port, reserved_range


def test_a_chosen_port_is_none_that_the_kernel_deals_out() -> None:
    """Such a one was taken by another process's listener a minute later, before the learner bound it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname()[1] in dealt_by_the_kernel()
    assert all(free_port() not in dealt_by_the_kernel() for _ in range(20))


def test_neighbouring_ports_are_all_free() -> None:
    first = free_port(count=3)
    for port in range(first, first + 3):
        socket.create_server(("127.0.0.1", port)).close()


def test_two_rarely_choose_the_same() -> None:
    assert len({free_port() for _ in range(50)}) > 45


def test_no_port_of_a_host_that_is_not_this_one() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1: none of 200 ports tried"):
        free_port("192.0.2.1")


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_the_reserved_range_avoids_the_kernels(one: int, other: int) -> None:
    dealt = range(min(one, other), max(one, other) + 1)
    reserved = reserved_range(dealt)
    assert len(reserved) > 0
    if reserved is not dealt:
        assert 10_000 <= reserved.start < reserved.stop <= 65_536
        assert reserved.stop <= dealt.start or dealt.stop <= reserved.start
