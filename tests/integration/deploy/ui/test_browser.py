"""The pages in a real browser, served by the real command: curves are drawn, and nothing that a model wrote runs.

Left out where there is no chromium (Debian: apt-get install chromium).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from tests.integration.rig.browser import CHROMIUM, browser
from tests.paths import ROOT
from tests.unit.rig.fake_run import make_run, rl_row
from tests.unit.rig.learner_samples import trajectory
from tests.unit.rig.written_samples import write_step
from vcppo.common.telemetry.metrics import MetricsWriter

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
WORDS = [f"{HOSTILE} ", *(f"word{number} " for number in range(1, 100))]
SAMPLE = f"/sample?run=first&step=3&id={quote('rl-00000003-0@generator-0.0')}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    folder = make_run(root, "first")
    make_run(root, "second")
    rng = np.random.default_rng(0)
    made = [trajectory(rng, f"rl-00000003-{i}", 4, 30, group="rl-00000003") for i in range(4)]
    write_step(
        folder.samples, 3, [replace(each, response_token_ids=each.response_token_ids % 3) for each in made], WORDS
    )
    return root


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "vcppo.deploy.cli", "ui", str(runs), "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as served:
        assert served.stdout is not None
        yield served.stdout.readline().strip().removesuffix("/")
        served.terminate()
        served.wait(20)


FITS = "[...document.querySelectorAll('.chart')].every((box) => box.scrollWidth <= box.clientWidth + 1)"
DRAWN = """(() => {
  const [boxes, canvases] = [".chart", "canvas"].map((kind) => document.querySelectorAll(kind).length);
  return boxes > 1 && canvases === boxes;
})()"""
VIEWS = {  # address: what is true when it stands
    "/": "true", "/compare?run=first&run=second": DRAWN, "/run?run=first": DRAWN, "/samples?run=first": "true",
    SAMPLE: "true", "/critic?run=first": DRAWN, "/evaluation?run=first": "true", "/logs?run=first": "true",
    "/config?run=first": "true",
}  # fmt: skip


def test_every_view_is_drawn_and_nothing_hostile_runs(address: str, tmp_path: Path) -> None:
    async def look() -> None:
        async with browser(tmp_path / "profile") as page:
            for view, stands in VIEWS.items():
                await page.open(address + view, stands)
                assert page.complaints == [], view
                assert await page.ask(FITS), view
                title = await page.ask("document.title")
                assert title.endswith("· vcppo") and "taken" not in title, view

    asyncio.run(look())


def test_a_response_is_read_with_mouse_and_keys(address: str, tmp_path: Path) -> None:
    async def read() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.open(address + SAMPLE, "document.querySelectorAll('.tokens span').length === 30")
            framed = await page.ask("[...document.querySelectorAll('.tokens span')].findIndex((it) => it.id)")
            said = "document.getElementById('numbers').textContent"
            assert framed > 0 and f"token {framed} · value" in await page.ask(said)  # without a touch
            for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
                await page.ask(
                    f"document.querySelector('.tokens').dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}))"
                )
            assert f"token {framed - 1} · value" in await page.ask(said)
            assert await page.ask("document.querySelectorAll('.tokens .here').length") == 1
            token = "document.querySelectorAll('.tokens span')[5]"
            await page.ask(f"{token}.dispatchEvent(new MouseEvent('mouseover', {{bubbles: true}}))")
            assert "token 5 ·" in await page.ask(said)

    asyncio.run(read())


LEGEND = "document.querySelector('.chart .u-legend').textContent"
INTERVALS = """(() => {
  const plots = [...document.querySelectorAll(".charts")].flatMap((place) => place.plots);
  const { plot } = plots.find(({ plot }) => plot.chart.title === "Accuracy");
  const at = plot.data[0].indexOf(0);
  const [x, y] = [plot.valToPos(0, "x", true), plot.valToPos(plot.chart.intervals[1][1][at], "y", true)];
  return [...plot.ctx.getImageData(x, y + 1, 1, 1).data];
})()"""


def test_a_chart_says_its_last_numbers_and_draws_intervals(address: str, tmp_path: Path) -> None:
    async def look() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.open(f"{address}/run?run=first", DRAWN)
            await page.wait(f"{LEGEND}.includes('training batches')")
            await page.wait(f"{LEGEND}.includes('86.0 %')")  # the export's evaluation, with no mouse in the chart
            colour = await page.ask(INTERVALS)
            assert colour[3] > 0 and colour[0] > 200 > colour[2], f"no orange bar above the cold start: {colour}"

    asyncio.run(look())


def test_a_newcomer_finds_what_the_critic_misjudged_and_where_it_changed_its_mind(address: str, tmp_path: Path) -> None:
    """From the list of runs, by links that say what they lead to, to the framed token and its numbers."""

    async def find() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.open(address, "document.querySelector('td a')")
            for link in ("first", "A response that it misjudged"):
                words = json.dumps(link)
                await page.ask(f"[...document.querySelectorAll('a')].find((a) => a.textContent === {words}).click()")
                await page.wait(f"![...document.querySelectorAll('a')].some((a) => a.textContent === {words})")
            assert "The critic misjudged it." in await page.ask("document.querySelector('.verdict').textContent")
            framed = await page.ask("document.querySelector('.tokens #turning.turning').textContent")
            assert json.dumps(framed) in await page.ask("document.getElementById('numbers').textContent")

    asyncio.run(find())


def test_a_page_grows_with_its_run(runs: Path, address: str, tmp_path: Path) -> None:
    async def follow() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.open(f"{address}/run?run=first", "document.getElementById('live').textContent === 'live'")
            assert "30 of 30" in await page.ask("document.querySelector('.tiles').textContent")
            MetricsWriter(runs / "first", "learner", "fake").write(31, {"stage": "rl", **rl_row(31)})
            await page.wait("document.querySelector('.tiles').textContent.includes('31 of 30')")

    asyncio.run(follow())
