"""The launcher's parts: core plan, supervisor with small children, resumed configs, embedded Redis."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import is_alive
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import DeadlineExceeded
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.logs.log_lines import LogSink, Record
from vcppo.deploy.processes.cores import plan_cores, thread_environment
from vcppo.deploy.processes.supervisor import Interrupted, ProcessFailed, ProcessSpec, Supervisor

READY = 'print(\'{"event": "ready", "level": "info"}\', flush=True);'
SLEEP = "import signal; signal.pause()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    sink = LogSink(tmp_path / "logs", "test")
    with Supervisor(sink, stop_deadline_seconds=5.0, start_deadline_seconds=20.0, backoff_seconds=0.05) as each:
        yield each
    sink.close()


def lines_of(tmp_path: Path, name: str) -> list[Record]:
    return [json.loads(line) for line in (tmp_path / "logs" / f"{name}.jsonl").read_text().splitlines()]


def at_once(action: Callable[[], None]) -> Callable[[], bool]:
    """A condition that never holds and runs `action` the first time it is asked."""
    done: list[bool] = []

    def condition() -> bool:
        if not done:
            done.append(True)
            action()
        return False

    return condition


class TestPlanCores:
    def test_two_cores_two_generators_share_with_the_learner(self) -> None:
        plan = plan_cores(2, 2, 1)
        assert plan.generators == (frozenset({0, 1}), frozenset({0, 1}))
        assert plan.learner == {0, 1}
        assert plan.learner_threads == 2
        assert plan.generator_threads == 1
        assert plan.shared
        assert plan.generator_niceness > 0

    def test_two_cores_are_not_halved_between_one_generator_and_the_learner(self) -> None:
        plan = plan_cores(2, 1, 1)
        assert (plan.learner, plan.generators) == ({0, 1}, (frozenset({0, 1}),))
        assert (plan.learner_threads, plan.generator_threads, plan.shared) == (2, 2, True)

    def test_enough_cores_are_divided(self) -> None:
        plan = plan_cores(8, 2, 1)
        assert plan.generators == (frozenset({0, 1}), frozenset({2, 3}))
        assert plan.learner == {4, 5, 6, 7}
        assert plan.learner_threads == 4
        assert plan.generator_threads == 2
        assert not plan.shared
        assert plan.generator_niceness == 0

    @pytest.mark.parametrize("num_cpus", [1, 2, 3, 4, 7, 16, 64])
    @pytest.mark.parametrize("num_generators", [0, 1, 2, 5])
    @pytest.mark.parametrize("num_ranks", [1, 2, 4])
    def test_properties(self, num_cpus: int, num_generators: int, num_ranks: int) -> None:
        plan = plan_cores(num_cpus, num_generators, num_ranks)
        every = frozenset(range(num_cpus))
        assert len(plan.generators) == num_generators
        assert plan.learner
        assert plan.learner <= every
        assert plan.learner_threads >= 1
        assert all(cores and cores <= every for cores in plan.generators)
        if not plan.shared:
            sets = [plan.learner, *plan.generators]
            assert sum(map(len, sets)) == num_cpus == len(frozenset().union(*sets))

    def test_counts_are_checked(self) -> None:
        with pytest.raises(ValueError, match="num_cpus=0"):
            plan_cores(0, 1, 1)

    def test_shared_cores_make_idle_threads_sleep(self) -> None:
        assert thread_environment(2, shared=True)["OMP_WAIT_POLICY"] == "PASSIVE"
        assert "OMP_WAIT_POLICY" not in thread_environment(2, shared=False)


class TestSupervisor:
    def test_ready_then_finishes_and_lines_are_kept(self, supervisor: Supervisor, tmp_path: Path) -> None:
        code = READY + "import sys; print('plain text'); print('WARNING: careful', file=sys.stderr)"
        supervisor.start(ProcessSpec("a", python(code)))
        supervisor.wait_ready(["a"])
        supervisor.wait_exit("a")
        records = lines_of(tmp_path, "a")
        assert {"ready", "plain text", "WARNING: careful"} == {r["event"] for r in records}
        wrapped = next(r for r in records if r["event"] == "WARNING: careful")
        assert wrapped["level"] == "warning"
        assert wrapped["service"] == "a"
        assert wrapped["run_id"] == "test"

    def test_niceness_is_the_childs(self, supervisor: Supervisor, tmp_path: Path) -> None:
        supervisor.start(ProcessSpec("a", python(READY + "import os; print('nice', os.nice(0))"), niceness=3))
        supervisor.wait_exit("a")
        assert f"nice {os.nice(0) + 3}" in {r["event"] for r in lines_of(tmp_path, "a")}

    def test_failure_names_process_code_and_last_lines(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("learner", python("print('about to break'); raise SystemExit(3)")))
        with pytest.raises(ProcessFailed, match=r"learner ended with exit code 3(.|\n)*about to break"):
            supervisor.wait_exit("learner")

    def test_fatal_line_is_the_explanation(self, supervisor: Supervisor) -> None:
        fatal = json.dumps({"event": "fatal", "level": "critical", "error": "model.path: no such folder"})
        supervisor.start(ProcessSpec("learner", python(f"print('noise'); print({fatal!r}); raise SystemExit(2)")))
        with pytest.raises(ProcessFailed, match=r"model\.path: no such folder") as caught:
            supervisor.wait_exit("learner")
        assert "noise" not in str(caught.value)
        assert caught.value.exit_code == 2

    def test_killed_by_signal_is_named(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("learner", python("import os; os.kill(os.getpid(), 9)")))
        with pytest.raises(ProcessFailed, match="killed by SIGKILL"):
            supervisor.wait_exit("learner")

    def test_end_before_ready_is_a_failure_even_with_code_0(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("buffer", python("pass")))
        with pytest.raises(ProcessFailed, match="buffer"):
            supervisor.wait_ready(["buffer"])

    def test_server_must_not_finish(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("redis", python(READY), may_finish=False))
        with pytest.raises(ProcessFailed, match="redis"):
            supervisor.wait(lambda: False)

    def test_not_ready_in_time_is_named(self, supervisor: Supervisor) -> None:
        supervisor.start_deadline_seconds = 0.3
        supervisor.start(ProcessSpec("generator-1", python("print('loading', flush=True);" + SLEEP)))
        with pytest.raises(DeadlineExceeded, match=r"generator-1 was not ready(.|\n)*startup_deadline_seconds"):
            supervisor.wait_ready(["generator-1"])

    def test_program_that_does_not_exist(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("x", ["no-such-program"]))
        with pytest.raises(ProcessFailed, match="cannot start no-such-program"):
            supervisor.wait_ready(["x"])

    def test_generator_is_restarted_and_the_run_goes_on(self, supervisor: Supervisor, tmp_path: Path) -> None:
        flag = tmp_path / "crashed"
        code = (
            READY
            + f"""
