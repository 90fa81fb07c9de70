"""What we read back of our own, after a damaged disk or a hostile member: refused by name or passed over, no crash."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from rich.console import Console

from tests.fuzz.wire import a_trajectory
from tests.unit.rig.fake_run import config_of
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import read_json_object
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.codec import dead_letter_from, member_from
from vcppo.common.store.ledger import DeadLetter, Ledger
from vcppo.common.telemetry.log_render import render_line
from vcppo.common.transport.receiver import TrajectoryReceiver
from vcppo.deploy.terminal.ledger_command import print_ledger
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.rl.trained_log import check_trained_once, read_trained_log
from vcppo.learner.value_pretraining.stage import CRITIC_FOLDER, DECISION_FILE, is_done


def record(number: int) -> bytes:
    payload = encode_trajectory(a_trajectory(prompt_id=f"vp-{number}"))
    packed: bytes = msgpack.packb([zlib.crc32(payload), payload])
    return packed


def test_a_bad_length_is_damage_and_not_a_torn_tail(tmp_path: Path) -> None:
    """One flipped bit in the middle made every record after it a tail, which was cut off: committed trajectories."""
    path = tmp_path / "trajectories.msgpack"
    first, *rest = (record(number) for number in range(5))
    at = len(msgpack.packb(zlib.crc32(first[7:]))) + 2  # the high byte of the payload's length
    damaged = bytearray(first + b"".join(rest))
    assert damaged[at - 1] == 0xC5
    damaged[at] |= 0x40
    path.write_bytes(damaged)
    with pytest.raises(VcppoError, match=r"damaged after 0 bytes .*a record is longer than it was"):
        TrajectoryFile(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("cut", [1, 5, 40, 300])
def test_a_torn_tail_is_still_one(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "trajectories.msgpack"
    path.write_bytes((record(0) + record(1))[:-cut])
    file = TrajectoryFile(path)
    assert [trajectory.prompt_id for trajectory in file.trajectories] == ["vp-0"]
    file.close()


LINE = {"step": 1, "policy_version": 0, "prompt_ids": ["a"], "trajectory_ids": ["a@g"], "staleness": [0]}


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"null", b"{}", b'{"step": "1"}', b"[" * 100_000, b"\0" * 4096, b"\xff",
     json.dumps(LINE | {"step": [1]}).encode(), json.dumps(LINE | {"staleness": ["x"]}).encode(),
     json.dumps(LINE | {"prompt_ids": "a"}).encode()],
)  # fmt: skip
def test_a_line_that_is_none_is_passed_over(tmp_path: Path, line: bytes) -> None:
    """A power cut leaves zeros; any of these ended a run that was complete, in its last check."""
    path = tmp_path / "trained.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n" + line + b"\n")
    assert read_trained_log(path) == {1: LINE | {"segment_ids": []}}
    assert check_trained_once(path, 0) == 1


def test_a_batch_of_nothing_has_no_staleness(tmp_path: Path) -> None:
    path = tmp_path / "trained.jsonl"
    path.write_text(json.dumps(LINE | {"prompt_ids": [], "trajectory_ids": [], "staleness": []}))
    assert check_trained_once(path, 0) == 0


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\0\0"])
def test_a_damaged_marker_names_its_file_and_the_remedy(tmp_path: Path, text: str) -> None:
    config = config_of(tmp_path)
    folder = RunFolder(config.run.path).value_pretraining
    (folder / CRITIC_FOLDER).mkdir(parents=True)
    (folder / CRITIC_FOLDER / "config.json").write_text("{}")
    (folder / DECISION_FILE).write_text(text)
    with pytest.raises(VcppoError, match=r"decision\.json: is damaged .*: remove it, and value pretraining"):
        is_done(config)
    (folder / DECISION_FILE).write_text('{"best_step": 3}')
    assert not is_done(config)
    with pytest.raises(VcppoError, match="No such file"):
        read_json_object(tmp_path / "none", "remedy")


MEMBER = {"id": "g", "role": "generator", "control_endpoint": "", "policy_version": 1, "epoch": 1, "info": {}}


@pytest.mark.parametrize(
    "value",
    [None, 7, [], {}, MEMBER | {"id": 7}, MEMBER | {"epoch": "1"}, MEMBER | {"policy_version": True},
     MEMBER | {"info": []}, MEMBER | {"surplus": 1}, {"role": "generator"}],
)  # fmt: skip
def test_an_entry_that_is_no_member_is_a_value_error(value: object) -> None:
    assert member_from(msgpack.packb(MEMBER)).id == "g"
    with pytest.raises(ValueError, match=r"^not a member: "):
        member_from(msgpack.packb(value))


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff" * 300, b"\x91" * 5000])
def test_bytes_that_are_no_member_are_a_value_error(packed: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a member: "):
        member_from(packed)


def test_a_dead_letter_is_read_whatever_it_holds() -> None:
    letter = dead_letter_from(b"1700000000000-0", {b"reason": b"\xff", b"size": b"-1", b"payload": b"abc"})
    assert (letter.reason, letter.size, letter.detail) == ("\ufffd", 3, "")


def test_what_a_peer_called_itself_is_text_and_neither_markup_nor_escape() -> None:
    """``[/x]`` as a message id ended `vcppo ledger`; an escape sequence cleared the terminal."""
    letter = DeadLetter("1-0", 0.0, "invalid trajectory", "[/x]\x1b[2J\u202e: not so", "g", 3, b"")
    store: Any = SimpleNamespace(ledger=Ledger, dead_letters=lambda: [letter], get_value=lambda _: None)
    out = io.StringIO()
    assert print_ledger(store, Console(file=out, width=200))
    assert "invalid trajectory: [/x]\\x1b[2J" in out.getvalue() and "\x1b" not in out.getvalue()
    rendered = render_line({"event": "x\x1b[2J", "sender": "\x1b]0;evil\x07", "other": "\x9b2J\u202e"})
    assert rendered.isprintable()


@pytest.mark.parametrize("raw", [b"\x1b[2J", b"a\nb", b"a\tb", "\u202e".encode(), b"\xff", b"", b"x" * 257])
def test_a_message_id_that_is_no_plain_text_is_refused(raw: bytes) -> None:
    parser = TrajectoryReceiver.__new__(TrajectoryReceiver)
    parser._max_bytes = 100
    received = parser._parse([b"\x1b[2J\xff", b"trajectory", raw, b"payload"])
    assert received.message_id == "" and received.error.startswith("message id: not 1 to 256 bytes")
    assert received.sender == "\\x1b[2J\\\\xff"
