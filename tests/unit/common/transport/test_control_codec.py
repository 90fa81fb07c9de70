"""What may go over the control port, and what hostile bytes do there."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.transport.control import pack, unpack


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "float16", "float32", "float64", ">f4"])
def test_arrays_keep_their_shape_and_values(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = unpack(pack({"x": array}))["x"]
    assert back.shape == (2, 3)
    assert back.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(back, array)


def test_plain_values_pass() -> None:
    value = {"a": [1, 2.5, None, "x", b"y"], "b": {"c": True}, "n": np.int64(3)}
    assert unpack(pack(value)) == value | {"n": 3}


def test_objects_do_not_pass() -> None:
    with pytest.raises(TypeError, match="control port"):
        pack({"x": object()})
    with pytest.raises(TypeError):
        pack(np.array([object()]))


@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda raw: b"\xc7" + bytes([len(raw)]) + b"\x01" + raw))
def test_hostile_bytes_give_value_errors_only(data: bytes) -> None:
    try:
        unpack(data)
    except ValueError:
        return


@pytest.mark.parametrize("kind", ["(2", "i4,(", "(1000000000,)f4", "O", "V8", "f4,f4", "m8", "", "\0", "<f3"])
def test_an_array_type_is_one_of_a_list_and_never_evaluated(kind: str) -> None:
    """numpy parses "(2" as Python: it raised SyntaxError, which ended the learner that had asked."""
    hostile = msgpack.packb(msgpack.ExtType(1, msgpack.packb([kind, [2], bytes(8)])))
    with pytest.raises(ValueError, match="are not accepted"):
        unpack(hostile)


def test_lists_that_promise_more_than_there_is_take_no_memory() -> None:
    with pytest.raises(ValueError, match="max_array_len"):
        unpack(b"\xdd\x03\xff\xff\xff" * 500 + bytes(1 << 20))
