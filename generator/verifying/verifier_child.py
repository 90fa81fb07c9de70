"""One verifier child: reads requests on stdin, writes verdicts on stdout, one JSON object a line (`verifier_lines`).

The first line is the task section of the config. What the task itself prints goes to stderr, so that a chatty
verifier can't garble the answers. The parent kills this process when a verdict is late; where the parent is gone, a
timer does. Memory is limited: what a response makes the task compute must not take the machine's.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from vcppo.common.config import TaskConfig
from vcppo.common.tasks import Task, Verdict, load_task
from vcppo.common.telemetry.log import inherit_logging
from vcppo.generator.verifying.verifier_lines import READY, reply_line

_ORPHAN_SECONDS = 10.0  # of processor time past the deadline


def main() -> None:
    """One verifier process: a line of JSON in, a verdict out, until stdin ends.

    Its memory is limited, its own stdout goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    inherit_logging()
    config = TaskConfig.model_validate_json(sys.stdin.readline())
    _limit_memory(config.verifier_memory_mib)
    task = load_task(config)
    task.warm_up()
    answers.write(reply_line(READY, Verdict("correct", None)))
    for line in sys.stdin:
        # SIGPROF: its default is to end the process, in the middle of C code too, and a task may use SIGALRM itself.
        signal.setitimer(signal.ITIMER_PROF, config.verifier_timeout_seconds + _ORPHAN_SECONDS)
        answers.write(judge(task, json.loads(line)))


def judge(task: Task, request: dict[str, Any]) -> str:
    """The reply's line; an exception of the task, or a verdict that is none, is outcome ``crash``."""
    number = request["number"]
    try:
        verdict = task.verify(request["answer"], request["response"], request["finish_reason"])
        return reply_line(number, verdict)
    except Exception as error:  # noqa: BLE001  (a task is the user's code: whatever it raises is its crash, not ours)
        return reply_line(number, Verdict("crash", None), f"{type(error).__name__}: {error}")


def _limit_memory(mebibytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