from pathlib import Path
flag = Path({str(flag)!r})
if not flag.exists():
    flag.touch()
    raise SystemExit(1)
"""
        )
        child = supervisor.start(
            ProcessSpec("generator-0", python(code), role="generator", max_restarts=2, peers_suffice=True)
        )
        supervisor.wait_exit("generator-0")
        assert child.restarts.in_a_row == 1

    def test_generator_given_up_while_a_peer_lives(self, supervisor: Supervisor) -> None:
        bad = ProcessSpec(
            "generator-0", python(READY + "raise SystemExit(1)"), role="generator", max_restarts=1, peers_suffice=True
        )
        supervisor.start(
            ProcessSpec("generator-1", python(READY + SLEEP), role="generator", max_restarts=1, peers_suffice=True)
        )
        child = supervisor.start(bad)
        supervisor.wait(lambda: child.stopping)
        assert child.restarts.in_a_row == 1
        assert supervisor.children["generator-1"].alive

    def test_a_newcomer_that_fails_before_it_is_ready_is_tried_again_where_peers_came_up(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        """Its peers have shown that the settings are good: a Redis out of reach for a while must not end the run."""
        supervisor.start(ProcessSpec("generator-0", python(READY + SLEEP), role="generator", peers_suffice=True))
        supervisor.wait_ready(["generator-0"])
        flag = tmp_path / "flag"
        code = f"""
