"""What of a run depends on which setting: so what may change on a run, and what is made again when it does. Pure.

A run makes three things, each from those before it:

    recording   responses of the frozen policy, with their rewards     value_pretraining/trajectories.msgpack
    critic      trained on the recording                               value_pretraining/critic, decision.json
    RL          weights, optimizers and the steps done                 checkpoints/, trained.jsonl

`DEPENDENTS` says which of them a setting shapes; `consequence` what a change of it means for a run that has come so
far. What is made again on its own is the critic: it takes seconds to minutes and needs no generator. Responses and RL
steps are never thrown away by a changed setting: such a change is refused, and the refusal names the way
(`vcppo up --start-over`). Before a thing was made, whatever shapes it may change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vcppo.common.config.reward_sources import JudgeConfig

RlUse = Literal["no", "goes_on", "begins"]
Consequence = Literal["nothing", "rl_goes_on", "critic_again", "recording_goes_on", "refused"]
StartOver = Literal["rl", "value_pretraining", "run"]


class Dependents(NamedTuple):
    """What a setting shapes.

    Attributes:
        recording: the recorded responses or their rewards. What shapes them shapes the critic too.
        critic: the critic of value pretraining, or whether it passes.
        rl: ``no``; ``goes_on``: RL may take a new value from its next step on; ``begins``: RL has to begin with it.
        cold_start: the cold start is made with it: a run from another one is another run.
        reward_model: the reward model is; `vcppo reward-model` makes it again by itself.
    """

    recording: bool = False
    critic: bool = False
    rl: RlUse = "no"
    cold_start: bool = False
    reward_model: bool = False


_NOTHING = Dependents()
_GOES_ON = Dependents(rl="goes_on")
_CRITIC = Dependents(critic=True)
_CRITIC_AND_RL = Dependents(critic=True, rl="goes_on")
_EVERYTHING = Dependents(recording=True, critic=True, rl="begins")
_BEGINS = Dependents(rl="begins")
_CRITIC_AND_BEGINS = Dependents(critic=True, rl="begins")

# A name that ends in a dot stands for the whole section; the longest name that fits counts.
DEPENDENTS: Mapping[str, Dependents] = {
    "run.": _EVERYTHING,
    "run.folder": _NOTHING,
    "model.": _EVERYTHING,
    "model.trust_remote_code": _NOTHING,
    "task.": _EVERYTHING,
    "task.verifier_processes": _NOTHING,
    "task.environment_calls": _NOTHING,
    "task.endpoint_host": _NOTHING,
    "task.overlong": _GOES_ON,  # which prompts are passed over; those recorded stay
    "task.options.require_isolation": _NOTHING,  # how programs are judged, not how well
    # A response judged under another limit may have another outcome.
    "task.verifier_timeout_seconds": Dependents(recording=True, critic=True, rl="goes_on"),
    "task.verifier_memory_mib": Dependents(recording=True, critic=True, rl="goes_on"),
    "task.max_rollout_seconds": Dependents(recording=True, critic=True, rl="goes_on"),
    # How a source of rewards is reached; where it is may change too, as a service that has moved.
    "task.reward_service.": _NOTHING,
    "task.reward_service.url": Dependents(recording=True, critic=True, rl="goes_on"),
    "task.reward_service.send_messages": _EVERYTHING,
    "task.judge.": _NOTHING,
    "task.judge.url": Dependents(recording=True, critic=True, rl="goes_on"),
    **dict.fromkeys(
        (
            "task.judge.model",
            "task.judge.template",
            "task.judge.template_file",
            "task.judge.pattern",
            "task.judge.scale",
            "task.judge.votes",
            "task.judge.temperature",
            "task.judge.max_tokens",
        ),
        _EVERYTHING,
    ),
    "sampling.": _EVERYTHING,
    "sft.": Dependents(cold_start=True),
    "sft.output": _NOTHING,
    "reward_model.": Dependents(reward_model=True),
    "algorithm.": _GOES_ON,
    "algorithm.advantage_estimator": _BEGINS,
    "algorithm.gamma": _CRITIC_AND_RL,
    "algorithm.truncation": _CRITIC_AND_RL,
    "critic.": _GOES_ON,
    "critic.init": _BEGINS,
    **dict.fromkeys(  # what the critic's weights and its optimizer's state are
        (
            "critic.model",
            "critic.freeze",
            "critic.head",
            "critic.num_bins",
            "critic.value_min",
            "critic.value_max",
            "critic.sigma_ratio",
            "critic.sees_log_probs",
        ),
        _CRITIC_AND_BEGINS,
    ),
    "value_pretraining.": _CRITIC,
    "value_pretraining.min_explained_variance": _NOTHING,  # the figure is there: it is only judged anew
    "rl.": _GOES_ON,
    "rl.actor_freeze": _BEGINS,  # which weights the optimizer has a state of
    "rl.critic_freeze": _BEGINS,
    "rl.difficulty.enabled": _BEGINS,  # which problem a group asks
    "rl.group_size": _EVERYTHING,  # which prompt is whose sample
    "rl.weight_decay": _CRITIC_AND_RL,
    "rl.adam_beta2": _CRITIC_AND_RL,
    "rl.max_grad_norm": _CRITIC_AND_RL,
    "learner.": _NOTHING,
    "learner.num_ranks": _GOES_ON,  # checkpoints are read by name where they are cut otherwise
    "learner.zero_stage": _GOES_ON,
    "generator.": _NOTHING,
    "generator.dtype": _GOES_ON,
    "redis.": _NOTHING,
    "transport.": _NOTHING,
    "security.": _NOTHING,
    "broadcast.": _NOTHING,
    "logging.": _NOTHING,
    "metrics.": _NOTHING,
    "watchdog.": _NOTHING,
    "launcher.": _NOTHING,
    "eval.": _NOTHING,
}


@dataclass(frozen=True)
class Begun:
    """How far a run has come.

    Attributes:
        recorded: responses for value pretraining are on disk.
        rl: a step of RL was trained.
        longest_tokens: of a recorded prompt with the longest response it could get; None: not known.
    """

    recorded: bool = False
    rl: bool = False
    longest_tokens: int | None = None

    @property
    def anything(self) -> bool:
        """Whether a change of the config can matter at all: something is recorded or trained."""
        return self.recorded or self.rl


class Change(NamedTuple):
    """One setting that differs between the run's config and the one given now."""

    field: str
    before: object
    now: object

    @property
    def dependents(self) -> Dependents:
        """What was made with this setting, by `DEPENDENTS`."""
        return dependents_of(self.field)

    @property
    def harmless(self) -> bool:
        """Whether what was made before and after it may be compared."""
        return self.dependents == _NOTHING or self.field in _HARMLESS

    def __str__(self) -> str:
        return f"{self.field} is {self.before!r} in the run and {self.now!r} now"


