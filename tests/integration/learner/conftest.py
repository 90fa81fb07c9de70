"""A tiny model, and scripted generators that answer a run's prompts until its test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.rig.learner_run import Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def generate(redis_server: str) -> Iterator[Callable[..., ScriptedGenerator]]:
    started: list[ScriptedGenerator] = []

    def start(run: Run, *arguments: Any, **settings: Any) -> ScriptedGenerator:
        generator = ScriptedGenerator(run.url, run.name, *arguments, **settings)
        generator.start()
        started.append(generator)
        return generator

    yield start
    for generator in started:
        generator.stop()
