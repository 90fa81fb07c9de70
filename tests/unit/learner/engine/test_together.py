"""What ranks write together, where disks are full: nothing half is left, and it goes on by itself."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from vcppo.common.errors import ResourceExhausted
from vcppo.learner.engine import together
from vcppo.learner.engine.save_errors import SaveErrors
from vcppo.learner.engine.together import write_together


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "RETRY_SECONDS", 0.001)


class Part:
    """Fails so many times with this error."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self.failures, self.error, self.done = failures, error or OSError(errno.ENOSPC, "no room"), 0

    def __call__(self) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.done += 1


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_all_parts_again_after_a_shortage_in_any(failing: int, tmp_path: Path) -> None:
    parts, clear = [Part() for _ in range(3)], Part()
    parts[failing].failures = 2
    with capture_logs() as lines:
        write_together(parts, clear, "the checkpoint", tmp_path)
    assert [part.done for part in parts] == [3] * failing + [1] * (3 - failing)
    assert clear.done == 2
    assert [line["event"] for line in lines] == ["waiting_for_room", "room_again"]


def test_clearing_may_want_what_has_run_out(tmp_path: Path) -> None:
    """A folder is a file to open: the next try begins with it again."""
    part, clear = Part(2), Part(2, OSError(errno.EMFILE, "Too many open files"))
    write_together([part], clear, "the checkpoint", tmp_path)
    assert (part.done, clear.done) == (1, 0)
    with pytest.raises(PermissionError):
        write_together([Part(1)], Part(1, PermissionError(errno.EACCES, "no")), "the checkpoint", tmp_path)


def test_a_library_without_error_numbers(tmp_path: Path) -> None:
    part = Part(1, RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"))
    write_together([part], Part(), "the checkpoint", tmp_path)
    assert part.done == 1


def test_another_error_is_raised_at_once(tmp_path: Path) -> None:
    clear = Part()
    with pytest.raises(ValueError, match="broken"):
        write_together([Part(1, ValueError("broken"))], clear, "the checkpoint", tmp_path)
    assert clear.done == 0


def test_a_request_to_stop_ends_the_wait(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="stopped while the checkpoint waited"):
        write_together([Part(1000)], Part(), "the checkpoint", tmp_path, stopping=lambda: True)


class Ranks:
    """Threads that stand for ranks: the two collectives of `together`, with a barrier that has a deadline."""

    def __init__(self, count: int) -> None:
        self.barrier, self.local, self.values = threading.Barrier(count, timeout=10), threading.local(), [0.0] * count
        self.said: Any = None

    def rank(self) -> int:
        return int(self.local.rank)

    def sum(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.values[self.rank()] = float(values[0])
        self.barrier.wait()
        total = np.array([sum(self.values)])
        self.barrier.wait()
        return total

    def broadcast(self, value: Any) -> Any:
        if self.rank() == 0:
            self.said = value
        self.barrier.wait()
        said = self.said
        self.barrier.wait()
        return said

    def run(self, work: Callable[[int], None]) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None] * len(self.values)

        def one(rank: int) -> None:
            self.local.rank = rank
            try:
                work(rank)
            except BaseException as error:  # noqa: BLE001
                errors[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(self.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return errors


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    found = Ranks(3)
    monkeypatch.setattr(together, "rank", found.rank)
    monkeypatch.setattr(together, "sum_over_ranks", found.sum)
    monkeypatch.setattr(together, "broadcast_object", found.broadcast)
    return found


def test_the_full_disk_of_one_rank_is_waited_for_by_all(ranks: Ranks, tmp_path: Path) -> None:
    parts = [[Part(), Part(2 if rank == 1 else 0), Part()] for rank in range(3)]
    clears = [Part() for _ in range(3)]
    errors = ranks.run(lambda rank: write_together(parts[rank], clears[rank], "the checkpoint", tmp_path))
    assert errors == [None] * 3
    assert [[part.done for part in each] for each in parts] == [[3, 3, 1], [3, 1, 1], [3, 3, 1]]
    assert [clear.done for clear in clears] == [2, 0, 0]


def test_rank_zero_is_told_to_stop_and_all_stop(ranks: Ranks, tmp_path: Path) -> None:
    errors = ranks.run(
        lambda rank: write_together([Part(1000 if rank == 2 else 0)], Part(), "it", tmp_path, lambda: rank == 0)
    )
    assert all(isinstance(error, ResourceExhausted) for error in errors)


class FakeDeepSpeed:
    """Saves collectively: after the writers comes a barrier."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.came_through, self.checkpoint_engine = error, False, self

    def makedirs(self, path: str, exist_ok: bool) -> None:
        del path, exist_ok

    def save(self, state: object, path: str) -> None:
        if self.error is not None:
            raise self.error

    def _copy_recovery_script(self, path: str) -> None:
        raise OSError(errno.ENOSPC, "a consequence")

    def save_checkpoint(self) -> None:
        self.checkpoint_engine.makedirs("x", exist_ok=True)
        self.checkpoint_engine.save({}, path="x")
        self._copy_recovery_script("x")
        self.came_through = True


def test_what_deepspeed_could_not_write_is_raised_after_its_collectives() -> None:
    engine = FakeDeepSpeed(RuntimeError("file write failed"))
    errors = SaveErrors(engine)
    engine.save_checkpoint()
    assert engine.came_through
    with pytest.raises(RuntimeError, match="file write failed"):
        errors.raise_first()
    errors.raise_first()  # once