def dependents_of(field: str) -> Dependents:
    """Of a dotted name; one in no known section is taken to shape everything."""
    fitting = [name for name in DEPENDENTS if field == name or (name.endswith(".") and field.startswith(name))]
    return DEPENDENTS[max(fitting, key=len)] if fitting else _EVERYTHING


def consequence(change: Change, begun: Begun) -> Consequence:
    """What a changed setting means for a run that has come so far."""
    uses = change.dependents
    if change.before in ({}, None) and change.now in ({}, None):
        return "nothing"  # an empty section that is now named by its fields
    if change.field == "generator.max_model_len":
        return _of_model_length(change, begun)
    if change.field == "value_pretraining.num_trajectories" and begun.recorded and not begun.rl:
        return "recording_goes_on" if _is_more(change) else "critic_again"
    if uses.cold_start and begun.anything:
        return "refused"
    if begun.rl:
        if uses.rl == "goes_on":
            return "rl_goes_on"
        return "refused" if uses.rl == "begins" or (uses.critic and begun.recorded) else "nothing"
    if begun.recorded:
        return "refused" if uses.recording else "critic_again" if uses.critic else "nothing"
    return "nothing"


def start_over(changes: Iterable[Change], begun: Begun) -> StartOver:
    """What has to be made again, at least, for these refused changes."""
    found = [change.dependents for change in changes]
    if any(uses.cold_start for uses in found):
        return "run"
    if begun.recorded and any(uses.recording for uses in found):
        return "value_pretraining"
    return "rl"


def settings_of(what: Literal["recording", "critic", "rl"], tree: Mapping[str, object]) -> dict[str, object]:
    """The settings of a flat tree (dotted name → value) that shape a thing; recognises a stale one by them.

    num_trajectories is left out: of a recording it is only how far it is to go.
    """
    chosen: dict[str, object] = {}
    for field, value in tree.items():
        uses = dependents_of(field)
        shapes = {"recording": uses.recording, "critic": uses.critic or uses.recording, "rl": uses.rl != "no"}[what]
        if shapes and field not in _KNOWN_OTHERWISE and not (field in _CAME_LATER and value == _CAME_LATER[field]):
            chosen[field] = value
    return chosen


# Not compared as text: the run's name (its folder is), models and other recordings (their files are), and how far the
# recording goes.
_KNOWN_OTHERWISE = (
    "run.name",
    "model.path",
    "critic.model",
    "value_pretraining.num_trajectories",
    "value_pretraining.recordings",
)
# Notes of before these were there lack them: at their default they are left out.
_CAME_LATER: Mapping[str, object] = {
    "task.max_turns": 8,
    "task.max_segments": 8,
    "task.max_rollout_seconds": 300.0,
    "task.reward_range": None,
    "task.reward_weights": {},
    "task.rewards": [],
    "task.format_pattern": None,
    "task.soft_overlong_cache": 0,
    "task.soft_overlong_penalty": 1.0,
    "task.length_cost": 0.0,
    "task.reward_service.url": None,
    "task.reward_service.send_messages": False,
    "task.judge.url": None,
    **{
        f"task.judge.{name}": JudgeConfig.model_fields[name].default
        for name in (
            "model",
            "template",
            "template_file",
            "pattern",
            "scale",
            "votes",
            "temperature",
            "max_tokens",
        )
    },
}
_HARMLESS = ("rl.num_steps", "generator.max_model_len", "generator.dtype")


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """A config tree as dotted name → value; an empty section is a value."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[Change]:
    """Settings of two flat trees that differ, by dotted name."""
    return [
        Change(name, before.get(name), now.get(name))
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def _of_model_length(change: Change, begun: Begun) -> Consequence:
    """Longer is always right; shorter only while nothing that is recorded or open is longer."""
    if _is_more(change) or not begun.anything:
        return "nothing"
    fits = begun.longest_tokens is not None and isinstance(change.now, int) and change.now >= begun.longest_tokens
    return "nothing" if fits and not begun.rl else "refused"


def _is_more(change: Change) -> bool:
    return isinstance(change.before, int) and isinstance(change.now, int) and change.now > change.before
