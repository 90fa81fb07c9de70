"""Generators in containers of their own share a list of GPUs, and none is taken twice."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.deploy.placement.test_place import gpus
from vcppo.common.errors import DeadlineExceeded
from vcppo.deploy.placement import claims
from vcppo.deploy.placement.claims import claim
from vcppo.deploy.placement.place import PlacementError


def names(found: claims.Claim) -> list[str]:
    return [device.name for device in found.devices]


def test_each_takes_what_nobody_has(tmp_path: Path) -> None:
    devices = gpus(4)
    first, second = claim(tmp_path, devices, 1, "generator-a"), claim(tmp_path, devices, 2, "generator-b")
    assert (names(first), names(second)) == (["0"], ["1", "2"])
    assert (tmp_path / "GPU-1.lock").read_text() == "generator-b\n"
    with pytest.raises(PlacementError, match=r"generator-c needs 2 of the 4 GPUs .* all but 1 .*GENERATOR_DEVICES"):
        claim(tmp_path, devices, 2, "generator-c")
    with closing(claim(tmp_path, devices, 1, "generator-c")) as third:
        assert names(third) == ["3"]  # what the refused one had looked at is free again
    first.close()
    assert names(claim(tmp_path, devices, 1, "generator-d")) == ["0"]
    second.close()


def test_several_are_taken_on_one_node(tmp_path: Path) -> None:
    devices = gpus(8, 2)
    one, wide = claim(tmp_path, devices, 1, "a"), claim(tmp_path, devices, 4, "b")
    assert names(wide) == ["4", "5", "6", "7"]
    one.close()
    wide.close()


def test_a_gpu_is_free_when_its_holder_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.unit.deploy.placement.test_place import gpus\n"
        "from vcppo.deploy.placement.claims import claim\n"
        "claimed = claim(Path(sys.argv[1]), gpus(1), 1, 'it'); print('has it', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
        with pytest.raises(PlacementError):
            claim(tmp_path, gpus(1), 1, "other")
    finally:
        holder.kill()
        holder.wait(timeout=10)
    assert names(claim(tmp_path, gpus(1), 1, "other")) == ["0"]


def test_all_that_come_at_once_get_theirs(tmp_path: Path) -> None:
    """Three that want two of six: had each taken what it could, none would have had two."""
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda number: claim(tmp_path, gpus(6), 2, f"generator-{number}"), range(3)))
    assert sorted(name for each in found for name in names(each)) == ["0", "1", "2", "3", "4", "5"]


def test_whoever_chooses_for_ever_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_DEADLINE_SECONDS", 0.2)
    with claims._alone(tmp_path), pytest.raises(DeadlineExceeded, match=r"choosing locked for 0\.2 s"):
        claim(tmp_path, gpus(1), 1, "late")
