"""The port with real clients: a stranger gets nothing, and whoever is refused is told why by name."""

from __future__ import annotations

import asyncio
import json
import logging.config
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import openai
import pytest
from structlog.testing import capture_logs

from vcppo.common.tasks import TaskError
from vcppo.generator.endpoint.chat_form import Reply
from vcppo.generator.endpoint.chat_messages import assistant_message
from vcppo.generator.endpoint.refusal import Refusal
from vcppo.generator.endpoint.server import EndpointServer, Session

HELLO = [{"role": "user", "content": "hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call_0_0", "type": "function", "function": {"name": "weather", "arguments": '{"at": "sea"}'}}


def replying(text: str, calls: list[dict[str, Any]] | None = None) -> Reply:
    return Reply(assistant_message(text, calls or []), "tool_calls" if calls else "stop", 7, 3)


class Bench:
    """A server, a session, and what answers its calls."""

    def __init__(self, server: EndpointServer, session: Session) -> None:
        self.server, self.session = server, session
        self.url, self.key, self.model = session.endpoint
        self.client = httpx.AsyncClient(base_url=self.url.removesuffix("/v1"), timeout=20)
        self.asked: list[Any] = []

    async def answer(self, reply: Reply | Refusal, count: int = 1) -> None:
        for _ in range(count):
            call = await self.session.calls.get()
            self.asked.append(call.request)
            if isinstance(reply, Refusal):
                call.refuse(reply)
            else:
                call.answer(reply)

    async def post(self, body: object, key: str | None = "", path: str = "/v1/chat/completions") -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.post(path, content=content, headers=headers)

    @asynccontextmanager
    async def answering(self, reply: Reply | Refusal, count: int = 1) -> Any:
        task = asyncio.ensure_future(self.answer(reply, count))
        yield openai.AsyncOpenAI(base_url=self.url, api_key=self.key, timeout=20)
        await task


def run(body: Callable[[Bench], Awaitable[None]], host: str = "127.0.0.1") -> None:
    async def main() -> None:
        server = EndpointServer(host)
        await server.start()
        try:
            with server.open() as session:
                bench = Bench(server, session)
                async with asyncio.timeout(60), bench.client:
                    await body(bench)
        finally:
            await server.close()

    asyncio.run(main())


def error_of(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return response.status_code, error["code"]


def test_openais_client_gets_its_reply() -> None:
    async def body(bench: Bench) -> None:
        async with bench.answering(replying("hi")) as client:
            found = await client.chat.completions.create(model="any", messages=HELLO)
        assert (found.choices[0].message.content, found.choices[0].finish_reason) == ("hi", "stop")
        assert found.usage is not None and (found.usage.prompt_tokens, found.usage.total_tokens) == (7, 10)
        assert bench.asked[0].messages == HELLO and bench.asked[0].tools is None
        assert [model.id async for model in client.models.list()] == [bench.model]

    run(body)


def test_calls_of_tools_come_back_as_they_went() -> None:
    async def body(bench: Bench) -> None:
        async with bench.answering(replying("", [CALL]), count=3) as client:
            ask = partial(client.chat.completions.create, model="any", tools=[WEATHER])
            found = await ask(messages=HELLO)
            message, told = found.choices[0].message, {"role": "tool", "tool_call_id": "call_0_0", "content": "storm"}
            assert message.content is None and found.choices[0].finish_reason == "tool_calls"
            assert message.tool_calls[0].function.name == "weather"
            for said in (message, message.model_dump()):
                await ask(messages=[*HELLO, said, told])
        named = {**told, "name": "weather"}  # some chat templates want it
        assert [each.messages for each in bench.asked[1:]] == [[*HELLO, assistant_message("", [CALL]), named]] * 2
        assert bench.asked[0].tools == [WEATHER]

    run(body)


def test_a_stream_of_a_turn_with_tools_is_one_piece() -> None:
    async def body(bench: Bench) -> None:
        async with bench.answering(replying("well", [CALL])) as client:
            stream = await client.chat.completions.create(
                model="any", messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            found = [chunk async for chunk in stream]
        first, last, usage = found
        assert first.choices[0].delta.content == "well" and first.choices[0].delta.tool_calls[0].index == 0
        assert last.choices[0].finish_reason == "tool_calls" and usage.usage.completion_tokens == 3

    run(body)


async def streamed(client: Any, pieces: list[str]) -> Any:
    """An open stream that has said the first of its pieces."""
    stream = await client.chat.completions.create(
        model="any", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    first = await anext(stream)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", pieces[0])
    return stream


@asynccontextmanager
async def saying(bench: Bench, pieces: list[str]) -> AsyncIterator[tuple[Any, Any]]:
    """A call that has been asked and has said some of its reply, and the open stream."""
    client = openai.AsyncOpenAI(base_url=bench.url, api_key=bench.key, timeout=20, max_retries=0)
    opening = asyncio.ensure_future(streamed(client, pieces))
    call = await bench.session.calls.get()
    for piece in pieces:
        call.say(piece)
    yield call, await opening


def test_a_stream_comes_as_it_is_said() -> None:
    async def body(bench: Bench) -> None:
        async with saying(bench, ["we", "ll"]) as (call, stream):
            assert (await anext(stream)).choices[0].delta.content == "ll"
            call.say("")
            call.say(", no")
            call.answer(replying("well, no more"))
            found = [chunk async for chunk in stream]
        assert "".join(each.choices[0].delta.content or "" for each in found[:-1]) == ", no more"
        assert (found[-2].choices[0].finish_reason, found[-1].usage.completion_tokens) == ("stop", 3)

    run(body)


@pytest.mark.parametrize("end", ["another text", "refused"])
def test_a_stream_that_cant_go_on_ends_by_an_error(end: str) -> None:
    async def body(bench: Bench) -> None:
        async with saying(bench, ["well"]) as (call, stream):
            if end == "refused":
                call.refuse(Refusal("session_over", "the session is over", 410))
            else:
                call.answer(replying("wall"))
            with pytest.raises(
                openai.APIError, match="session is over" if end == "refused" else "not what was streamed"
            ):
                [chunk async for chunk in stream]

    run(body)


def test_a_refusal_before_a_word_has_its_status() -> None:
    async def body(bench: Bench) -> None:
        async with bench.answering(Refusal("too_many_turns", "no more")) as client:
            with pytest.raises(openai.BadRequestError, match="no more"):
                await client.chat.completions.create(model="any", messages=HELLO, stream=True)

    run(body)


def test_a_client_that_leaves_a_stream_wants_its_reply_no_more() -> None:
    async def body(bench: Bench) -> None:
        async with saying(bench, ["well"]) as (call, stream):
            assert call.is_wanted
            await stream.close()
            async with asyncio.timeout(10):
                while call.is_wanted:
                    await asyncio.sleep(0.01)
            call.say("more")
            call.answer(replying("well, more"))
        assert bench.session.pending == set()

    run(body)


def test_a_stranger_gets_nothing() -> None:
    async def body(bench: Bench) -> None:
        body = {"messages": HELLO}
        incarnation, number = bench.key.split("-")[1:3]
        wrong = [f"vcppo-{incarnation}-{number}-{'0' * 64}", f"vcppo-{incarnation}-{number}", "sk-something", "é"]
        assert error_of(await bench.post(body, None)) == (401, "no_key")
        for key in wrong[:3]:
            assert error_of(await bench.post(body, key)) == (401, "wrong_key")
        for path in ("/", "/v1/models", "/docs", "/openapi.json", "/v1/completions"):
            assert error_of(await bench.client.get(path)) == (401, "no_key")
        assert bench.session.calls.empty()

    run(body)


BROKEN = (
    b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: zz\r\n\r\n", b"GET /" + b"a" * 20_000,
    b"POST /v1/models HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
)  # fmt: skip


def test_broken_requests_are_answered_and_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def body(bench: Bench) -> None:
        port = httpx.URL(bench.url).port
        for data in BROKEN:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data)
            assert (await reader.readline()).split()[1] in (b"400", b"401")
            writer.close()
        assert error_of(await bench.post({}, None)) == (401, "no_key")

    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})  # as libraries do when imported
    run(body)
    assert [record for record in caplog.records if "aiohttp" in record.name or "endpoint" in record.name] == []


def test_a_bug_of_ours_is_told_and_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: bytes) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("vcppo.generator.endpoint.server.read_request", broken)

    async def body(bench: Bench) -> None:
        with capture_logs() as said:
            assert error_of(await bench.post({"messages": HELLO})) == (500, "failed")
        assert [(line["event"], line["log_level"]) for line in said] == [("endpoint_failed", "error")]

    run(body)


