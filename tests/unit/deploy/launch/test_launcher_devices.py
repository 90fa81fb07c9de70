"""What `vcppo up` starts on machines whose GPUs are only counted: who sees which."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.deploy.placement.test_place import config, gpus
from vcppo.deploy.evaluation import workers
from vcppo.deploy.launch import launcher as module
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.processes.process_spec import ProcessSpec

WORD = "CUDA_VISIBLE_DEVICES"


@pytest.fixture(autouse=True)
def _nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (WORD, "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


def launcher(tmp_path: Path, devices: list[Device], *sizes: int, **sections: Any) -> Launcher:
    return Launcher(config(*sizes, run={"folder": tmp_path}, **sections), LogSink(tmp_path, "run"), devices=devices)


def seen(spec: ProcessSpec) -> str | None:
    return spec.environment.get(WORD)


@pytest.mark.parametrize(
    ("sizes", "count", "words"),
    [
        ((1, 1, 1), 2, ["0", "1"]),
        ((2, 2, 1), 4, ["0,1", "2", "3"]),
        ((2, 3, 2), 8, ["0,1", "2,3", "4,5", "6,7"]),
    ],
)
def test_each_process_sees_its_own(tmp_path: Path, sizes: tuple[int, ...], count: int, words: list[str]) -> None:
    one = launcher(tmp_path, gpus(count), *sizes)
    specs = [one.learner_spec(), *one.generator_specs()]
    assert [seen(spec) for spec in specs] == words
    assert all(spec.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" for spec in specs)
    assert not any(name.startswith("CUDA") for spec in one.buffer_specs() for name in spec.environment)


def test_numbers_of_the_users_keep_their_meaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORD, "5,3")
    one = launcher(tmp_path, [Device("5", gpu="a"), Device("3", gpu="b")], 1, 1, 1)
    assert [seen(spec) for spec in (one.learner_spec(), one.generator_spec(0))] == ["5", "3"]
    assert "CUDA_DEVICE_ORDER" not in one.learner_spec().environment


def test_a_run_on_the_cpu_is_given_nothing(tmp_path: Path) -> None:
    one = launcher(tmp_path, [], 2, 2, 1)
    for spec in (one.learner_spec(), *one.generator_specs(), one.generator_spec(7)):
        assert not any(name.startswith("CUDA") for name in spec.environment)
    assert "--numa-binding" not in one.learner_spec().command


def test_too_few_end_it_before_anything_starts(tmp_path: Path) -> None:
    one = launcher(tmp_path, gpus(2), 1, 2, 1)
    with pytest.raises(PlacementError, match=r"3 GPUs for .*, and 2 are visible"):
        one.learner_spec()


def test_a_generator_that_comes_later_takes_what_is_free(tmp_path: Path) -> None:
    """And what one has given back that ended."""
    one = launcher(tmp_path, gpus(4), 1, 2, 1)
    sleep = ["sleep", "60"]
    with one.supervisor as supervisor:
        for spec in (one.learner_spec(), *one.generator_specs()):
            supervisor.start(ProcessSpec(spec.name, sleep, role=spec.role, environment=spec.environment))
        later = one.generator_spec(2)
        assert seen(later) == "3"
        supervisor.start(ProcessSpec(later.name, sleep, role="generator", environment=later.environment))
        with pytest.raises(PlacementError, match=r"generator-3 needs 1 GPU, and 0 of 4 are free \(learner on 0"):
            one.generator_spec(3)
        supervisor.stop([["generator-0"]])
        assert seen(one.generator_spec(3)) == "1"


def test_where_they_share_a_gpu_engines_come_up_before_the_learner(tmp_path: Path) -> None:
    """vLLM measures what is free while it comes up; the learner is started when all engines have theirs."""
    one = launcher(tmp_path, gpus(2), 2, 2, 1, launcher={"share_gpus": True}, redis={"url": "redis://127.0.0.1:1/0"})
    assert [seen(spec) for spec in (one.learner_spec(), *one.generator_specs())] == ["0,1", "0", "1"]
    assert order_of_starts(one) == ["generator-0", "generator-1", "ready: generator-0 generator-1", "learner"]
    apart = launcher(tmp_path, gpus(4), 2, 2, 1, launcher={"share_gpus": True}, redis={"url": "redis://127.0.0.1:1/0"})
    assert order_of_starts(apart) == ["learner", "generator-0", "generator-1"]  # there is room: nobody shares


def test_learner_and_generators_start_beside_the_buffer(tmp_path: Path) -> None:
    """They import for seconds before they need it. Where they share a GPU, their order is that of the GPU's memory."""
    redis = {"url": "redis://127.0.0.1:1/0"}
    apart = launcher(tmp_path, gpus(4), 2, 2, 1, launcher={"share_gpus": True}, redis=redis)
    assert all_asked(apart) == ["buffer", "learner", "generator-0", "generator-1", "ready: buffer"]
    one = launcher(tmp_path, gpus(2), 2, 2, 1, launcher={"share_gpus": True}, redis=redis)
    assert all_asked(one)[:3] == ["buffer", "ready: buffer", "generator-0"]


