"""The situations: each a few responses and settings, and the sentence it checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.conformance.interface import FinishReason, Settings, Shard

RUBBISH = 1e3  # what stands at padding
LONGEST = 32_768


@dataclass(frozen=True)
class Case:
    """Attributes:
    name: short, as in the table.
    what: what must hold.
    tolerance: absolute, on numbers of size about 1.
    exact_targets: value targets must be the outcome to the last bit.
    """

    name: str
    what: str
    shards: tuple[Shard, ...]
    settings: Settings = field(default_factory=Settings)
    tolerance: float = 1e-4
    exact_targets: bool = False


@dataclass(frozen=True)
class Response:
    """``spans``: lengths of action text, tool text, action text, … in turn; ``on_last_token``: the outcome stands on
    the response's last token, be it tool text, instead of the last action."""

    spans: tuple[int, ...]
    outcome: float
    finish_reason: FinishReason = "stop"
    on_last_token: bool = False
    seed: int = 0
    group: int = 0


def shard(responses: Sequence[Response], *, width: int | None = None) -> Shard:
    """Values are drawn per response, so the same response has the same ones in whatever company."""
    lengths = np.array([sum(each.spans) for each in responses], np.int64)
    columns = int(max(lengths, default=0)) if width is None else width
    rewards = np.zeros((len(responses), columns), np.float32)
    values = np.full((len(responses), columns + 1), RUBBISH, np.float32)
    mask = np.zeros((len(responses), columns), np.bool_)
    for s, each in enumerate(responses):
        length = int(lengths[s])
        acts = np.repeat([turn % 2 == 0 for turn in range(len(each.spans))], each.spans)
        mask[s, :length] = acts
        values[s, : length + 1] = np.random.default_rng([each.seed, length, len(each.spans)]).normal(size=length + 1)
        rewards[s, length - 1 if each.on_last_token else np.flatnonzero(acts)[-1]] = each.outcome
    reasons, groups = (
        zip(*((each.finish_reason, each.group) for each in responses), strict=True) if responses else ((), ())
    )
    return Shard(rewards, values, mask, lengths, reasons, groups)


def _case(name: str, what: str, *responses: Response, **more: object) -> Case:
    return Case(name, what, (shard(responses),), **more)  # type: ignore[arg-type]


RIGHT, WRONG = Response((24,), 1.0), Response((9,), -1.0)
CUT = Response((24,), -1.0, "length", seed=1)
TURNS = Response((7, 5, 8, 3, 6), 1.0)
SAME_LENGTH = (
    RIGHT,
    Response((24,), -1.0, seed=2),
    Response((24,), -1.0, seed=3),
)  # nothing here but the matter itself
SEVERAL = (RIGHT, WRONG, Response((1,), 1.0), Response((17,), -1.0), Response((3,), 1.0))


def all_cases() -> list[Case]:
    return [*_ends(), *_layout(), *_turns(), *_lambdas(), *_whitening(), *_groups(), *_lengths()]


def _ends() -> list[Case]:
    cut = {mode: Settings(truncation=mode) for mode in ("terminal", "bootstrap", "mask")}  # type: ignore[arg-type]
    wide = shard([RIGHT], width=40)
    return [
        _case("EOS", "after a true end V is 0, whatever the critic says of the state after it", RIGHT),
        Case("EOS before padding", "the same response, the same estimates, in a wider array", (wide,)),
        _case("cut: terminal", "a cut response is an end with its outcome", CUT, RIGHT, settings=cut["terminal"]),
        _case("cut: bootstrap", "V after the last token stands in for the outcome", CUT, RIGHT,
              settings=cut["bootstrap"]),
        _case("cut: mask", "a cut response is not trained on; others are as ever", CUT, RIGHT, settings=cut["mask"]),
        _case("cut: mask, whitened", "nor does it enter the mean and variance of whitening", CUT, *SAME_LENGTH,
              settings=Settings(truncation="mask", whiten=True)),
    ]  # fmt: skip


def _layout() -> list[Case]:
    return [
        _case("padding", "values at padding, here 1000, reach nothing", *SEVERAL),
        Case("packing", "the estimates of a response do not depend on its neighbours or their order",
             (shard([SEVERAL[i] for i in (2, 0, 4, 1, 3)], width=33),)),
        Case("empty shard", "a rank without responses changes nothing and gets empty arrays",
             (shard(SAME_LENGTH), shard([]))),
        Case("nothing at all", "all ranks empty: empty arrays, no error", (shard([]), shard([]))),
    ]  # fmt: skip