def test_keys_of_other_sessions_are_refused_by_name() -> None:
    async def body(bench: Bench) -> None:
        with bench.server.open() as other:
            ended = other.endpoint.api_key
        assert error_of(await bench.post({"messages": HELLO}, ended)) == (410, "session_over")
        again = EndpointServer()
        await again.start()
        try:
            with again.open() as session:
                of_another = session.endpoint.api_key
                assert session.endpoint.base_url != bench.url
                assert error_of(await bench.post({"messages": HELLO}, of_another)) == (401, "another_incarnation")
        finally:
            await again.close()
        client = openai.AsyncOpenAI(base_url=bench.url, api_key=ended)
        with pytest.raises(openai.APIStatusError, match="its rollout has ended"):
            await client.chat.completions.create(model="any", messages=HELLO)

    run(body)


def test_what_waits_when_a_session_ends_is_refused() -> None:
    async def body(bench: Bench) -> None:
        with bench.server.open() as other:
            asking = asyncio.ensure_future(bench.post({"messages": HELLO}, other.endpoint.api_key))
            await other.calls.get()
        assert error_of(await asking) == (410, "session_over")

    run(body)


def test_a_client_that_goes_is_no_longer_waited_for() -> None:
    async def body(bench: Bench) -> None:
        asking = asyncio.ensure_future(bench.post({"messages": HELLO}))
        call = await bench.session.calls.get()
        assert call.is_wanted
        asking.cancel()
        await bench.client.aclose()
        await asyncio.wait((call.reply,))
        assert not call.is_wanted
        call.answer(replying("late"))  # nobody minds

    run(body)


