"""The command line: help that teaches, errors that are one clear message, the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.unit.rig.fake_run import config_of, make_run
from vcppo.common.config import dump_config, load_config
from vcppo.common.errors import ConfigError
from vcppo.common.run_folder import RunFolder
from vcppo.common.transport.ports import free_port
from vcppo.deploy.cli import _parse, main
from vcppo.deploy.demo import TASKS, demo_config, demo_name, other_cold_start
from vcppo.deploy.launch.start_over import start_over
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_config import Change, RunError, changes, config_of_run, exclusive, open_run, write_config

COMMANDS = (
    "up",
    "sft",
    "eval",
    "ledger",
    "logs",
    "report",
    "watch",
    "config",
    "demo",
    "experiment",
    "reward-model",
    "slurm",
)


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose model exists and whose port is free; the working folder is a scratch one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config_of(Path("runs"), "r")))
    return path


class TestParsing:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_teaches_by_examples(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert f"  vcppo {command}" in capsys.readouterr().out

    def test_overrides_may_stand_anywhere(self) -> None:
        parsed = _parse(["up", "a.b=1", "-c", "x.yaml", "c.d=2", "--watch", "e.f=3"])
        assert parsed.overrides == ["a.b=1", "c.d=2", "e.f=3"]
        assert parsed.watch

    @pytest.mark.parametrize(
        "words", [["up"], ["up", "-c", "x", "--no-such"], ["watch", "a", "b=c", "d"], ["nonsense"], []]
    )
    def test_bad_usage_is_2(self, words: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2

    def test_runs_as_a_program_and_starts_fast_without_torch(self) -> None:
        script = ("import sys", "from vcppo.deploy import cli", "cli.main(['config', 'lambda_actor'])")
        code = "; ".join([*script, "print('torch' in sys.modules)"])
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
        )
        assert "algorithm.lambda_actor" in done.stdout
        assert done.stdout.strip().endswith("False")


class TestErrors:
    """Each gives one clear message on stderr and a non-zero exit, at once."""

    def fails(self, words: list[str], code: int, *said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words) == code
        error = capsys.readouterr().err
        assert error.startswith("vcppo: ")
        assert "Traceback" not in error
        for each in said:
            assert each in error

    def test_config_typo(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(
            ["up", "-c", str(config_file), "rl.batch_sise=64"], 2, "rl.batch_sise", "rl.batch_size", capsys=capsys
        )

    def test_no_such_config(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(["up", "-c", str(tmp_path / "no.yaml")], 2, "no.yaml", capsys=capsys)

    def test_unknown_model_path(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(
            ["up", "-c", str(config_file), "model.path=./gone"], 2, "model.path: ./gone", "vcppo sft", capsys=capsys
        )

    def test_port_in_use(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            words = ["up", "-c", str(config_file), f"transport.endpoints=[{endpoint}]"]
            self.fails(words, 2, "transport.endpoints", endpoint, "transport.endpoints=null", capsys=capsys)

    def test_metrics_port_in_use(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Of a neighbour: buffer, learner and two generators take a port each."""
        with socket.create_server(("127.0.0.1", free_port(count=4) + 3)) as server:
            first = server.getsockname()[1] - 3
            words = ["up", "-c", str(config_file), "metrics.prometheus_host=127.0.0.1"]
            said = (f"metrics.prometheus_port = {first}", f"{first + 3} can't be used", "Set metrics.prometheus_port=")
            self.fails([*words, f"metrics.prometheus_port={first}"], 2, *said, capsys=capsys)

    def test_no_redis_at_the_url(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        port = free_port()
        words = ["up", "-c", str(config_file), f"redis.url=redis://127.0.0.1:{port}/0"]
        self.fails(words, 1, f"127.0.0.1:{port}", capsys=capsys)

    def test_no_redis_binary(
        self, config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        self.fails(["up", "-c", str(config_file)], 1, "no redis-server on PATH", "redis.url", capsys=capsys)

    def test_ledger_of_a_run_never_up(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(["ledger", "-c", str(config_file)], 2, "never brought up", capsys=capsys)

    def test_no_such_run(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(["report", "nothing"], 2, "nothing is not a run folder", capsys=capsys)
        self.fails(["report"], 2, "no run under runs/", capsys=capsys)

    def test_eval_of_no_model(self, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.fails(["eval", "-c", str(config_file), "--model", str(tmp_path / "none")], 2, "--model", capsys=capsys)


def record(path: Path) -> RunFolder:
    """As a learner leaves its run folder when responses are recorded."""
    folder = RunFolder(path.parent)
    folder.value_pretraining.mkdir()
    (folder.value_pretraining / "trajectories.msgpack").write_bytes(b"recorded")
    return folder


def train(path: Path) -> RunFolder:
    """The same when a step of RL was trained."""
    folder = record(path)
    folder.trained_log.write_text("{}\n")
    return folder


REFUSED = {
    "a model that is none": ["up", "model.path=./gone"],
    "a setting that is none": ["up", "rl.nmu_steps=3"],
    "settings that contradict": ["up", "rl.batch_size=7"],
    "a Redis that is not there": ["up", "redis.url=redis://127.0.0.1:{free}/0"],
    "a port in use": ["up", "transport.endpoints=[tcp://127.0.0.1:{used}]"],
    "a metrics port in use": ["up", "metrics.prometheus_port={used}"],
    "a folder that is a file": ["up", "run.folder=run.yaml"],
    "an evaluation of no model": ["eval", "--model", "gone"],
    "a benchmark without data": ["eval", "--model", "model", "--benchmark", "jsonl", "--data", "gone.jsonl"],
    "a benchmark without a model": ["eval", "--model", "gone", "--benchmark", "jsonl", "--data", "p.jsonl"],
    "nothing to start over": ["up", "--start-over", "rl", "redis.url=redis://127.0.0.1:{used}/0"],
}  # fmt: skip


class TestRefusedStart:
    """Nothing is left of a start that is refused: no folder, no config.yaml, no lock."""

    @pytest.mark.parametrize("case", REFUSED)
    @pytest.mark.parametrize("prepared", [False, True])
    def test_nothing_is_left(
        self, config_file: Path, tmp_path: Path, case: str, prepared: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`prepared`: the folder is there and holds a file of the user's, and no run."""
        (tmp_path / "p.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
        if prepared:
            (tmp_path / "runs" / "r").mkdir(parents=True)
            (tmp_path / "runs" / "r" / "notes.txt").write_text("mine")
        before = sorted(path for path in tmp_path.rglob("*"))
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports = {"free": str(free_port()), "used": str(server.getsockname()[1])}
            command, *words = [word.format(**ports) for word in REFUSED[case]]
            assert main([command, "-c", str(config_file), *words]) in (1, 2)
        assert capsys.readouterr().err.startswith("vcppo: ")
        assert sorted(path for path in tmp_path.rglob("*")) == before
        assert main(["report", "r"]) == 2
        assert "is not a run folder" in capsys.readouterr().err

    def test_what_is_raised_before_any_process_leaves_nothing_either(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Past the quick checks: no redis-server, found when it is to be started."""
        monkeypatch.setattr("vcppo.deploy.check.quick.refuse_start", lambda *_: [])
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        assert main(["up", "-c", str(config_file)]) == 1
        assert not (tmp_path / "runs").exists()

    def test_a_demo_in_a_place_that_can_not_be_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with socket.create_server(("127.0.0.1", 0)) as server:
            used = f"transport.endpoints=[tcp://127.0.0.1:{server.getsockname()[1]}]"
            assert main(["demo", used]) == 2
        assert "transport.endpoints" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_a_run_that_is_there_stays_as_it_is(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = train(write_config(load_config(config_file)))
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        assert main(["up", "-c", str(config_file), "critic.init=policy"]) == 2
        assert main(["up", "-c", str(config_file), "model.path=./gone"]) == 2
        after = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        assert {path: after[path] for path in before} == before
        assert {path.name for path in after.keys() - before.keys()} <= {".lock"}

    def test_what_a_process_has_said_is_kept(self, tmp_path: Path) -> None:
        """A start that got as far as a process: its lines say what was wrong."""

        def start() -> None:
            with exclusive(tmp_path / "r"):
                (tmp_path / "r" / "logs").mkdir()
                (tmp_path / "r" / "logs" / "launcher.jsonl").write_text('{"event": "process_started"}\n')
                raise RunError("its learner ended")

        with pytest.raises(RunError):
            start()
        assert (tmp_path / "r" / "logs" / "launcher.jsonl").exists()

    def test_a_run_that_has_done_nothing_has_no_report(
        self, config_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_config(load_config(config_file))
        assert main(["report", "r"]) == 2
        assert "has nothing to report yet" in capsys.readouterr().err
        assert not Path("runs/r/report").exists()


class TestResume:
    def test_before_anything_was_made_anything_may_change(self, config_file: Path) -> None:
        path = write_config(load_config(config_file))
        RunFolder(path.parent).metrics_file("learner").touch()  # the learner came up, and no more
        path = write_config(load_config(config_file, ["rl.group_size=4", "sampling.temperature=0.7"]))
        assert load_config(path).rl.group_size == 4

    @pytest.mark.parametrize(
        "override",
        ["value_pretraining.learning_rate=1e-3", "value_pretraining.num_trajectories=8192", "rl.batch_size=64",
         "generator.max_model_len=1024", "algorithm.gamma=0.99", "transport.endpoints=[tcp://127.0.0.1:5999]",
         "critic.init=policy", "value_pretraining.held_out_fraction=0.25"],
    )  # fmt: skip
    def test_what_no_recording_depends_on_may_change(self, config_file: Path, override: str) -> None:
        record(write_config(load_config(config_file)))
        now = load_config(config_file, [override, "learner.micro_batch_tokens=16384"])
        assert load_config(write_config(now)) == now

    def test_what_it_depends_on_is_refused_with_every_way_out(self, config_file: Path) -> None:
        record(write_config(load_config(config_file)))
        now = load_config(config_file, ["sampling.temperature=0.7", "value_pretraining.max_steps=50"])
        with pytest.raises(RunError) as caught:
            write_config(now)
        said = str(caught.value)
        assert "sampling.temperature is 1.0 in the run and 0.7 now" in said
        assert "the recording of value pretraining would have to start over" in said
        assert "choose another run.name" in said
        assert "--start-over value_pretraining" in said
        assert "runs/r/before-1" in said
        assert "value_pretraining.max_steps may change on this run" in said

    def test_rl_goes_on_with_other_step_sizes(self, config_file: Path) -> None:
        train(write_config(load_config(config_file)))
        path = write_config(
            load_config(config_file, ["rl.num_steps=80", "rl.actor_learning_rate=1e-6", "algorithm.num_epochs=2",
                                      "logging.level=debug", "generator.num_generators=3", "learner.num_ranks=2",
                                      "learner.zero_stage=3"])
        )  # fmt: skip
        assert load_config(path).rl.actor_learning_rate == 1e-6

    @pytest.mark.parametrize(
        ("override", "stage"),
        [("critic.init=policy", "rl"), ("value_pretraining.learning_rate=1e-3", "rl"),
         ("task.reward_wrong=0.0", "value_pretraining")],
    )  # fmt: skip
    def test_what_rl_began_with_is_refused_once_it_has_begun(
        self, config_file: Path, override: str, stage: str
    ) -> None:
        train(write_config(load_config(config_file)))
        with pytest.raises(RunError, match=f"--start-over {stage}"):
            write_config(load_config(config_file, [override]))

    def test_a_shorter_model_must_hold_what_is_recorded(self, config_file: Path) -> None:
        folder = record(write_config(load_config(config_file)))
        with pytest.raises(RunError, match=r"generator\.max_model_len"):
            write_config(load_config(config_file, ["generator.max_model_len=300"]))
        (folder.value_pretraining / "recorded_with.json").write_text('{"longest_tokens": 290}')
        write_config(load_config(config_file, ["generator.max_model_len=300"]))
        with pytest.raises(RunError, match=r"fits from generator\.max_model_len = 290 on"):
            write_config(load_config(config_file, ["generator.max_model_len=280"]))

    def test_start_over_moves_aside_what_is_made_again(self, config_file: Path) -> None:
        folder = train(write_config(load_config(config_file)))
        folder.metrics_file("learner").write_text('{"stage": "value_pretraining", "step": 0}\n{"step": 1}\n')
        for path in (folder.cold_start, folder.redis, folder.spool, folder.checkpoints / "step-000001"):
            path.mkdir(parents=True, exist_ok=True)
            (path / "content").touch()
        now = load_config(config_file, ["critic.init=policy"])
        place = start_over(now, "rl")
        assert place == folder.path / "before-1"
        write_config(now)
        left = {path.name for path in folder.path.iterdir()}
        assert {"cold_start", "value_pretraining", "config.yaml"} <= left
        assert not {"redis", "spool", "trained.jsonl"} & left
        assert folder.metrics_file("learner").read_text().count("\n") == 1
        assert load_config(place / "config.yaml").critic.init == "value_pretrained"
        assert {"redis", "spool", "trained.jsonl", "checkpoints"} <= {path.name for path in place.iterdir()}

        changed = load_config(config_file, ["critic.init=policy", "sampling.temperature=0.7"])
        with pytest.raises(RunError, match="--start-over value_pretraining"):
            start_over(changed, "rl")
        assert start_over(changed, "value_pretraining") == folder.path / "before-2"
        write_config(changed)
        assert not folder.value_pretraining.exists()
        assert start_over(changed, "value_pretraining") is None

    def test_start_over_leaves_a_store_of_others_alone(self, config_file: Path) -> None:
        folder = train(write_config(load_config(config_file)))
        with pytest.raises(RunError, match=r"another run\.name"):
            start_over(load_config(config_file, ["redis.url=redis://127.0.0.1:6379/0"]), "rl")
        assert folder.trained_log.exists()

    def test_same_config_is_no_change(self, config_file: Path) -> None:
        assert changes(load_config(config_file), load_config(config_file)) == []

    def test_options_are_compared_one_by_one(self, config_file: Path) -> None:
        now = load_config(config_file, ["task.options={num_operations: 4}"])
        assert [c.field for c in changes(load_config(config_file), now)] == [
            "task.options",
            "task.options.num_operations",
        ]
        assert not Change("task.options.num_operations", None, 4).harmless
        assert Change("eval.k", 1, 4).harmless

    def test_one_launcher_per_run(self, tmp_path: Path) -> None:
        with exclusive(tmp_path), pytest.raises(RunError, match=f"pid {os.getpid()}"), exclusive(tmp_path):
            pass
        with exclusive(tmp_path):
            pass

    def test_run_by_name_or_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        make_run(tmp_path / "runs", "mine", num_steps=1)
        assert open_run("mine").path == open_run("runs/mine").path == Path("runs/mine")

    def test_demo_continues_the_last_one_or_starts_the_next(self, tmp_path: Path) -> None:
        assert demo_name(tmp_path, None, fresh=False) == "demo"
        for name in ("demo", "demo-2", "demo-10", "demo-seed7", "demonstration"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.yaml").touch()
        assert demo_name(tmp_path, None, fresh=False) == "demo-10"
        assert demo_name(tmp_path, None, fresh=True) == "demo-11"
        assert demo_name(tmp_path, 7, fresh=False) == "demo-seed7"
        assert demo_name(tmp_path, 7, fresh=True) == "demo-seed7-2"
        assert demo_name(tmp_path, 3, fresh=True) == "demo-seed3"
        assert demo_name(tmp_path, None, fresh=False, name="x") == "x"
        assert demo_name(tmp_path, None, fresh=True, name="demo-2") == "demo-2-2"
        assert demo_name(tmp_path, None, fresh=True, name="demonstration") == "demonstration-2"
        assert demo_name(tmp_path, None, fresh=False, kind="demo-tools") == "demo-tools"
        assert demo_name(tmp_path, 7, fresh=False, kind="demo-tools") == "demo-tools-seed7"

    def test_each_task_of_the_demo_has_its_recipe_and_its_runs(self, tmp_path: Path) -> None:
        for name, run in (("arithmetic", "demo"), ("tools", "demo-tools")):
            config = demo_config([f"run.folder={tmp_path}"], path=TASKS[name])
            assert (config.run.name, Path(config.model.path)) == (run, tmp_path / run / "cold_start")
            assert _parse(["demo", "--task", name]).task == name
        with pytest.raises(SystemExit):
            _parse(["demo", "--task", "tools", "-c", "x.yaml"])

    @pytest.mark.parametrize(
        ("words", "name"),
        [
            ({"overrides": ["run.name=x"]}, "x"),
            ({"overrides": [], "name": "x"}, "x"),
            ({"overrides": ["run.name=x"], "name": "x", "seed": 3}, "x"),
            ({"overrides": ["run.name=x", "run.folder=elsewhere"]}, "x"),
            ({"overrides": ["run.folder=elsewhere"]}, "demo"),
            ({"overrides": [], "seed": 3}, "demo-seed3"),
            ({"overrides": ["sft.output=cold"]}, "demo"),
        ],
    )
    def test_a_demo_trains_its_own_cold_start(
        self, words: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever names it: the model it trains is the one that its own first stage makes."""
        monkeypatch.chdir(tmp_path)
        config = demo_config(**words)
        assert config.run.name == name
        assert Path(config.model.path) == Path(config.sft.output or config.run.path / "cold_start")
        assert config.run.seed == words.get("seed", 0)

    def test_a_demo_has_one_name_and_takes_a_model_that_is_given(self) -> None:
        with pytest.raises(RunError, match=r"--run y and run\.name=x name two runs"):
            demo_config(["run.name=x"], name="y")
        assert demo_config(["run.name=x", "model.path=mine"]).model.path == "mine"

    def test_a_run_that_trains_another_cold_start_than_its_own_says_so(self, tmp_path: Path) -> None:
        config = config_of(tmp_path, "b")
        assert other_cold_start(config) is None  # it has none of its own
        own = config.run.path / "cold_start"
        own.mkdir(parents=True)
        (own / "config.json").write_text("{}")
        said = other_cold_start(config)
        assert said is not None and f"set model.path={own}" in said
        mended = config.model_copy(update={"model": config.model.model_copy(update={"path": str(own)})})
        assert other_cold_start(mended) is None

    def test_a_run_is_worked_on_where_it_lies(
        self, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """config.yaml says runs/r as seen from where it was started; now we are elsewhere, or it was moved."""
        write_config(load_config(config_file))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        there = tmp_path / "runs" / "r"
        assert config_of_run(open_run("../runs/r")).run.path == there
        assert config_of_run(open_run(there), ["rl.num_steps=7"]).rl.num_steps == 7
        there.rename(tmp_path / "elsewhere" / "r")
        assert config_of_run(open_run("r")).run.path == tmp_path / "elsewhere" / "r"

    def test_a_copy_under_another_name_is_not_the_run(self, config_file: Path, tmp_path: Path) -> None:
        """Its settings would lead to the first one's folder: it would be trained on, silently."""
        write_config(load_config(config_file))
        shutil.copytree("runs/r", "runs/copy")
        with pytest.raises(RunError, match="holds the run 'r'"):
            config_of_run(open_run("copy"))
        assert main(["ledger", "--run", "copy"]) == 2


class TestOutput:
    def test_config_prints_what_up_would_use(self, config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "-c", str(config_file), "rl.batch_size=64"]) == 0
        (config_file.parent / "again.yaml").write_text(capsys.readouterr().out)
        assert load_config(config_file.parent / "again.yaml").rl.batch_size == 64

    def test_logs_of_standard_input(self) -> None:
        text = json.dumps({"event": "stepped", "level": "warning", "service": "learner"}) + "\nnoise\n"
        done = subprocess.run(
            [sys.executable, "-m", "vcppo.deploy.cli", "logs", "--level", "warning"],
            cwd=ROOT, input=text, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert "stepped" in done.stdout
        assert "noise" not in done.stdout

    def test_report_prints_the_page(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = make_run(tmp_path)
        assert main(["report", str(folder.path)]) == 0
        assert capsys.readouterr().out.strip().splitlines()[-1] == str(folder.report / "report.html")


class TestRedisServer:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Iterator[Path]:
        yield tmp_path / "redis"
        redis_server.socket_path(tmp_path / "redis").unlink(missing_ok=True)

    def test_socket_is_private_and_short(self, data: Path) -> None:
        spec = redis_server.redis_spec(data)
        path = redis_server.socket_path(data)
        assert len(str(path)) < 100
        assert path.parent.stat().st_mode & 0o077 == 0
        assert "--port" in spec.command
        assert spec.command[spec.command.index("--port") + 1] == "0"
        assert not redis_server.is_running(data)

    def test_what_the_user_set_for_malloc_stays(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
        assert "mmap_threshold" in redis_server.redis_spec(data).environment["GLIBC_TUNABLES"]
        monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
        assert "GLIBC_TUNABLES" not in redis_server.redis_spec(data).environment

    def test_redis_7_data_under_redis_6_is_refused(self, data: Path) -> None:
        (data / "appendonlydir").mkdir(parents=True)
        version = subprocess.run(
            [redis_server.find_binary(), "--version"], capture_output=True, text=True, check=True
        ).stdout
        if "v=6" not in version:
            pytest.skip("the redis-server here is new enough")
        with pytest.raises(redis_server.RedisUnavailable, match="Redis 7"):
            redis_server.redis_spec(data)

    def test_other_schemes_are_left_to_the_store(self) -> None:
        redis_server.check_reachable("unix:///nowhere.sock")


def test_config_error_is_bad_usage() -> None:
    assert ConfigError("x").exit_code == 2
