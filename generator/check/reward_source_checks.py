"""The reward service or judge, asked once about one response: is it there, and is what it says a reward?"""

from __future__ import annotations

import time

from vcppo.common.check.check_lines import Result, failed, passed
from vcppo.common.config import VcppoConfig
from vcppo.common.tasks import Problem, Verdict
from vcppo.generator.reward_sources.items import Asked, RequestFailed
from vcppo.generator.reward_sources.source import open_source, scored


async def asked_once(
    config: VcppoConfig,
    problem: Problem,
    response: str,
    verdict: Verdict,
    turns: tuple[float, ...] | None = None,
) -> Result:
    """Its answer about `response`, as one line.

    Args:
        turns: rewards of the turns, in a task of several.

    Raises:
        ConfigError: key, certificates or template can't be used.
    """
    name = config.task.reward_source_name
    source, settings = open_source(config), config.task.reward_source
    assert source is not None and settings is not None
    where = f"{name}.url = {settings.url}"
    began = time.monotonic()
    prompt = problem.prompt if isinstance(problem.prompt, str) else str(problem.prompt)
    asked = Asked("check-0", prompt, problem.answer, response, "stop", 1, verdict, turns)
    try:
        answers = await source.asker.request([asked])
        if fault := answers.faults.get(asked.id):
            return failed(f"{where}: its answer is no reward: {fault}", "see docs/rewards.md for what it must answer")
        score = scored(config.reward_rule, asked, answers.said[asked.id])
    except RequestFailed as error:
        return failed(f"{where}: {error}", f"start it, or correct {name}.url, its key or its deadline_seconds")
    except ValueError as error:
        return failed(f"{where}: its answer is no reward: {error}", "mend it, or set task.reward_range")
    finally:
        await source.close()
    seconds = time.monotonic() - began
    return passed(f"{where}: a response that is {score.outcome} earns {score.reward:g}, {1000 * seconds:.0f} ms")
