"""One verifier child: reads requests on stdin, writes verdicts on stdout, one JSON object a line (`verifier_lines`).

The first line is the task section of the config. What the task itself prints goes to stderr, so that a chatty
verifier can't garble the answers. The parent kills this process when a verdict is late; where the parent is gone, a
timer does. Memory is limited: what a response makes the task compute must not take the machine's.

A task of several turns has nothing to verify: then the verdict is ``correct``, and only the components are looked at.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcppo.common.config import TaskConfig
from vcppo.common.rewards.reward_functions import RewardFunction, load_reward_functions, value_of
from vcppo.common.rewards.reward_parts import FORMAT, parts_of_verdict
from vcppo.common.tasks import Task, Verdict, load_task, task_class
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
    limit_memory(config.verifier_memory_mib)
    task = None if task_class(config.name).is_environment else load_task(config)
    components = Components.of(config)
    if task is not None:
        task.warm_up()
    answers.write(reply_line(READY, Verdict("correct", None)))
    for line in sys.stdin:
        # SIGPROF: its default is to end the process, in the middle of C code too, and a task may use SIGALRM itself.
        signal.setitimer(signal.ITIMER_PROF, config.verifier_timeout_seconds + _ORPHAN_SECONDS)
        answers.write(judge(task, components, json.loads(line)))


@dataclass(frozen=True)
class Components:
    """What is added to a verdict's own components: functions of the user's, by name, and the format's pattern."""

    functions: Mapping[str, RewardFunction]
    pattern: re.Pattern[str] | None

    @classmethod
    def of(cls, config: TaskConfig) -> Components:
        """Raises RewardError for a function that can't be loaded."""
        functions = load_reward_functions(each.name for each in config.rewards)
        return cls(functions, None if config.format_pattern is None else re.compile(config.format_pattern))

    def added_to(
        self, verdict: Verdict, answer: Mapping[str, object], response: str, finish_reason: Any, messages: Any = ()
    ) -> Verdict:
        """The verdict with all components. ValueError for one that is no number, or given twice."""
        own = {
            name: value_of(function, answer, response, finish_reason, messages)
            for name, function in self.functions.items()
        }
        if self.pattern is not None:
            own[FORMAT] = float(self.pattern.search(response) is not None)
        given = parts_of_verdict(verdict.components)
        if twice := sorted(own.keys() & given.keys()):
            raise ValueError(f"components: {twice[0]!r} is given by the task and by task.rewards or format_pattern too")
        return verdict._replace(components=given | own)


def judge(task: Task | None, components: Components, request: dict[str, Any]) -> str:
    """The reply's line; an exception of the user's code, or a verdict that is none, is outcome ``crash``.

    Args:
        task: None: it has several turns and has judged them already.
    """
    number, asked = request["number"], (request["answer"], request["response"], request["finish_reason"])
    try:
        verdict = Verdict("correct", None) if task is None else Verdict(*task.verify(*asked))
        return reply_line(number, components.added_to(verdict, *asked, messages=request["messages"]))
    except Exception as error:  # noqa: BLE001  (a task is the user's code: whatever it raises is its crash, not ours)
        return reply_line(number, Verdict("crash", None), f"{type(error).__name__}: {error}")


def limit_memory(mebibytes: int) -> None:
    """Of this process, what it allocates: more is a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
