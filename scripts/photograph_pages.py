"""Photographs of the pages of a run, for the docs: `python -m scripts.photograph_pages runs/demo docs/images`.

Wants chromium (Debian: apt-get install chromium). Which responses are shown follows from the run: the two
that its page names. A second run beside it is compared with it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from tests.integration.rig.browser import Page, browser
from vcppo.common.config import load_config
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.samples.sources import steps_of
from vcppo.deploy.ui import rollouts

_CHARTS = "document.querySelectorAll('canvas').length > 0"
_READY = "true"


def main() -> int:
    """One PNG a view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("output", type=Path, help="folder of the pictures")
    given = parser.parse_args()
    command = [sys.executable, "-m", "vcppo.deploy.cli", "ui", str(given.run.parent), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            asyncio.run(_photograph(served.stdout.readline().strip().removesuffix("/"), given.run, given.output))
        finally:
            served.terminate()
    return 0


async def _photograph(address: str, run: Path, output: Path) -> None:
    folder, name = RunFolder(run), quote(run.name)
    last = list(steps_of(folder))[-1]
    rule = load_config(folder.config).reward_rule
    judged = rollouts.judged(folder, rule.low, rule.high)
    assert judged is not None and judged.misjudged is not None, "no critic, no samples, or nothing misjudged"
    sample = f"/sample?run={name}&step={last}&id="
    response, misjudged = sample + quote(judged.mind.id), sample + quote(judged.misjudged.id)
    others = sorted(path.parent.name for path in run.parent.glob("*/config.yaml") if path.parent != run)
    compared = "".join(f"&run={quote(each)}" for each in others[:1])
    views = {
        "ui_runs": ("/", _READY, 330),
        "ui_run": (f"/run?run={name}", _CHARTS, 1400),
        "ui_updates": (f"/run?run={name}#updates", _CHARTS, 900),
        "ui_samples": (f"/samples?run={name}&sort=critic+too+hopeful", _READY, 760),
        "ui_response": (response, _READY, 680),
        "ui_misjudged": (misjudged, _READY, 680),
        "ui_entropy": (f"{response}&by=entropy", _READY, 680),
        "ui_critic": (f"/critic?run={name}&step={last}", _CHARTS, 1250),
        "ui_evaluation": (f"/evaluation?run={name}", _READY, 500),
        "ui_logs": (f"/logs?run={name}&service=learner", _READY, 700),
        "ui_config": (f"/config?run={name}", _READY, 700),
    }
    if compared:
        views["ui_compare"] = (f"/compare?run={name}{compared}", _CHARTS, 1100)
    with tempfile.TemporaryDirectory() as profile:
        async with browser(Path(profile) / "profile") as page:
            for picture, (view, ready, height) in views.items():
                await page.call(
                    "Emulation.setDeviceMetricsOverride", width=1200, height=height, deviceScaleFactor=1, mobile=False
                )
                await page.open(address + view, ready)
                await _save(page, output / f"{picture}.png")


async def _save(page: Page, path: Path) -> None:
    found = await page.call("Page.captureScreenshot", format="png")
    with Image.open(io.BytesIO(base64.b64decode(found["data"]))) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size, and looks the same
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    sys.exit(main())
