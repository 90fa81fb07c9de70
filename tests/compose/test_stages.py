"""One stage alone: `docker compose run --rm sft`, then `value-pretraining`, and no RL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.rig import RUN, Application, application

pytestmark = [pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def app(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    log_file = tmp_path_factory.mktemp("stages") / "lines.jsonl"
    with application("stages", image, log_file, GENERATORS="1", LEARNER_THREADS="1") as made:
        yield made


def listed(app: Application, folder: str) -> set[str]:
    return set(app.compose("run", "--rm", "--no-deps", "--no-TTY", "--entrypoint", "ls", "cli", folder).split())


def test_the_cold_start(app: Application) -> None:
    app.compose("run", "--rm", "--no-TTY", "sft")
    assert {"config.json", "model.safetensors"} <= listed(app, f"/runs/{RUN}/cold_start")


def test_value_pretraining_ends_before_rl(app: Application) -> None:
    app.compose("run", "--rm", "--no-TTY", "value-pretraining", timeout=600)
    assert {"critic", "decision.json"} <= listed(app, f"/runs/{RUN}/value_pretraining")
    assert "checkpoints" not in listed(app, f"/runs/{RUN}") or not listed(app, f"/runs/{RUN}/checkpoints")
