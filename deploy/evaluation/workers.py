"""`vcppo eval`: pass@1 and pass@k of models through vLLM, one process per model, side by side when there are cores."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.evaluation.evaluation_inputs import asked, evaluation_inputs
from vcppo.common.evaluation.intervals import wilson
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.check.machine import devices_of
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink
from vcppo.deploy.placement.gpus import Device, visible_to
from vcppo.deploy.placement.place import Part, one_a_gpu
from vcppo.deploy.placement.place import place as place_on
from vcppo.deploy.processes.cores import available_cores, malloc_environment, thread_environment
from vcppo.deploy.processes.supervisor import ProcessSpec, Supervisor
from vcppo.deploy.run.run_config import RunError
from vcppo.deploy.run.run_data import read_json

Z_95 = 1.959964
_HEADINGS = {
    "correct": "right", "wrong": "wrong", "unparsable": "unparsable",
    "timeout": "timeout", "crash": "crash", "cut": "cut",
}  # fmt: skip


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        name: of the model, as shown.
        pass_at_1: mean over problems, in [0, 1]; `low`, `high`: its 95 % interval.
        pass_at_k: None when fewer than k samples were drawn.
        mean_length: response tokens.
        responses: outcome, or ``cut`` → how many samples of how many; empty in results of an older version.
        left_out: problems beside `num_problems` whose prompts are too long.
    """

    name: str
    pass_at_1: float
    low: float
    high: float
    pass_at_k: float | None
    k: int
    mean_length: float | None
    num_problems: int
    responses: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    left_out: int = 0

    @property
    def standard_error(self) -> float:
        """Of pass@1, from its 95 % interval as if it were normal."""
        return (self.high - self.low) / (2 * Z_95)


def read_result(path: Path, name: str) -> EvalResult | None:
    """The result `vcppo.generator.evaluation.evaluate` wrote; None when there is none."""
    found = read_json(path)
    return None if found is None else parse_result(found, name)


def current_result(path: Path, name: str, config: VcppoConfig, model: Path) -> EvalResult | None:
    """The result, unless it is of other inputs (model files, settings, task, versions) than those there are now."""
    found = read_json(path)
    if found is None or found.get("inputs") != plan_key(evaluation_inputs(config, str(model))):
        return None
    return parse_result(found, name) if found.get("asked") == asked(config) else None


def parse_result(found: Mapping[str, object], name: str) -> EvalResult:
    """From the JSON of `vcppo.generator.evaluation.evaluate`."""

    def value(*keys: str) -> float | None:
        for key in keys:
            if isinstance(each := found.get(key), int | float):
                return float(each)
        return None

    share, count = value("pass_at_1"), int(value("num_problems") or 0)
    if share is None:
        raise VcppoError(f"the evaluation of {name} holds no pass_at_1: delete it and evaluate again")
    interval = found.get("pass_at_1_interval")
    low, high = interval if isinstance(interval, list) and len(interval) == 2 else wilson(share * count, count)
    return EvalResult(
        name, share, float(low), float(high), value("pass_at_k"), int(value("k") or 1), value("mean_length"), count,
        _responses(found.get("responses")), int(value("left_out") or 0),
    )  # fmt: skip


def _responses(found: object) -> dict[str, tuple[int, int]]:
    if not isinstance(found, dict):
        return {}
    pairs = {name: (each.get("count"), each.get("of")) for name, each in found.items() if isinstance(each, dict)}
    return {name: (count, of) for name, (count, of) in pairs.items() if type(count) is type(of) is int}


def gain(before: EvalResult, after: EvalResult) -> tuple[float, bool]:
    """How much pass@1 rose, and whether that is significant at 95 %.

    Taken as if the two had different problems, which is the careful side.
    """
    rise = after.pass_at_1 - before.pass_at_1
    error = math.hypot(before.standard_error, after.standard_error)
    return rise, rise > Z_95 * error


@dataclass(frozen=True)
class Place:
    """Where an evaluation's settings are read from and its results go."""

    config: Path
    results: Path

    @classmethod
    def of_run(cls, config: VcppoConfig) -> Place:
        """The task's own held-out problems: <run>/eval."""
        folder = RunFolder(config.run.path)
        return cls(folder.config, folder.eval)

    @classmethod
    def of_benchmark(cls, config: VcppoConfig, benchmark: str) -> Place:
        """<run>/eval/<benchmark>, with the settings beside the results: the run's own say another task."""
        results = RunFolder(config.run.path).create().eval / benchmark
        results.mkdir(parents=True, exist_ok=True)
        path = results / "config.yaml"
        write_whole(path, dump_config(config))
        return cls(path, results)

    def result(self, name: str) -> Path:
        """The JSON file of the model with this name."""
        return self.results / f"{name}.json"


def evaluation_specs(config: VcppoConfig, models: Mapping[str, Path], place: Place, workers: int) -> list[ProcessSpec]:
    """`workers` processes per model."""
    commands = {}
    for name, worker in ((name, worker) for name in models for worker in range(workers)):
        process = make_process_name("eval", name)
        process = process if workers == 1 else make_process_name(process, worker)
        commands[process] = [
            "vcppo.generator.evaluation.evaluate", "--config", str(place.config),
            "--model", str(models[name]), "--output", str(place.result(name)),
            "--worker", str(worker), "--num-workers", str(workers),
        ]  # fmt: skip
    return sampling_specs(config, "eval", commands)


