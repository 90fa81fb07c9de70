"""One verifier child: reads requests on stdin, writes verdicts on stdout, one JSON object a line.

The first line is the task section of the config. What the task itself prints goes to stderr, so that a chatty
verifier can't garble the answers. The parent kills this process when a verdict is late.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from common.config import TaskConfig
from common.log import inherit_logging
from common.tasks import Task, load_task


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    inherit_logging()
    task = load_task(TaskConfig.model_validate_json(sys.stdin.readline()))
    task.warm_up()
    answers.write('{"ready": true}\n')
    for line in sys.stdin:
        answers.write(json.dumps(judge(task, json.loads(line))) + "\n")


def judge(task: Task, request: dict[str, Any]) -> dict[str, Any]:
    """The verdict as ``{"outcome", "extracted", "detail"}``; an exception of the task is outcome ``crash``."""
    try:
        verdict = task.verify(request["answer"], request["response"], request["finish_reason"])
    except Exception as error:  # noqa: BLE001  (a task is the user's code: whatever it raises is its crash, not ours)
        return {"outcome": "crash", "extracted": None, "detail": f"{type(error).__name__}: {error}"}
    return {"outcome": verdict.outcome, "extracted": verdict.extracted, "detail": None}


if __name__ == "__main__":
    main()
