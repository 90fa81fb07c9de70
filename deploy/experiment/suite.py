"""What a suite is: a YAML file of arms and seeds, and the configs of its runs.

name: quick                      # runs go to <folder>/<name>/<arm>-seed<n>
base: ../arms/base.yaml          # its cold start is every arm's, one a seed
seeds: [0, 1, 2]                 # cold_start_seed: 0 would start them all from seed 0's
settings: {rl: {num_steps: 16}}  # laid over every arm alike
arms:
  - config: ../arms/vc_ppo.yaml  # its name is the file's; paths are relative to the suite
  - config: ../arms/ppo.yaml
    name: ppo_eos_only
    seeds: [0, 1]
    reward_model: {prefix_fraction: 0.0}   # critic.init is then this seed's model of these settings

With a ``sweep`` every arm runs with every value of one setting (runs are <arm>-<value>-seed<n>), then with its best
value and fresh seeds: `vcppo.deploy.run.sweep`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.config.loading import as_overrides
from vcppo.common.errors import ConfigError
from vcppo.common.files.fingerprints import contents_named
from vcppo.common.run_folder import RunFolder
from vcppo.common.text.yaml_text import Refused, one_line, read_yaml
from vcppo.deploy.run.sweep import Sweep, variant_name

RECORDED = "recorded"
"""reward_model.rollouts of an arm: what value pretraining has recorded for this seed."""

SUITES = Path(__file__).parent.parent / "configs" / "suites"
_OWN_CRITICS = ("value_pretrained", "policy")


class Arm(BaseModel):
    """One arm of a suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path
    name: str = ""
    seeds: tuple[int, ...] | None = None
    settings: dict[str, object] = Field(default_factory=dict)
    reward_model: dict[str, object] | None = None


