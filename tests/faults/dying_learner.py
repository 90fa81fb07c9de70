"""The real learner process that kills itself (SIGKILL) at a named boundary of a named step, once; or freezes itself.

    [DYING_BY=SIGSTOP] python dying_learner.py BOUNDARY STEP --config …

Boundaries, in the order a step passes them. Nothing in the product knows of this: here its functions are wrapped.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.integration.rig.learner_process import NoMemberBroadcaster
from vcppo.common.process.end_process import end_process
from vcppo.common.store.run_store import RunStore
from vcppo.learner.__main__ import main
from vcppo.learner.engine.checkpoint import CheckpointStore
from vcppo.learner.rl import progress, resume
from vcppo.learner.rl.loop import RlLoop
from vcppo.learner.rl.trained_log import TrainedLog

BOUNDARIES = (
    "claimed",  # the batch is ours, nothing is computed
    "updated",  # new weights in memory, nothing written
    "logged",  # trained.jsonl has the step
    "staged",  # the checkpoint's files are written, not published
    "published",  # the checkpoint is there, nothing committed
    "committed",  # the store has settled the prompts, and knows up to which step
    "noted",  # all of it done, nothing broadcast
    "sending",  # about to send the weights
    "broadcast",  # weights sent, nothing issued
)
OF_DYNAMIC_SAMPLING = (
    "leaving_out",  # groups without signal are found, nothing is rejected
    "left_out",  # they are rejected, nothing is issued in their place
)

BY = signal.Signals[os.environ.get("DYING_BY", "SIGKILL")]


def die_after(owner: Any, name: str, is_due: Callable[..., bool]) -> None:
    """Wrap ``owner.name``: when it has returned and ``is_due(result, *arguments)``, the process dies as of SIGKILL."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        if is_due(result, *arguments):
            sys.stdout.flush()
            os.kill(os.getpid(), BY)
        return result

    setattr(owner, name, wrapped)


def die_before(owner: Any, name: str, is_due: Callable[..., bool]) -> None:
    """The same, when ``owner.name`` is called."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        if is_due(*arguments):
            sys.stdout.flush()
            os.kill(os.getpid(), BY)
        return original(*arguments, **keywords)

    setattr(owner, name, wrapped)


def arm(boundary: str, step: int) -> None:
    """Make this process die there."""
    current = [0]  # the step whose checkpoint is being committed
    commit = resume.commit

    def noting(store: RunStore, prompt_ids: list[str], committed_step: int) -> None:
        current[0] = committed_step
        commit(store, prompt_ids, committed_step)

    resume.commit = progress.commit = noting
    match boundary:
        case "claimed":
            die_after(RunStore, "take", lambda _, store, ids, claimed_step: claimed_step == step)
        case "updated":
            die_after(RlLoop, "train", lambda _, self, *rest: self.version == step)
        case "logged":
            die_after(TrainedLog, "append", lambda _, self, logged_step, batch: logged_step == step)
        case "staged":
            die_after(progress, "save_rng", lambda _, folder, rank: folder.name.endswith(f"{step:06d}"))
        case "published":
            die_after(CheckpointStore, "publish", lambda folder, self, state: state.step == step)
        case "committed":
            die_after(RunStore, "commit", lambda _, store, *rest: current[0] == step)
        case "noted":
            die_after(progress, "commit", lambda _, store, ids, committed_step: committed_step == step)
        case "sending":
            die_before(NoMemberBroadcaster, "broadcast", lambda self, version, canary=None: version == step)
        case "leaving_out":
            die_before(RunStore, "leave_out", lambda self, ids, fact: f'"{step}":' in fact[1])
        case "left_out":
            die_after(RunStore, "leave_out", lambda _, self, ids, fact: f'"{step}":' in fact[1])
        case "broadcast":
            die_after(NoMemberBroadcaster, "broadcast", lambda _, self, version, canary=None: version == step)
        case _:
            raise ValueError(f"no boundary {boundary!r}")


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    end_process(main(sys.argv[3:], NoMemberBroadcaster))
