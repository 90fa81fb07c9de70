"""What a simulation of a run is given and what it answers; JSON between `vcppo plan --simulate` and the model.

The model is `vcppo.learner.simulation.model`. Seconds and tokens throughout.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class Workload(BaseModel):
    """One case: a learner and `num_generators` equal generators.

    Attributes:
        num_generators, slots, ahead: engines; sequences one samples at once; prompts it leases beyond these.
        batch_size, group_size, max_staleness, straggler: as in the config; `group_size` 1 unless groups are trained
            as one.
        lengths: response lengths to draw from, tokens.
        token_base_seconds, token_seconds_per_sequence: with n sequences at once, each gets its next token after
            base + n * per_sequence.
        lost_to_training: share of a generator's speed that is lost while the learner trains; above 0 on one machine.
        learner_seconds_per_token: to draw from, one for each step.
        other_seconds: of a step outside training, claiming and sending weights: records, ledger.
        checkpoint_seconds, checkpoint_every: how long one takes, and after how many steps.
        broadcast_seconds: of a weight update, generators at work with the new weights, which are being proved.
        pause_seconds: of a weight update, generators standing still; to draw from.
        pause_seconds_per_generator: added for each generator; `pause_seconds` are without it.
        store_seconds, store_seconds_per_token: what a trajectory costs the one thread of Redis.
        heartbeat_seconds, heartbeat_cost_seconds: a generator's heartbeat, how often and what it costs that thread.
        slow_share, slow_factor: this share of the generators, at least one if above 0, takes that many times as long.
        num_steps, warm_up_steps: how long to simulate, and what is left out of the result. Both sides keep going at
            the end as if the run were longer.
        seed: of lengths and of what is drawn for each step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_generators: PositiveInt
    slots: PositiveInt
    ahead: NonNegativeInt = 0
    batch_size: PositiveInt
    group_size: PositiveInt = 1
    max_staleness: NonNegativeInt
    straggler: Literal["wait", "drop"] = "wait"
    lengths: Annotated[list[PositiveInt], Field(min_length=1)]
    token_base_seconds: NonNegativeFloat
    token_seconds_per_sequence: PositiveFloat
    lost_to_training: Annotated[float, Field(ge=0, lt=1)] = 0.0
    learner_seconds_per_token: Annotated[list[PositiveFloat], Field(min_length=1)]
    other_seconds: NonNegativeFloat = 0.0
    checkpoint_seconds: NonNegativeFloat = 0.0
    checkpoint_every: PositiveInt = 1
    broadcast_seconds: NonNegativeFloat = 0.0
    pause_seconds: Annotated[list[NonNegativeFloat], Field(min_length=1)] = [0.0]
    pause_seconds_per_generator: NonNegativeFloat = 0.0
    store_seconds: NonNegativeFloat = 0.0
    store_seconds_per_token: NonNegativeFloat = 0.0
    heartbeat_seconds: PositiveFloat = 5.0
    heartbeat_cost_seconds: NonNegativeFloat = 0.0
    slow_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    slow_factor: Annotated[float, Field(ge=1)] = 1.0
    num_steps: PositiveInt = 24
    warm_up_steps: NonNegativeInt = 4
    seed: int = 0

    @property
    def heartbeat_share(self) -> float:
        """Of the time of Redis' thread."""
        return self.num_generators * self.heartbeat_cost_seconds / self.heartbeat_seconds


class Simulated(BaseModel):
    """What came of a case, after its first steps.

    Attributes:
        tokens_per_second, trajectories_per_second, seconds_per_step: trained.
        staleness: share of trained trajectories by staleness: versions between the weights that a response began with
            and those that trained on it.
        learner_waiting, learner_training, learner_sending, learner_other: shares of its time; together 1.
        generators_busy, generators_paused, generators_waiting: shares of all slots' time; together 1. Waiting is for
            prompts.
        store_busy: share of the time of Redis' thread.
        pause_seconds: mean of a weight update.
        expired: prompts given up (straggler: drop).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens_per_second: float
    trajectories_per_second: float
    seconds_per_step: float
    staleness: list[float]
    learner_waiting: float
    learner_training: float
    learner_sending: float
    learner_other: float
    generators_busy: float
    generators_paused: float
    generators_waiting: float
    store_busy: float
    pause_seconds: float
    expired: int

    @property
    def mean_staleness(self) -> float:
        """Versions."""
        return sum(versions * share for versions, share in enumerate(self.staleness))