class Suite(BaseModel):
    """The file, with `folder` and paths resolved by `load_suite`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    description: str = ""
    base: Path
    folder: Path = Path("runs")
    seeds: tuple[int, ...] = Field(min_length=1)
    cold_start_seed: int | None = None
    """Every seed's runs start from this seed's cold start; None: each from its own."""
    settings: dict[str, object] = Field(default_factory=dict)
    sweep: Sweep | None = None
    """Values of one setting that every arm runs with."""
    reference: str | None = None
    """The arm that the report compares all others with; None: only the paper's claims are compared."""
    minutes_per_run: float | None = Field(default=None, gt=0)
    """What a run takes, as was measured once: for the estimate of a dry run until this suite has finished one."""
    arms: tuple[Arm, ...] = Field(min_length=1)

    @property
    def path(self) -> Path:
        """Where its runs are."""
        return self.folder / self.name

    def cold_start(self, seed: int) -> tuple[str, int]:
        """Name and seed of the cold start that this seed's runs begin with."""
        made_with = seed if self.cold_start_seed is None else self.cold_start_seed
        return f"cold_start-seed{made_with}", made_with


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Attributes:
        config: the run's tree; model.path is the seed's cold start.
        cold_start: the tree by which that is made, in a run folder of its own.
        reward_model: the tree by which the critic's starting point is made; None: the arm needs none.
        value: of the suite's sweep; None: it has none.
    """

    arm: str
    seed: int
    config: VcppoConfig
    cold_start: VcppoConfig
    reward_model: VcppoConfig | None
    value: float | None = None

    @property
    def folder(self) -> RunFolder:
        """Where this run keeps its files."""
        return RunFolder(self.config.run.path)

    @property
    def pretrains(self) -> bool:
        """Whether its critic comes out of value pretraining."""
        algorithm = self.config.algorithm
        return algorithm.has_critic and self.config.critic.init == "value_pretrained"

    @cached_property
    def recording(self) -> str:
        """Equal for runs whose value pretraining records the same trajectories."""
        config = self.config
        parts = config.model_dump(mode="json", include={"model", "task", "sampling"})
        parts["generator"] = config.generator.model_dump(
            mode="json", include={"dtype", "max_model_len", "engine_options", "tensor_parallel_size"}
        )
        parts["files"] = contents_named([config.task.name, config.task.options])
        return _digest([parts, config.run.seed, config.rl.group_size, config.value_pretraining.num_trajectories])

    @cached_property
    def critic(self) -> str:
        """Equal for runs whose value pretraining ends with the same critic."""
        config = self.config
        own = {"truncation": config.algorithm.truncation, "gamma": config.algorithm.gamma}
        stage = config.value_pretraining.model_dump(mode="json")
        optimizer = config.rl.model_dump(mode="json", include={"weight_decay", "adam_beta2", "max_grad_norm"})
        return _digest([self.recording, own, stage, optimizer])


def load_suite(path: Path) -> Suite:
    """Read a suite: a file, or the name of one of ours. Raises ConfigError, one line a problem."""
    file = path if path.suffix in (".yaml", ".yml") or path.exists() else SUITES / f"{path}.yaml"
    try:
        tree = read_yaml(file.read_text(encoding="utf-8"))
        suite = Suite.model_validate(tree)
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(each.stem for each in SUITES.glob("*.yaml")))
        raise ConfigError(
            f"{file}: can't be read ({one_line(error)}): give a suite's file, or one of {known}"
        ) from None
    except (Refused, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: is not valid YAML: {one_line(error)}") from None
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, each['loc']))} = {each['input']!r}: {each['msg']}" for each in error.errors()]
        raise ConfigError(*(f"{file}: {line[:300]}" for line in lines)) from None
    arms = tuple(
        each.model_copy(update={"config": file.parent / each.config, "name": each.name or each.config.stem})
        for each in suite.arms
    )
    names = [each.name for each in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{file}: arms: {twice[0]!r} is there twice: give one of them another name")
    chosen_by = {seed for arm in arms for seed in (arm.seeds or suite.seeds)}
    if suite.sweep and (both := sorted(chosen_by.intersection(suite.sweep.best_seeds))):
        raise ConfigError(
            f"{file}: sweep.best_seeds = {list(suite.sweep.best_seeds)}: with seed {both[0]} a value is chosen: give it"
            " seeds that neither the suite's seeds nor an arm's have"
        )
    if suite.reference not in (None, *names):
        raise ConfigError(f"{file}: reference = {suite.reference!r}: is no arm of it: name one of {', '.join(names)}")
    return suite.model_copy(update={"base": file.parent / suite.base, "arms": arms})


def plan_runs(
    suite: Suite,
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Sequence[str] = (),
    best: Mapping[str, float] | None = None,
) -> list[Run]:
    """The runs, seed by seed, in the suite's order of arms: what fits is asked for by `arms` and `seeds`.

    Every config is loaded here, so that what is wrong in the last arm is said before the first one starts.

    Args:
        best: with a sweep, the value of each arm for which one was chosen: its runs with fresh seeds are added.

    Raises:
        ConfigError: an arm or seed the suite has not, or a config that can't be used.
    """
    unknown = sorted(set(arms) - {arm.name for arm in suite.arms})
    if unknown:
        known = ", ".join(arm.name for arm in suite.arms)
        raise ConfigError(f"--arm {unknown[0]}: suite {suite.name} has {known}")
    runs = [
        _run(suite, arm, seed, overrides, value)
        for seed in _all_seeds(suite)
        if not seeds or seed in seeds
        for arm in suite.arms
        if not arms or arm.name in arms
        for value in _values(suite, arm, seed, best or {})
    ]
    if not runs and not set(seeds).intersection(_all_seeds(suite)):
        raise ConfigError(f"--seed {', '.join(map(str, seeds))}: suite {suite.name} has {_all_seeds(suite)}")
    return runs


def _all_seeds(suite: Suite) -> list[int]:
    fresh = suite.sweep.best_seeds if suite.sweep else ()
    return sorted({*fresh, *(seed for arm in suite.arms for seed in (arm.seeds or suite.seeds))})


def _values(suite: Suite, arm: Arm, seed: int, best: Mapping[str, float]) -> Iterator[float | None]:
    """What the arm runs with, with this seed: every value of the sweep, the best one, or (None) the suite has none."""
    if seed in (arm.seeds or suite.seeds):
        yield from suite.sweep.values if suite.sweep else (None,)
    elif suite.sweep and seed in suite.sweep.best_seeds and arm.name in best:
        yield best[arm.name]


def _run(suite: Suite, arm: Arm, seed: int, overrides: Sequence[str], value: float | None) -> Run:
    shared = _shared_overrides(suite)
    cold_name, cold_seed = suite.cold_start(seed)
    cold_folder = suite.path / cold_name / "cold_start"
    mine = [f"run.folder={suite.path}", f"run.seed={seed}", f"model.path={cold_folder}", f"sft.output={cold_folder}"]
    cold_start = load_config(suite.base, [*shared, *overrides, *mine, f"run.seed={cold_seed}", f"run.name={cold_name}"])
    own, name = [*shared, *as_overrides(arm.settings), *overrides, *mine], arm.name
    if suite.sweep is not None and value is not None:
        section, _, field = suite.sweep.field.rpartition(".")
        own += as_overrides({field: value}, f"{section}.")
        name = variant_name(arm.name, value)
    reward_model = None
    if arm.reward_model is not None:
        reward_model = _reward_model(suite, arm, seed, [*shared, *overrides, *mine])
        own.append(f"critic.init={RunFolder(reward_model.run.path).reward_model}")
    config = load_config(arm.config, [*own, f"run.name={name}-seed{seed}"])
    if reward_model is None and config.algorithm.has_critic:
        _check_critic(suite, arm, config)
    return Run(arm.name, seed, config, cold_start, reward_model, value)


def _shared_overrides(suite: Suite) -> list[str]:
    """The suite's settings. Where they name a task, none of the options of the base's task are left."""
    task = suite.settings.get("task")
    renamed = isinstance(task, Mapping) and "name" in task
    return [*(["task.options={}"] if renamed else []), *as_overrides(suite.settings)]


def _check_critic(suite: Suite, arm: Arm, config: VcppoConfig) -> None:
    init = config.critic.init
    if init not in _OWN_CRITICS and init.startswith("runs/arms/"):
        raise ConfigError(
            f"suite {suite.name}: arm {arm.name}: critic.init = {init} is a place holder: give the arm a reward_model "
            "({} for the default settings), or name a model in its settings"
        )


def _reward_model(suite: Suite, arm: Arm, seed: int, overrides: Sequence[str]) -> VcppoConfig:
    """One for all arms of the seed with the same settings."""
    assert arm.reward_model is not None
    settings = dict(arm.reward_model)
    if settings.get("rollouts") == RECORDED:
        settings["rollouts"] = str(recorded_at(suite, seed))
    name = f"reward_model-{_digest(arm.reward_model)[:8]}-seed{seed}"
    return load_config(suite.base, [*overrides, *as_overrides({"reward_model": settings}), f"run.name={name}"])


def recorded_at(suite: Suite, seed: int) -> Path:
    """Where the rollouts for this seed's reward models are put once some arm has recorded them."""
    cold_name, cold_seed = suite.cold_start(seed)
    return suite.path / cold_name / ("recorded.msgpack" if seed == cold_seed else f"recorded-seed{seed}.msgpack")


def _digest(parts: object) -> str:
    return blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