def sampling_specs(config: VcppoConfig, role: str, commands: Mapping[str, Sequence[str]]) -> list[ProcessSpec]:
    """Processes with vLLM in them, GPUs and cores divided between those that run at once.

    Args:
        commands: name of the process → module and arguments.

    Raises:
        PlacementError: there are GPUs, and too few for one engine.
    """
    cores, places = available_cores(), _places(config)
    at_once = min(len(commands), most_at_once(config))
    share = len(cores) // at_once
    specs = []
    for index, (name, words) in enumerate(commands.items()):
        mine = cores[(index % at_once) * share : (index % at_once + 1) * share]
        environment = {
            **thread_environment(share, shared=False),
            **malloc_environment(),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **visible_to(places[index % at_once] if places else ()),
        }
        pinned = frozenset(mine) if config.launcher.pin_cores else None
        command = [sys.executable, "-m", *words, JSON_LOGS]
        specs.append(ProcessSpec(name, command, role=role, environment=environment, cores=pinned))
    return specs


def most_at_once(config: VcppoConfig) -> int:
    """How many processes with vLLM there is room for: as many as cores, on GPUs as many engines as fit."""
    cores, places = len(available_cores()), _places(config)
    return min(cores, len(places)) if places else cores


def _places(config: VcppoConfig) -> tuple[tuple[Device, ...], ...]:
    """Devices of as many engines as there can be; empty: all is on the CPU."""
    devices = devices_of(config)
    count = len(one_a_gpu(devices)) // config.generator.tensor_parallel_size
    return place_on(config, devices, [None], part=Part(0, max(1, count))).generators if devices else ()


def run_to_their_ends(supervisor: Supervisor, specs: Sequence[ProcessSpec], config: VcppoConfig) -> None:
    """As many at once as there is room for. Raises ProcessFailed."""
    at_once = most_at_once(config)
    for start in range(0, len(specs), at_once):
        batch = specs[start : start + at_once]
        for spec in batch:
            supervisor.start(spec)
        for spec in batch:
            supervisor.wait_exit(spec.name)


def evaluate(
    config: VcppoConfig,
    models: Mapping[str, Path],
    sink: LogSink,
    on_tick: Callable[[], None] | None = None,
    *,
    place: Place | None = None,
    workers: int = 1,
) -> list[EvalResult]:
    """Evaluate `models` (name → folder); results are kept in the place's <name>.json, by default of <run>/eval.

    Raises:
        VcppoError: a model folder is missing, or an evaluation failed, by name.
    """
    for name, model in models.items():
        if not (model / "config.json").exists():
            raise RunError(f"--model {model} ({name}) holds no model: no config.json in it")
    place = place or Place.of_run(config)
    with Supervisor(
        sink,
        stop_deadline_seconds=config.launcher.stop_deadline_seconds,
        start_deadline_seconds=float("inf"),  # it has no `ready`; its own deadlines hold
        on_tick=on_tick,
    ) as supervisor:
        for name in models:
            place.result(name).unlink(missing_ok=True)
        run_to_their_ends(supervisor, evaluation_specs(config, models, place, workers), config)
    return [result for name in models if (result := read_result(place.result(name), name))]


def eval_table(results: Sequence[EvalResult]) -> Table:
    """pass@1 ± interval, pass@k if k is more than 1, mean length."""
    k = max((result.k for result in results), default=1)
    pass_at_k = [f"pass@{k}"] if k > 1 else []
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "pass@1", "95 % interval", *pass_at_k, "mean length", "problems"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in results:
        table.add_row(
            escape(result.name),
            f"{result.pass_at_1:.3f}",
            f"{result.low:.3f} to {result.high:.3f}",
            *(["–" if result.pass_at_k is None else f"{result.pass_at_k:.3f}"] if pass_at_k else []),
            "–" if result.mean_length is None else f"{result.mean_length:.0f}",
            str(result.num_problems) + (f" ({result.left_out} too long, left out)" if result.left_out else ""),
        )
    return table


def outcome_table(results: Sequence[EvalResult]) -> Table:
    """What became of the responses: counts, shares and 95 % intervals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "responses", *_HEADINGS.values()):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for result in results:
        if result.responses:
            total = max(of for _, of in result.responses.values())
            table.add_row(
                escape(result.name),
                str(total),
                *(_count(*result.responses.get(name, (0, total))) for name in _HEADINGS),
            )
    return table


def _count(count: int, of: int) -> str:
    return f"{count} ({count / of:.1%})" if of and count else str(count)


def print_table(results: Sequence[EvalResult]) -> None:
    """The tables on stdout."""
    Console().print(eval_table(results))
    if any(result.responses for result in results):
        Console().print("")
        Console().print(outcome_table(results))
        Console().print("cut: by sampling.max_response_tokens, whatever the outcome")
