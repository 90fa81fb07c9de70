"""Checkpoints as a resuming learner reads them: a folder in which a broken disk or a hostile hand changed something.

A case is a list of changes, one a line: what, to which file, with which bytes. Read, or refused by `CheckpointError`,
and then the older one is used. Never read as something else, nothing outside the folder touched.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import torch

from tests.fuzz.rig.harness import ACCEPTED, Harness, scratch
from tests.fuzz.rig.mutate import mutate_bytes
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.learner.engine.checkpoint import (
    MANIFEST,
    CheckpointError,
    CheckpointState,
    CheckpointStore,
    _content_sum,
    load_rng,
    save_rng,
)
from vcppo.learner.rl.resume import newest_checkpoint, write_settings

_ROOT = scratch() / "checkpoints"
_CONFIG = VcppoConfig.model_validate(
    {
        "model": {"path": "x"},
        "rl": {"batch_size": 4, "group_size": 2, "num_steps": 5},
        "algorithm": {"num_mini_batches": 1},
    }
)
_OUTSIDE = _ROOT.parent / "outside"
_SIX = bytes([6]) * 64  # as the newer checkpoint's weights: a link to it has the right sum
_OLD, _NEW = "step-000003", "step-000006"
_FILES = (MANIFEST, "settings.json", "rng-rank-00000.safetensors", "actor/weights")


def _make() -> dict[str, bytes]:
    _OUTSIDE.write_bytes(_SIX)
    store = CheckpointStore(_ROOT, keep=2)
    for step in (3, 6):
        folder = store.begin(step)
        (folder / "actor").mkdir()
        (folder / "actor" / "weights").write_bytes(bytes([step]) * 64)
        write_settings(folder, _CONFIG)
        save_rng(folder, 0)
        store.publish(CheckpointState(step, {"rl": 8 * step}, ["rl-1"], "abc", num_ranks=1, zero_stage=0))
    return {name: (_ROOT / _NEW / name).read_bytes() for name in _FILES}


_CONTENT = _make()


def one(data: bytes) -> str:
    """See the module's text."""
    folder = _ROOT / _NEW
    try:
        for line in data.split(b"\n"):
            _change(folder, line)
        return _resume()
    finally:
        _put_back(folder)


def _resume() -> str:
    before = torch.get_rng_state()
    try:
        found = newest_checkpoint(CheckpointStore(_ROOT, keep=2), _CONFIG)
        assert found is not None and type(found["step"]) is int
        if found["folder"].endswith(_OLD):
            assert found["step"] == 3
            return "the older one"
        load_rng(Path(found["folder"]), 0)
    except VcppoError as error:
        return _reason(error)
    finally:
        torch.set_rng_state(before)
    return ACCEPTED


def _reason(error: VcppoError) -> str:
    text = str(error)
    assert len(text) < 3000 and all(line.isprintable() for line in text.splitlines()), text[:200]
    assert isinstance(error, CheckpointError) or "settings" in text, text[:200]
    return text.removeprefix(str(_ROOT))[:24]


def _change(folder: Path, line: bytes) -> None:
    """``what NUMBER hex``; another form changes nothing. Links lead to scratch files, never written through."""
    what, _, rest = line.partition(b" ")
    number, _, text = rest.partition(b" ")
    path = folder / _FILES[int(number) % len(_FILES)] if number.isdigit() and len(number) < 9 else folder / MANIFEST
    try:
        content = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        return
    if what in (b"write", b"raw") and path.is_file() and not path.is_symlink():
        path.write_bytes(content)
        if what == b"write":
            _seal(folder)
    elif what == b"remove" and not path.is_dir():
        path.unlink(missing_ok=True)
    elif what == b"link" and path.is_file():
        path.unlink()
        path.symlink_to(_OUTSIDE if content[:1] == b"/" else "../step-000003/actor/weights")
    elif what == b"folder" and path.is_file():
        path.unlink()
        path.mkdir()
    elif what == b"extra":
        (folder / "extra").write_bytes(content)
    elif what == b"pipe":
        os.mkfifo(folder / f"pipe-{len(os.listdir(folder))}")


def _seal(folder: Path) -> None:
    """The sums as a hostile hand would make them anew: what is in the files counts then."""
    if (folder / MANIFEST).is_symlink():
        return
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        from vcppo.learner.engine.checkpoint import _summarise

        files = _summarise(folder)
        files.pop(MANIFEST, None)
        manifest["files"] = files
        manifest["sha256"] = _content_sum({name: manifest.get(name) for name in ("state", "files")})
    except (ValueError, TypeError, RecursionError, OSError):
        return
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _put_back(folder: Path) -> None:
    shutil.rmtree(folder)  # never written into while a link may be left in it
    assert _OUTSIDE.read_bytes() == _SIX, "a file outside of the checkpoint was changed"
    (folder / "actor").mkdir(parents=True)
    for name, content in _CONTENT.items():
        (folder / name).write_bytes(content)


_WHATS = (b"write", b"write", b"raw", b"remove", b"link", b"folder", b"extra", b"pipe")
_JSON = (
    b"{}",
    b"[]",
    b"null",
    b"[" * 5000,
    b'{"rl.batch_size": [[]]}',
    b'{"rl.batch_size": 1e999}',
    b'{"\\ud800": 1}',
    b'{"rl": {"batch_size": "\\u001b[2J"}}',
    b"9" * 5000,
)


def seeds() -> list[bytes]:
    weights = _CONTENT["actor/weights"].hex().encode()
    return [b"", b"raw 3 " + weights, b"write 3 " + weights, b"write 1 " + _CONTENT["settings.json"].hex().encode()]


def draw(rng: Random) -> bytes:
    lines = []
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        number = rng.randrange(len(_FILES))
        content = _CONTENT[_FILES[number]]
        changed = rng.choice(_JSON) if number < 2 and rng.random() < 0.3 else mutate_bytes(rng, content)
        what = rng.choice(_WHATS)
        if what == b"link":
            changed = rng.choice((b"/", b"."))
        lines.append(b"%s %d %s" % (what, number, changed.hex().encode()))
    return b"\n".join(lines)


HARNESS = Harness("checkpoints", one, draw, seeds)