from pathlib import Path
flag = Path({str(flag)!r})
if not flag.exists():
    flag.touch()
    raise SystemExit(1)
"""
        spec = ProcessSpec(
            "generator-1", python(code + READY + SLEEP), role="generator", max_restarts=1, peers_suffice=True
        )
        child = supervisor.start(spec)
        supervisor.wait_ready(["generator-1"])
        assert child.restarts.total == 1

    def test_a_dismissed_generator_is_given_up_at_once(self, supervisor: Supervisor) -> None:
        for name, end in (("generator-0", "raise SystemExit(3)"), ("generator-1", SLEEP)):
            spec = ProcessSpec(name, python(READY + end), role="generator", max_restarts=5, peers_suffice=True)
            supervisor.start(spec)
        child = supervisor.children["generator-0"]
        supervisor.wait(lambda: child.stopping)
        assert child.restarts.total == 0
        assert supervisor.children["generator-1"].alive

    def test_what_a_rank_says_counts_where_torchrun_ends_with_1(self, supervisor: Supervisor) -> None:
        """Rank 0 was superseded, rank 1 lost it: starting both again would take the successor's place."""
        lines = [
            {"event": "fatal", "error": "superseded", "exit_code": 3},
            {"event": "fatal", "error": "lost rank 0", "exit_code": 1},
        ]
        said = "".join(f"print({json.dumps(line)!r}, flush=True);" for line in lines)
        child = supervisor.start(ProcessSpec("learner", python(READY + said + "raise SystemExit(1)"), max_restarts=5))
        with pytest.raises(ProcessFailed) as failed:
            supervisor.wait(lambda: False)
        assert (failed.value.process_exit_code, child.restarts.total) == (3, 0)

    def test_last_generator_given_up_ends_the_run(self, supervisor: Supervisor) -> None:
        spec = ProcessSpec(
            "generator-0", python(READY + "raise SystemExit(1)"), role="generator", max_restarts=1, peers_suffice=True
        )
        supervisor.start(spec)
        with pytest.raises(ProcessFailed, match="generator-0"):
            supervisor.wait(lambda: False)

    def test_restarts_are_counted_in_a_row(self, supervisor: Supervisor, tmp_path: Path) -> None:
        """One that was up for the window starts counting anew: many faults in a long run are no reason to give up."""
        supervisor.restart_window_seconds = 0.2
        lives = tmp_path / "lives"
        code = (
            READY
            + f"""
import time
from pathlib import Path
lives = Path({str(lives)!r})
number = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (number + 1))
time.sleep(0.8)  # well beyond the window, also where we hear of READY late
raise SystemExit(0 if number == 4 else 1)
"""
        )
        child = supervisor.start(ProcessSpec("a", python(code), max_restarts=1))
        supervisor.wait_exit("a")
        assert (child.restarts.in_a_row, child.restarts.total) == (1, 4)

    def test_a_fault_that_takes_longer_than_the_window_is_the_same_fault(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        """Each restart was once "attempt 1 of 3": a verifier that hung for minutes was tried for ever."""
        supervisor.restart_window_seconds = 0.1
        again = (
            "import json, time; time.sleep(0.3); print(json.dumps({'event': 'fatal', 'error': f'hung {time.time()}'}));"
        )
        supervisor.start(ProcessSpec("learner", python(READY + SLEEP), role="learner"))  # makes no step
        child = supervisor.start(ProcessSpec("a", python(READY + again + "raise SystemExit(1)"), max_restarts=2))
        with pytest.raises(ProcessFailed, match="exit code 1"):
            supervisor.wait(lambda: False)
        assert child.restarts.total == 2

    def test_steps_in_between_make_it_another_fault(self, supervisor: Supervisor, tmp_path: Path) -> None:
        supervisor.restart_window_seconds = 0.1
        steps = "import json, time\nwhile True: time.sleep(0.05); print(json.dumps({'event': 'step'}), flush=True)"
        supervisor.start(ProcessSpec("learner", python(READY + steps), role="learner"))
        child = supervisor.start(
            ProcessSpec("a", python(READY + "import time; time.sleep(0.4); raise SystemExit(1)"), max_restarts=1)
        )
        supervisor.wait(lambda: child.restarts.total == 3)
        assert child.restarts.in_a_row == 1

    def test_bad_config_is_not_tried_again(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("a", python(READY + "raise SystemExit(2)"), max_restarts=5))
        with pytest.raises(ProcessFailed, match="exit code 2"):
            supervisor.wait(lambda: False)

    def test_a_restart_that_does_not_come_up_is_one_more_attempt(self, supervisor: Supervisor, tmp_path: Path) -> None:
        supervisor.start_deadline_seconds = 3.0
        lives = tmp_path / "lives"
        code = f"""
from pathlib import Path
import signal
lives = Path({str(lives)!r})
number = len(lives.read_text()) if lives.exists() else 0
lives.write_text("x" * (number + 1))
if number == 1:
    signal.pause()
print('{{"event": "ready", "level": "info"}}', flush=True)
raise SystemExit(0 if number == 2 else 1)
"""
        child = supervisor.start(ProcessSpec("a", python(code), max_restarts=5))
        supervisor.wait_exit("a")
        assert child.restarts.total == 2

    def test_a_retired_child_is_not_restarted(self, supervisor: Supervisor) -> None:
        child = supervisor.start(ProcessSpec("a", python(READY + SLEEP), max_restarts=5, may_finish=False))
        supervisor.wait_ready(["a"])
        supervisor.retire("a")
        supervisor.wait(lambda: child.exit_code is not None)
        assert child.exit_code == -signal.SIGTERM
        assert child.restarts.total == 0

    def test_a_restart_waits_until_nothing_of_the_old_life_is_left(
        self, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A killed torchrun leaves ranks that go on with their step: a second learner beside them would be two."""
        monkeypatch.setattr("vcppo.deploy.processes.orphans.GRACE_SECONDS", 1.0)
        pid_file = tmp_path / "pid"
        deaf = (
            "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\n"
            "print('deaf', flush=True)\nwhile True: signal.pause()"
        )
        code = (
            "import os, subprocess, sys\n"
            "from pathlib import Path\n"
            f"pid_file = Path({str(pid_file)!r})\n"
            "if pid_file.exists():\n"
            "    state = Path('/proc/' + pid_file.read_text() + '/stat')\n"
            "    raise SystemExit(0 if not state.exists() else 5)\n"
            f"rank = subprocess.Popen([sys.executable, '-c', {deaf!r}],\n"
            "    start_new_session=True, stdout=subprocess.PIPE)\n"
            "rank.stdout.readline()\n" + READY + "\nos.kill(os.getpid(), 9)"
        )
        child = supervisor.start(ProcessSpec("learner", [sys.executable, "-c", code], max_restarts=1))
        supervisor.wait_exit("learner")
        assert child.restarts.total == 1

    def test_signal_interrupts_the_wait(self, supervisor: Supervisor) -> None:
        supervisor.start(ProcessSpec("a", python(READY + SLEEP)))
        supervisor.wait_ready(["a"])
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            supervisor.wait(at_once(lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert caught.value.exit_code == 130

    def test_a_signal_while_stopping_hastens_it_and_is_not_lost(self, tmp_path: Path) -> None:
        """It ends the children at once, and reaches whoever would have gone on after them."""
        code = (
            "import os, signal\n"
            f"signal.signal(signal.SIGTERM, lambda *_: os.kill({os.getpid()}, signal.SIGTERM))\n"  # its parent, too
            + READY + "\nwhile True: signal.pause()"
        )  # fmt: skip
        supervisor = Supervisor(LogSink(tmp_path / "logs", "t"), stop_deadline_seconds=30.0)

        def block() -> None:
            with supervisor:
                supervisor.start(ProcessSpec("deaf", [sys.executable, "-c", code]))
                supervisor.wait_ready(["deaf"])

        began = time.monotonic()
        with pytest.raises(Interrupted, match="SIGTERM"):
            block()
        assert supervisor.children["deaf"].exit_code == -signal.SIGKILL
        assert time.monotonic() - began < 25

    def test_a_signal_that_was_heard_is_raised_once(self, tmp_path: Path) -> None:
        with Supervisor(LogSink(tmp_path / "logs", "t"), stop_deadline_seconds=5.0) as supervisor:
            supervisor.start(ProcessSpec("a", python(READY + SLEEP)))
            with pytest.raises(Interrupted):
                supervisor.wait(at_once(lambda: os.kill(os.getpid(), signal.SIGTERM)))

    def test_stop_is_in_order_and_by_sigterm(self, supervisor: Supervisor, tmp_path: Path) -> None:
        code = (
            "import signal, sys, time\n"
            "def end(*_):\n    print('ended', time.time_ns(), flush=True)\n    sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n" + READY + "\nsignal.pause()"
        )
        for name in ("first", "second"):
            supervisor.start(ProcessSpec(name, [sys.executable, "-c", code]))
        supervisor.wait_ready(["first", "second"])
        supervisor.stop([["first"], ["second"]])
        times = [int(lines_of(tmp_path, name)[-1]["event"].split()[1]) for name in ("first", "second")]
        assert times == sorted(times)
        assert all(child.exit_code == 0 for child in supervisor.children.values())

    def test_deaf_child_is_killed_after_the_deadline(self, supervisor: Supervisor) -> None:
        supervisor.stop_deadline_seconds = 0.3
        code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "\nwhile True: signal.pause()"
        child = supervisor.start(ProcessSpec("deaf", [sys.executable, "-c", code]))
        supervisor.wait_ready(["deaf"])
        supervisor.stop([["deaf"]])
        assert child.exit_code == -signal.SIGKILL

    def test_no_orphans_even_from_a_killed_child_in_a_session_of_its_own(
        self, supervisor: Supervisor, tmp_path: Path
    ) -> None:
        code = (
            "import subprocess, sys, os, signal\n"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
            f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))\n" + READY + "\nos.kill(os.getpid(), 9)"
        )
        supervisor.start(ProcessSpec("torchrun", [sys.executable, "-c", code]))
        with pytest.raises(ProcessFailed):
            supervisor.wait_exit("torchrun")
        supervisor.stop([["torchrun"]])
        assert not is_alive(int((tmp_path / "pid").read_text()))

    def test_children_get_sigterm_when_the_launcher_is_killed(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        child = f"import os, signal; open({str(pid_file)!r}, 'w').write(str(os.getpid())); {READY} signal.pause()"
        launcher = f"""
import os
from pathlib import Path
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.processes.supervisor import ProcessSpec, Supervisor
with Supervisor(LogSink(Path({str(tmp_path / "logs")!r}), "t"), stop_deadline_seconds=5) as s:
    s.start(ProcessSpec("a", [{sys.executable!r}, "-c", {child!r}]))
    s.wait_ready(["a"])
    os.kill(os.getpid(), 9)
"""
        subprocess.run(python(launcher), cwd=ROOT, check=False, timeout=30)
        pid = int(pid_file.read_text())
        deadline = time.monotonic() + 10
        while is_alive(pid) and time.monotonic() < deadline:
            threading.Event().wait(0.02)
        assert not is_alive(pid)


def test_processes_of_one_host_get_metrics_ports_of_their_own(tmp_path: Path) -> None:
    config = VcppoConfig.model_validate(
        {"run": {"folder": tmp_path}, "model": {"path": "m"}, "metrics": {"prometheus_port": 9400}}
    )
    launcher = Launcher(config, LogSink(tmp_path, "run"))
    specs = [*launcher.buffer_specs(), launcher.learner_spec(), *launcher.generator_specs()]
    ports = [launcher.on_this_host(spec).command[-1] for spec in specs]
    assert ports == [f"metrics.prometheus_port={9400 + place}" for place in range(4)]
    assert launcher.on_this_host(specs[1]).command[-1] == ports[1]  # also when it is started again
    assert not any("prometheus" in word for spec in specs for word in spec.command)  # alone on its host: the config's


def test_without_metrics_no_port_is_handed_out(tmp_path: Path) -> None:
    config = VcppoConfig.model_validate({"run": {"folder": tmp_path}, "model": {"path": "m"}})
    launcher = Launcher(config, LogSink(tmp_path, "run"))
    assert launcher.on_this_host(launcher.learner_spec()) == launcher.learner_spec()
