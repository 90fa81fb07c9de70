"""Where a reward's number comes from when the task's own code does not give it: an HTTP service, or a judge."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from vcppo.common.config.base import Pattern, Positive, Seconds, Section

PLACEHOLDER = re.compile(r"\{(prompt|response|messages|answer)(?:\.(\w+))?\}")
"""What a judge's template may hold: `{prompt}`, `{response}`, `{messages}`, `{answer}`, and `{answer.NAME}` for a part
of the last."""
_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
_TEMPLATE = (
    "Judge the response to a problem.\n\nProblem:\n{prompt}\n\nReference:\n{answer}\n\nResponse:\n{response}\n\n"
    "How good is it, from 0 (of no use) to 1 (perfect)? End with the number alone on the last line."
)


class RewardSourceConfig(Section):
    """How any source of rewards is reached, and how long it is waited for."""

    url: str | None = None
    """Its http or https address; null: there is none."""

    max_concurrency: int = Field(default=8, ge=1, le=1024)
    """Most requests of one generator at once."""

    deadline_seconds: Seconds = 60.0
    """Of one request; a later answer is not waited for."""

    back_off_seconds: Seconds = 0.5
    """Wait before a failed request is made again. It doubles with each failure, to 30 s at most, and varies at
    random."""

    answer_tries: int = Field(default=3, ge=1, le=100)
    """How often one response is asked about, when its answer is no reward. Then its prompt is rejected by name."""

    breaker_failures: Positive = 5
    """So many failed requests after each other, and the source counts as away: generators lease nothing more."""

    breaker_seconds: Seconds = 5.0
    """How often one request looks whether a source that is away is back."""

    patience_seconds: Seconds = 300.0
    """How long a response waits for a source that is away. Then its prompt is handed back; nothing is trained of it."""

    key_file: str | None = None
    """File with the key, sent as `Authorization: Bearer`; only you may be able to read it. null: the variable below."""

    ca_file: str | None = None
    """Certificates that an https address is checked against; null: the system's."""


class RewardServiceConfig(RewardSourceConfig):
    """A reward service over HTTP (docs/rewards.md)."""

    batch_size: int = Field(default=32, ge=1, le=1024)
    """Most responses in one request."""

    batch_wait_seconds: float = Field(default=0.05, ge=0, le=60)
    """How long a request waits for more responses."""

    send_messages: bool = False
    """Tell it the whole conversation too, as `messages`: in a task of several turns who said what."""

    key_variable: str = Field(default="VCPPO_REWARD_SERVICE_KEY", pattern=_VARIABLE)
    """Environment variable with the key, where there is no key file; unset: no key is sent."""


class JudgeConfig(RewardSourceConfig):
    """A language model behind an OpenAI-compatible endpoint that grades responses (docs/rewards.md)."""

    model: str = ""
    """Its name at the endpoint."""

    template: str = _TEMPLATE
    """What it is asked, with {response}, {prompt}, {messages}, {answer} and {answer.NAME} in it."""

    template_file: str | None = None
    """A file with the template, instead of the setting above."""

    pattern: Pattern | None = None
    """Regular expression with one group, the number; the last match in the reply counts. null: the last number."""

    scale: list[float] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    """Worst and best number it gives, [low, high]. They become task.reward_wrong and task.reward_correct, and what lies
    between goes along. A number beyond is no answer."""

    votes: int = Field(default=1, ge=1, le=64)
    """How often each response is judged; the mean counts."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Of the judge's own sampling."""

    max_tokens: Positive = 512
    """Longest reply."""

    key_variable: str = Field(default="OPENAI_API_KEY", pattern=_VARIABLE)
    """Environment variable with the key, where there is no key file; unset: no key is sent."""


def source_problems(service: RewardServiceConfig, judge: JudgeConfig) -> Iterator[str]:
    """Yield one line per contradiction."""
    if service.url is not None and judge.url is not None:
        yield "task.judge.url: task.reward_service.url gives the reward already: set one of the two to null"
    for name, source in (("reward_service", service), ("judge", judge)):
        if source.url is not None:
            yield from _url_problems(f"task.{name}", source.url, source.ca_file)
    if judge.url is not None:
        yield from _judge_problems(judge)


def _url_problems(name: str, url: str, ca_file: str | None) -> Iterator[str]:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is none, or half an IPv6 address
        yield f"{name}.url = {url!r}: is no address: write it as http://host:port/path"
        return
    if not usable:
        yield f"{name}.url = {url!r}: is no http or https address: write it as http://host:port/path"
    elif parts.username or parts.password or parts.query or parts.fragment:
        yield (
            f"{name}.url: holds a user, a password or a query, which would show in ps and logs: put the key into a file"
            f" and name that in {name}.key_file, or into the environment variable of {name}.key_variable"
        )
    if ca_file is not None and parts.scheme != "https":
        yield f"{name}.ca_file = {ca_file!r}: is of no use, {name}.url is no https address: set it to null"


def _judge_problems(judge: JudgeConfig) -> Iterator[str]:
    if not judge.model:
        yield "task.judge.model is empty: name the model as the endpoint knows it (GET URL/models lists them)"
    if judge.template_file is None and (problem := template_problem(judge.template)):
        yield f"task.judge.template: {problem}"
    if judge.pattern is not None and (groups := re.compile(judge.pattern).groups) != 1:
        yield f"task.judge.pattern = {judge.pattern!r}: has {groups} groups: put one pair of brackets round the number"
    low, high = judge.scale
    if low == high:
        yield f"task.judge.scale = [{low:g}, {high:g}]: has no extent: set it to the worst and the best number"


def template_problem(template: str) -> str | None:
    """Why a judge can't be asked with it; None: it can be."""
    if not {"response", "messages"} & {match[1] for match in PLACEHOLDER.finditer(template)}:
        return "has no {response} and no {messages} in it, so the judge would not see what it judges: add it"
    return None
