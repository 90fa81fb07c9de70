"""A run's measurements as a workload, the cases made of it, and the command over a whole run folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.unit.rig.fake_run import make_run
from vcppo.common.files.json_lines import Row
from vcppo.common.records.simulated import Simulated, Workload
from vcppo.common.run_folder import RunFolder
from vcppo.deploy import cli
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.simulation import simulate_command
from vcppo.deploy.simulation.measured import NotMeasured, generator_speed, other_seconds, workload_of
from vcppo.deploy.simulation.scenarios import by_number, by_settings, enough, in_groups, recommendations

BEGAN = datetime(2026, 12, 1, tzinfo=UTC)
NUM_STEPS, STEP_SECONDS = 12, 10.0
NUM_RESPONSES, MEAN_LENGTH = 128, 100.0


def at(seconds: float) -> str:
    return (BEGAN + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def learner_row(step: int) -> Row:
    """10 s a step: 4 of training, 3.5 of waiting, 1 for the weights, 1.5 for nothing that has a name."""
    return {
        "time": at(step * STEP_SECONDS), "service": "learner", "stage": "rl", "step": step,
        "reward/num_responses": NUM_RESPONSES, "length/mean": MEAN_LENGTH, "tokens/step": 99_999,
        "time/values": 0.5, "time/old_log_probs": 0.5, "time/update": 3.0, "time/claim": 3.5,
        "time/broadcast": 1.0, "time/pause": 0.25, "time/step": 8.5,
    }  # fmt: skip


def generator_rows(base: float, per_sequence: float, lost: float) -> list[Row]:
    """One line every 5 s: half of them hold the 4 s of training, whose speed is less by `lost`."""
    rows: list[Row] = [{"time": at(10.0), "step": 0, "generator/in_flight": 4.0}]
    for number in range(2 * NUM_STEPS - 3):
        num = (4.0, 4.0, 8.0, 8.0)[number % 4]
        mean = (num + float(rows[-1]["generator/in_flight"])) / 2
        paced = 5.0 - lost * (4.0 if number % 2 else 0.0)
        tokens = paced * mean / (base + per_sequence * mean)
        rows.append({"time": at(15.0 + 5 * number), "step": number + 1, "generator/in_flight": num,
                     "generator/tokens": tokens, "generator/paused": 0.0})  # fmt: skip
    return rows


def measured_run(root: Path, base: float = 0.002, per_sequence: float = 0.0004, lost: float = 0.0) -> RunFolder:
    folder = make_run(root)
    for path in folder.metrics.glob("*.jsonl"):
        path.unlink()
    rows = {
        "learner": [learner_row(step) for step in range(1, NUM_STEPS + 1)],
        "generator-0": generator_rows(base, per_sequence, lost),
    }
    for name, lines in rows.items():
        folder.metrics_file(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.samples.mkdir(exist_ok=True)
    for step in (1, 2, 3):
        parquet.write_table(
            pa.table({"length": [1] if step == 1 else [60, 140]}), folder.samples / f"step-{step:06d}.parquet"
        )
    return folder


def measured(folder: RunFolder) -> Workload:
    data = RunData.load(folder)
    return workload_of(data.config, data, pause_per_generator=0.01)


class TestMeasured:
    def test_figures_of_a_run_are_those_it_was_made_with(self, tmp_path: Path) -> None:
        case = measured(measured_run(tmp_path))
        assert case.lengths == [60, 140, 60, 140]  # the first step's are of a policy that begins
        assert case.learner_seconds_per_token == pytest.approx([4 / (NUM_RESPONSES * MEAN_LENGTH)] * (NUM_STEPS - 1))
        assert case.other_seconds == pytest.approx(1.5)
        assert case.pause_seconds == pytest.approx([0.24] * (NUM_STEPS - 1))  # without the one generator's 0.01
        assert case.broadcast_seconds == pytest.approx(0.76)
        assert case.num_generators == RunData.load(RunFolder(tmp_path / "fake")).config.generator.num_generators

    @pytest.mark.parametrize(("base", "per_sequence"), [(0.002, 0.0004), (0.01, 0.00005)])
    def test_speed_by_sequences_in_flight(self, tmp_path: Path, base: float, per_sequence: float) -> None:
        found = generator_speed(RunData.load(measured_run(tmp_path, base, per_sequence)))
        for num in (4, 6, 8):
            assert found[0] + num * found[1] == pytest.approx(base + num * per_sequence, rel=0.1)

    def test_what_training_takes_from_generators(self, tmp_path: Path) -> None:
        base, per_sequence, lost = generator_speed(RunData.load(measured_run(tmp_path, lost=0.5)))
        assert lost == pytest.approx(0.5, abs=0.1)
        assert base + 6 * per_sequence == pytest.approx(0.002 + 6 * 0.0004, rel=0.1)

    def test_rest_of_a_step_is_never_negative(self) -> None:
        rows = [{**learner_row(step), "time": at(step * 1.0)} for step in (1, 2, 3)]
        assert other_seconds(rows) == 0

    def test_a_run_that_has_hardly_begun_is_refused(self, tmp_path: Path) -> None:
        folder = measured_run(tmp_path)
        lines = folder.metrics_file("learner").read_text().splitlines(keepends=True)
        folder.metrics_file("learner").write_text("".join(lines[:3]))
        with pytest.raises(NotMeasured, match="has 3 RL steps: a simulation needs 5"):
            measured(folder)

    def test_a_run_without_samples_is_refused(self, tmp_path: Path) -> None:
        folder = measured_run(tmp_path)
        for path in folder.samples.glob("*"):
            path.unlink()
        with pytest.raises(NotMeasured, match="no samples"):
            measured(folder)


def answer(tokens: float, paused: float = 0.0) -> Simulated:
    return Simulated(
        tokens_per_second=tokens, trajectories_per_second=1, seconds_per_step=1, staleness=[0, 1], learner_waiting=0.1,
        learner_training=0.7, learner_sending=0.1, learner_other=0.1, generators_busy=0.5, generators_paused=paused,
        generators_waiting=0.5 - paused, store_busy=0.1, pause_seconds=0.1, expired=0,
    )  # fmt: skip


class TestScenarios:
    def test_a_learner_that_grows_keeps_the_work_of_each_generator(self, tmp_path: Path) -> None:
        case = measured(measured_run(tmp_path))
        grown = by_number(case, 1, learner_grows=True)
        assert grown[8].batch_size == 8 * case.batch_size
        assert grown[8].learner_seconds_per_token[0] == pytest.approx(case.learner_seconds_per_token[0] / 8)
        assert max(case.batch_size for case in grown.values()) <= 150_000 / 8
        assert max(grown) < 10_000
        alone = by_number(case, 1, learner_grows=False)
        assert list(alone) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 10_000]
        assert alone[8].batch_size == case.batch_size

    def test_a_group_of_devices_is_one_engine_with_their_slots(self, tmp_path: Path) -> None:
        case = measured(measured_run(tmp_path)).model_copy(update={"num_generators": 8})
        group = in_groups(case, 4)
        assert (group.num_generators, group.slots) == (2, 4 * case.slots)
        rate, group_rate = (
            each.slots / (each.token_base_seconds + each.slots * each.token_seconds_per_sequence)
            for each in (case, group)
        )
        assert group_rate == pytest.approx(4 * 0.81 * rate)

    def test_longest_tail_is_one_in_a_hundred(self, tmp_path: Path) -> None:
        case = by_settings(measured(measured_run(tmp_path)))["1 response in 100 four times the longest"]
        assert case.lengths.count(560) / len(case.lengths) == pytest.approx(0.01, rel=0.05)

    def test_sentences_name_the_fewest_generators_and_where_pauses_begin_to_count(self, tmp_path: Path) -> None:
        cases = by_number(measured(measured_run(tmp_path)), 1, learner_grows=False)
        answers = {1: answer(100), 2: answer(190), 4: answer(196), 8: answer(197, paused=0.2)}
        changed = {name: answer(195) for name in by_settings(cases[2])}
        changed["rl.max_staleness=0"] = answer(120)
        changed["1 generator in 10 half as fast"] = answer(152)
        assert enough(answers) == 2
        rising = recommendations({1: answer(100), 2: answer(190)}, cases, changed)
        assert rising[0].startswith("2 generators: the most simulated are best")
        said = "\n".join(recommendations(answers, cases, changed))
        for words in (
            "2 generators: more make it at most 5% faster", "rl.max_staleness=1 at that number",
            "pauses: 10% of the time and more from 8 generators on", "half as fast: 20% slower",
            "Redis' thread: below 80% of the time at every number up to 8",
        ):  # fmt: skip
            assert words in said


class TestCommand:
    @pytest.mark.skipif(find_spec("simpy") is None, reason="the optional extra vcppo[simulation] is not installed")
    def test_tables_sentences_and_picture(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = measured_run(tmp_path)
        picture = tmp_path / "new" / "made.png"
        assert (
            cli.main(["plan", "--run", str(folder.path), "--simulate", "--picture", str(picture), "rl.batch_size=16"])
            == 0
        )
        said = capsys.readouterr().out
        for words in (
            "B = 16",
            "10000",
            "rl.max_staleness=4",
            "generators: more make it at most",
            "nothing of it was run",
        ):
            assert words in said
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_without_simpy_it_says_what_to_install(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(simulate_command, "find_spec", lambda _: None)
        assert cli.main(["plan", "--run", str(make_run(tmp_path).path), "--simulate"]) == 2
        assert "pip install 'vcppo[simulation]'" in capsys.readouterr().err

    @pytest.mark.parametrize("option", [("--learner-speed", "0"), ("--pause-per-generator", "-1")])
    def test_options_that_cannot_be(self, option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["plan", "--run", "runs/x", "--simulate", f"{option[0]}={option[1]}"])
        assert "must be" in capsys.readouterr().err