def order_of_starts(one: Launcher) -> list[str]:
    """What the launcher asks of its supervisor, buffers apart."""
    return [each for each in all_asked(one) if "buffer" not in each]


def all_asked(one: Launcher) -> list[str]:
    """What the launcher asks of its supervisor while it brings a run up."""
    asked: list[str] = []
    one.supervisor.start = lambda spec: asked.append(spec.name)  # type: ignore[assignment,method-assign,return-value]
    one.supervisor.wait_ready = lambda names: asked.append(f"ready: {' '.join(names)}")  # type: ignore[method-assign]
    one.store = lambda: SimpleNamespace(enter=lambda name: None, close=lambda: None)  # type: ignore[assignment,method-assign,return-value]
    one.folder.path.mkdir(exist_ok=True)
    one._bring_up()
    return asked


def test_one_that_comes_later_to_a_shared_machine(tmp_path: Path) -> None:
    """It takes a GPU without an engine, the learner's too."""
    one = launcher(tmp_path, gpus(2), 2, 1, 1, launcher={"share_gpus": True})
    with one.supervisor as supervisor:
        for spec in (one.learner_spec(), *one.generator_specs()):
            supervisor.start(ProcessSpec(spec.name, ["sleep", "60"], role=spec.role, environment=spec.environment))
        assert (seen(one.generator_spec(0)), seen(one.generator_spec(1))) == ("0", "1")


@pytest.mark.parametrize("has_numactl", [True, False])
def test_ranks_of_several_numa_nodes_are_bound_by_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_numactl: bool
) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: "/usr/bin/numactl" if has_numactl else None)
    words = launcher(tmp_path, gpus(8, 2), 6, 1, 2).learner_spec().command
    assert (words[words.index("--nproc-per-node") + 2] == "--numa-binding") == has_numactl
    assert "--numa-binding" not in launcher(tmp_path, gpus(8, 2), 4, 1, 2).learner_spec().command  # one node


class TestEvaluations:
    def specs(self, monkeypatch: pytest.MonkeyPatch, count: int, models: int, parallel: int) -> list[ProcessSpec]:
        monkeypatch.setattr(workers, "devices_of", lambda config: gpus(count))
        monkeypatch.setattr(workers, "available_cores", lambda: list(range(16)))
        commands = {f"eval-{number}": ["module"] for number in range(models)}
        return workers.sampling_specs(config(1, 1, parallel), "eval", commands)

    def test_each_at_once_has_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [seen(spec) for spec in self.specs(monkeypatch, 4, 3, 1)] == ["0", "1", "2"]
        assert [seen(spec) for spec in self.specs(monkeypatch, 5, 2, 2)] == ["0,1", "2,3"]
        assert workers.most_at_once(config(1, 1, 2)) == 2

    def test_more_than_gpus_take_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [seen(spec) for spec in self.specs(monkeypatch, 2, 5, 1)]
        assert found == ["0", "1", "0", "1", "0"]
        at_once = workers.most_at_once(config())
        for start in range(0, len(found), at_once):
            batch = found[start : start + at_once]
            assert len(set(batch)) == len(batch)

    def test_none_on_a_cpu_and_an_error_for_too_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert [seen(spec) for spec in self.specs(monkeypatch, 0, 2, 1)] == [None, None]
        with pytest.raises(PlacementError, match=r"4 GPUs for generator"):
            self.specs(monkeypatch, 2, 1, 4)
