"""What a check gives back: numbers with their tolerance, speeds, and what it could not run. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Place(NamedTuple):
    """Where a check computes.

    Attributes:
        device: of the code under test. References are always float64 on the CPU.
        quick: small sizes; speeds then say nothing.
    """

    device: torch.device
    quick: bool

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU under it."""
        return self.device.type == "cuda"

    def size(self, full: int, quick: int) -> int:
        """A problem size."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Number:
    """One comparison.

    Attributes:
        what: of the product's was computed.
        error: how far it is from `against`, as `measure` says.
        tolerance: the largest error that passes.
        measure: what the error is ("of the norm", "nats at most").
    """

    what: str
    error: float
    tolerance: float
    measure: str = "of the norm"
    against: str = "float64 on the CPU"

    @property
    def is_right(self) -> bool:
        """False for a value that is not a number, too."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Speed:
    """One figure that nobody is held to.

    Attributes:
        share: percent of what the device itself reached in this run; None: not a share.
        against: of what.
    """

    what: str
    value: float
    unit: str
    share: float | None = None
    against: str = ""


@dataclass
class Findings:
    """Of one check."""

    numbers: list[Number] = field(default_factory=list)
    speeds: list[Speed] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @classmethod
    def none(cls, reason: str) -> Findings:
        """A check that could not run at all."""
        return cls(not_run=[reason])

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Findings:
        """Of `as_dict`."""
        return cls(
            [Number(**each) for each in values["numbers"]], [Speed(**each) for each in values["speeds"]],
            list(values["not_run"]),
        )  # fmt: skip


def distance(found: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of `reference`, in float64 on the CPU; shapes alike. NaN stays NaN."""
    wanted = reference.detach().double().cpu()
    difference = found.detach().double().cpu() - wanted
    return float(difference.norm() / wanted.norm().clamp(min=1e-300))


def most(found: Tensor, reference: Tensor) -> float:
    """The largest absolute difference, in float64 on the CPU. NaN stays NaN."""
    return float((found.detach().double().cpu() - reference.detach().double().cpu()).abs().max())


def distances(
    what: str, names: Iterable[str], found: Iterable[Tensor], reference: Iterable[Tensor], tolerance: float
) -> list[Number]:
    """A `Number` for each tensor."""
    return [
        Number(f"{what}: {name}", distance(one, other), tolerance)
        for name, one, other in zip(names, found, reference, strict=True)
    ]