def _turns() -> list[Case]:
    return [
        _case("tool text between turns", "is part of the state: no step, no discount, its V not zeroed into the sum",
              TURNS, RIGHT),
        _case("tool text, λ = 1", "the same at λ = 1, where most mistakes hide", TURNS, RIGHT,
              settings=Settings(lambda_actor=1.0, lambda_critic=1.0)),
        _case("reward on a masked token", "an outcome on closing tool text belongs to the last action",
              Response((21, 3), 1.0, on_last_token=True), RIGHT),
    ]  # fmt: skip


def _lambdas() -> list[Case]:
    one = Settings(lambda_actor=1.0, lambda_critic=1.0)
    return [
        _case("λ = 1", "advantage = outcome − V, target = outcome", *SAME_LENGTH, settings=one),
        _case("λ = 1, to the bit", "float32 targets equal the outcome exactly: no V + (R − V)", *SAME_LENGTH,
              settings=one, exact_targets=True),
        _case("decoupled λ", "λ_actor = 0.95 and λ_critic = 1 in one batch", *SAME_LENGTH,
              settings=Settings(lambda_actor=0.95, lambda_critic=1.0)),
        _case("λ = 0", "one-step TD errors", *SAME_LENGTH, settings=Settings(lambda_actor=0.0, lambda_critic=0.0)),
        _case("γ = 0.99", "discount and λ multiply", *SAME_LENGTH, settings=Settings(gamma=0.99)),
    ]  # fmt: skip


def _whitening() -> list[Case]:
    on = Settings(whiten=True)
    return [
        _case("whitening", "zero mean, unit variance; value targets untouched", *SAME_LENGTH, settings=on),
        _case("whitening and padding", "over actions only", *SEVERAL,
              settings=Settings(lambda_actor=1.0, lambda_critic=1.0, whiten=True)),
        Case("whitening over ranks", "mean and variance are of all ranks, not of each",
             (shard(SAME_LENGTH[:1]), shard(SAME_LENGTH[1:])), on),
        Case("whitening, one rank empty", "an empty rank takes part and changes nothing",
             (shard(SAME_LENGTH), shard([])), on),
        _case("whitening one action", "finite, not a division by zero", Response((1,), 1.0), settings=on),
    ]  # fmt: skip


def _groups() -> list[Case]:
    def group(number: int, *outcomes: float) -> list[Response]:
        return [Response((5 + 7 * i,), outcome, group=number) for i, outcome in enumerate(outcomes)]

    unlike, alike = (
        [*group(0, 1.0, -1.0, -1.0, 0.5), *group(1, 0.0, 1.0)],
        [*group(2, *[0.1] * 3), *group(3, *[1.0] * 4)],
    )
    mean, others = Settings(kind="group_mean"), Settings(kind="leave_one_out")
    zero = "a group of equal rewards has exactly 0, whatever other groups and lengths there are"
    return [
        _case("group mean", "GRPO: less the group's mean, over its standard deviation", *unlike, settings=mean),
        _case("group mean, rewards alike", zero, *unlike, *alike, settings=mean),
        _case("group mean, scaled", "whitening a group estimator changes the scale only", *unlike, *alike,
              settings=Settings(kind="group_mean", whiten=True)),
        _case("leave one out", "RLOO: less the mean of the group's others", *unlike, settings=others),
        _case("leave one out, rewards alike", zero, *unlike, *alike, settings=others),
        _case("a group of one", "has no baseline, and 0", *unlike, *group(2, 1.0), settings=others),
        Case("REINFORCE++", "the outcome at every action, whitened over the actions of all ranks",
             (shard(unlike), shard(alike)), Settings(kind="reinforce_plus_plus", whiten=True)),
        Case("REINFORCE++ baseline", "the same with the outcome less the group's mean",
             (shard(unlike), shard(alike)), Settings(kind="reinforce_plus_plus_baseline", whiten=True)),
    ]  # fmt: skip


def _lengths() -> list[Case]:
    what = "float32 in, within 1e-4 of float64"
    return [
        _case(f"T = {length:,}", what, Response((length,), 1.0), settings=Settings(lambda_actor=lam, lambda_critic=lam))
        for length, lam in ((1, 0.95), (2, 0.95), (1024, 0.95), (LONGEST, 0.95))
    ] + [_case(f"T = {LONGEST:,}, λ = 1", what, Response((LONGEST,), 1.0),
               settings=Settings(lambda_actor=1.0, lambda_critic=1.0))]  # fmt: skip
