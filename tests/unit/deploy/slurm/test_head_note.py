"""The note by which others find a run's head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vcppo.common.errors import DeadlineExceeded
from vcppo.deploy.slurm.head_note import HeadNote, note_file, read_note, remove_note, wait_for_note, write_note

NOTE = HeadNote(
    state="up",
    job="12",
    restart=0,
    address="10.0.0.1",
    rendezvous=29_400,
    redis_url="redis://10.0.0.1:6379/0",
    endpoints=("tcp://10.0.0.1:5755",),
    launch="launcher:1:ab",
)
NEXT = replace(NOTE, restart=1, launch="launcher:2:cd")


def test_it_comes_back_as_it_was_written_and_is_the_users_alone(tmp_path: Path) -> None:
    write_note(tmp_path, NOTE)
    assert read_note(tmp_path) == NOTE
    assert note_file(tmp_path).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "[]", "{", '{"state": "up"}', '{"endpoints": 3}'])
def test_what_is_no_note_is_none(tmp_path: Path, text: str) -> None:
    note_file(tmp_path).parent.mkdir()
    note_file(tmp_path).write_text(text)
    assert read_note(tmp_path) is None


def test_settings_are_those_of_a_config() -> None:
    assert NOTE.settings == [
        "redis.url=redis://10.0.0.1:6379/0",
        "transport.endpoints=[tcp://10.0.0.1:5755]",
        "broadcast.host=10.0.0.1",
    ]
    assert not any("redis.url" in word for word in replace(NOTE, redis_url=None).settings)


def test_a_start_is_over_when_its_note_says_so_or_another_came() -> None:
    assert not NOTE.is_over_by(NOTE)
    assert not NOTE.is_over_by(None)  # a file system that hides it for a moment
    assert NOTE.is_over_by(NOTE.ended("stopped"))
    assert NOTE.is_over_by(NEXT)


def test_who_worked_for_a_start_goes_by_its_end_and_by_the_next(tmp_path: Path) -> None:
    """A generator that saw `done` once waited for another head for a quarter of an hour."""
    assert not NOTE.takes_over(NOTE)
    assert not NOTE.ended("stopped").takes_over(NOTE)
    assert NOTE.ended("done").takes_over(NOTE)
    assert NEXT.takes_over(NOTE)
    assert NOTE.takes_over(None)


def test_a_run_that_is_submitted_again_has_no_end_yet(tmp_path: Path) -> None:
    write_note(tmp_path, NOTE.ended("failed"))
    remove_note(tmp_path)
    assert read_note(tmp_path) is None
    remove_note(tmp_path)


def test_waiting_is_for_a_head_that_is_up_and_suits(tmp_path: Path) -> None:
    written = iter([NOTE.ended("stopped"), NOTE, NEXT])
    found = wait_for_note(
        tmp_path, lambda note: note.takes_over(NOTE), 60, pause=lambda _: write_note(tmp_path, next(written))
    )
    assert found == NEXT


def test_a_final_note_is_an_answer(tmp_path: Path) -> None:
    write_note(tmp_path, NOTE.ended("done"))
    assert wait_for_note(tmp_path, lambda _: True, 0).is_final


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded, match="there is none"):
        wait_for_note(tmp_path, lambda _: True, 0)
    write_note(tmp_path, NOTE.ended("stopped"))
    with pytest.raises(DeadlineExceeded, match="it says 'stopped', of job 12"):
        wait_for_note(tmp_path, lambda _: True, 0)