def test_a_session_has_so_many_calls_at_a_time() -> None:
    async def body(bench: Bench) -> None:
        waiting = [asyncio.ensure_future(bench.post({"messages": HELLO})) for _ in range(17)]
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [error_of(each.result()) for each in done] == [(429, "too_many_calls")]
        await bench.answer(replying("hi"), count=16)
        assert {(await each).status_code for each in rest} == {200}

    run(body)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (b"{", "body"), (b"[]", "body"), (b'{"messages": ' + b"[" * 100_000, "body"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "body"),
        ({}, "messages"), ({"messages": []}, "messages"), ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "audio": {}}]}, "messages[0].audio"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages[1]"),
        ({"messages": [*HELLO, {"role": "assistant", "tool_calls": [{}]}, *HELLO]}, "messages[1].tool_calls"),
        ({"messages": HELLO, "n": 2}, "n"), ({"messages": HELLO, "stop": ["x"]}, "stop"),
        ({"messages": HELLO, "logprobs": True}, "logprobs"), ({"messages": HELLO, "tool_choice": ""}, "tool_choice"),
        ({"messages": HELLO, "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"), ({"messages": HELLO, "stream": 1}, "stream"),
        ({"messages": HELLO, "stream_options": 1}, "stream_options"), ({"messages": HELLO, "tools": {}}, "tools"),
        ({"messages": HELLO, "tools": [{"type": "web"}]}, "tools[0]"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_refused_by_field(given: object, field: str) -> None:
    async def body(bench: Bench) -> None:
        response = await bench.post(given)
        assert error_of(response) == (400, "invalid_request")
        assert response.json()["error"]["message"].startswith(f"{field}: ")

    run(body)


def test_what_is_too_large_or_not_there_is_refused() -> None:
    async def body(bench: Bench) -> None:
        assert error_of(await bench.post(b" " * (3 << 20))) == (413, "not_served")
        assert error_of(await bench.post({}, path="/v1/completions")) == (404, "not_served")
        refusal = Refusal("too_many_turns", "task.max_turns = 2 are used up")
        async with bench.answering(refusal) as client:
            with pytest.raises(openai.BadRequestError, match="are used up") as error:
                await client.chat.completions.create(model="any", messages=HELLO)
        assert error.value.code == "too_many_turns"

    run(body)


def test_what_means_the_same_is_the_same() -> None:
    async def body(bench: Bench) -> None:
        parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
        spelled = {**CALL, "function": {"name": "weather", "arguments": '{"at":"sea"}'}}
        said = {"role": "assistant", "content": None, "tool_calls": [spelled], "refusal": None, "annotations": []}
        asked = {"messages": [*parts, said, *HELLO], "temperature": 0.1, "seed": 3, "n": 1, "max_completion_tokens": 5}
        async with bench.answering(replying("hi")):
            assert (await bench.post({**asked, "max_tokens": 9, "top_p": None})).status_code == 200
        (found,) = bench.asked
        assert found.messages == [*HELLO, assistant_message("", [CALL]), *HELLO]
        assert (found.ignored, found.max_tokens) == ({"temperature", "seed"}, 5)

    run(body)


def own_address() -> str | None:
    """Of this machine beyond the loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found


def test_beyond_the_loopback_only_a_key_lets_in() -> None:
    if (host := own_address()) is None:
        pytest.skip("this machine has no address beyond the loopback")

    async def body(bench: Bench) -> None:
        assert httpx.URL(bench.url).host == host
        for key, code in ((None, "no_key"), ("sk-mine", "wrong_key")):
            assert error_of(await bench.post({"messages": HELLO}, key)) == (401, code)
        with pytest.raises(httpx.ConnectError):
            await bench.client.get(bench.url.replace(host, "127.0.0.1"))
        async with bench.answering(replying("hi")) as client:
            found = await client.chat.completions.create(model="any", messages=HELLO)
        assert found.choices[0].message.content == "hi"

    run(body, host)


@pytest.mark.parametrize("host", ["192.0.2.77", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    async def main() -> None:
        with pytest.raises(TaskError, match=f"task.endpoint_host = '{host}': the endpoint can't listen there"):
            await EndpointServer(host).start()

    asyncio.run(main())
