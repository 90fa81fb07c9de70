"""Are the arguments of a control call within what this engine can take? Looked at before the engine hears of it. Pure.

`vcppo.common.transport.generator_calls` checks the types of arguments. This checks sizes: lengths and tokens of a
canary, the addresses, ranks and waits of a weight group, the tensors of an update. Whether the tensors are this model's
vLLM says when it loads them, and the sums of the bytes afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcppo.common.config import VcppoConfig
from vcppo.common.transport.generator_calls import (
    Call,
    Canary,
    Dismiss,
    FinishWeightUpdate,
    InitWeightTransfer,
    UpdateWeights,
)
from vcppo.generator.rollout.canary_call import CanaryCall

_MAX_TEXT = 512  # characters of a name or an address
_MAX_REASON = 65_536
_MAX_VERSION = 2**62
_MAX_RANKS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_DIMENSIONS = 8
_MAX_TENSOR_BYTES = 1 << 37
_MORE_PATIENT = 2.0  # a learner's deadline may be this many times our own
_ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"), 1),
    **dict.fromkeys(("int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "float32"), 4),
    **dict.fromkeys(("int64", "float64"), 8),
}
_GROUP_KEYS = ("master_address", "master_port", "rank_offset", "world_size")
_GLOO_KEYS = (*_GROUP_KEYS, "group", "bind_host", "deadline_seconds")


@dataclass(frozen=True)
class CallLimits:
    """What one engine can take.

    Attributes:
        vocabulary: tokens that the model has.
        max_tokens: of one sequence that is scored.
        deadline_seconds: our own ``broadcast.deadline_seconds``.
        is_gloo: which form the infos of a weight group and an update have; else they are vLLM's, of NCCL.
    """

    vocabulary: int
    max_tokens: int
    deadline_seconds: float
    is_gloo: bool

    @classmethod
    def of(cls, config: VcppoConfig, vocabulary: int, backend: str) -> CallLimits:
        """Of an engine with a model of `vocabulary` tokens. vLLM wants room for one token more than it scores."""
        return cls(vocabulary, config.generator.max_model_len - 1, config.broadcast.deadline_seconds, backend == "gloo")

    def check(self, call: Call[Any]) -> None:
        """Let `call` pass. Raises ValueError naming the call, the argument, its value and what it must be."""
        match call:
            case Canary():
                CanaryCall.of_call(call).check(self.vocabulary, self.max_tokens)
            case InitWeightTransfer():
                self._check_group(call.init_info)
            case UpdateWeights():
                self._check_tensors(call.update_info)
            case FinishWeightUpdate():
                _integer(call.method, "policy_version", call.policy_version, 0, _MAX_VERSION)
            case Dismiss():
                if len(call.reason) > _MAX_REASON:
                    raise ValueError(f"{call.method}: reason has {len(call.reason)} characters, most: {_MAX_REASON}")

    def _check_group(self, info: Mapping[str, Any]) -> None:
        method = InitWeightTransfer.method
        wanted = _GLOO_KEYS if self.is_gloo else _GROUP_KEYS
        _keys(method, info, wanted, exactly=self.is_gloo)
        _text(method, "master_address", info["master_address"])
        _integer(method, "master_port", info["master_port"], 1, 65_535)
        size = _integer(method, "world_size", info["world_size"], 2, _MAX_RANKS)
        _integer(method, "rank_offset", info["rank_offset"], 1, size - 1)
        for name, value in info.items():
            if name not in _GLOO_KEYS and not isinstance(value, str | int | float):
                raise ValueError(f"{method}: {name[:40]} = {str(value)[:40]!r}: give text or a number")
        if self.is_gloo:
            _text(method, "group", info["group"])
            _text(method, "bind_host", info["bind_host"])
            seconds, most = info["deadline_seconds"], _MORE_PATIENT * self.deadline_seconds
            if type(seconds) not in (int, float) or not 0 < seconds <= most:
                raise ValueError(f"{method}: deadline_seconds = {str(seconds)[:40]}: give a number above 0 to {most:g}")

    def _check_tensors(self, info: Mapping[str, Any]) -> None:
        method = UpdateWeights.method
        wanted = ("names", "dtype_names", "shapes")
        _keys(method, info, (*wanted, "chunks") if self.is_gloo else wanted, exactly=self.is_gloo)
        for name in (*wanted, *(("chunks",) if self.is_gloo else ())):
            if type(info[name]) is not list or not 1 <= len(info[name]) <= _MAX_TENSORS:
                raise ValueError(f"{method}: {name} is no list of 1 to {_MAX_TENSORS} entries")
        num = len(info["names"])
        if not num == len(info["dtype_names"]) == len(info["shapes"]) == len(set(map(str, info["names"]))):
            raise ValueError(f"{method}: names, dtype_names and shapes differ in length, or a name comes twice")
        for name, kind, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            _text(method, "names", name)
            _check_tensor(name, kind, shape)
        if self.is_gloo:
            total = sum(_integer(method, "chunks", count, 1, num) for count in info["chunks"])
            if total != num:
                raise ValueError(f"{method}: chunks hold {total} tensors, names are {num}")


def _check_tensor(name: str, kind: Any, shape: Any) -> None:
    method = UpdateWeights.method
    if not isinstance(kind, str) or kind not in _ITEM_BYTES:
        raise ValueError(f"{method}: dtype_names: {str(kind)[:40]!r} of {name}: there are {', '.join(_ITEM_BYTES)}")
    if type(shape) is not list or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{method}: shapes: that of {name} is no list of at most {_MAX_DIMENSIONS} numbers")
    sizes = [_integer(method, f"shapes: {name}", size, 0, _MAX_TENSOR_BYTES) for size in shape]
    if math.prod(sizes) * _ITEM_BYTES[kind] > _MAX_TENSOR_BYTES:
        raise ValueError(f"{method}: shapes: {name} of {sizes} is larger than {_MAX_TENSOR_BYTES:,} bytes")


def _keys(method: str, info: Mapping[str, Any], wanted: tuple[str, ...], *, exactly: bool) -> None:
    missing = [name for name in wanted if name not in info]
    unknown = [str(name)[:40] for name in info if name not in wanted] if exactly else []
    odd = [str(name)[:40] for name in info if not isinstance(name, str)]
    if missing or unknown or odd or len(info) > len(wanted) + 16:
        raise ValueError(
            f"{method}: it must hold {', '.join(wanted)}; missing {missing}, unknown {(unknown or odd)[:5]}"
        )


def _integer(method: str, name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{method}: {name} = {str(value)[:40]}: give an integer from {least} to {most}")
    return value


def _text(method: str, name: str, value: Any) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_TEXT:
        raise ValueError(f"{method}: {name} = {str(value)[:40]!r}: give 1 to {_MAX_TEXT} characters")
