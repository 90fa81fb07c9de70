"""A rollout worker with a real reward service or judge that fails in every way: ledger and rewards stay right."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import uvicorn

from tests.integration.conftest import RedisServer
from tests.integration.generator.test_generator import Bench, ScriptedEngine, prompts, run
from tests.integration.rig.reward_server import RewardServer, reward_of
from tests.integration.rig.scripted import make_tiny_model
from tests.integration.rig.tls import self_signed
from tests.paths import ROOT
from tests.unit.rig.check_model import make
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.evaluation.eval_samples import Sample
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.tasks import load_task
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.common.transport.ports import free_port
from vcppo.generator.check.__main__ import CHECKS
from vcppo.generator.check.data_context import Context
from vcppo.generator.evaluation.evaluate import Plan, Sampler
from vcppo.generator.reward_sources.items import SourceAway
from vcppo.generator.reward_sources.source import open_source
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.learner.buffer.door import Door

QUICK: dict[str, Any] = {
    "batch_size": 4, "batch_wait_seconds": 0.02, "deadline_seconds": 1.0, "back_off_seconds": 0.05,
    "breaker_failures": 3, "breaker_seconds": 0.2, "patience_seconds": 60.0,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[RewardServer]:
    found = RewardServer()
    yield found
    found.close()


def service(server: RewardServer, **more: Any) -> dict[str, Any]:
    return {"reward_service": {"url": f"{server.url}/reward", **QUICK, **more}}


def check(bench: Bench, found: list[Trajectory], count: int) -> None:
    """Each has its own reward, made by the rule, as its verifier judged it."""
    assert sorted(t.prompt_id for t in found) == [p.id for p in prompts(count)]
    for each in found:
        assert each.reward == reward_of(each.prompt_id) and each.components["base"] == each.reward
        assert each.outcome in ("wrong", "unparsable")
        Door.of(bench.config).check(each)


@pytest.mark.parametrize(
    "modes",
    [
        [], ["500"] * 2, ["nan"] * 2, ["twice"] * 2, ["half"] * 2, ["strange"] * 4, ["drop"] * 4, ["garbage"] * 4,
        ["endless", "moved"], ["hang", "late"], ["hang", "500", "nan", "late", "drop", "half", "garbage", "twice"] * 2,
    ],
    ids=lambda modes: "-".join(dict.fromkeys(modes)) or "good",
)  # fmt: skip
def test_however_requests_fail_each_response_gets_its_reward(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer, modes: list[str]
) -> None:
    async def body(bench: Bench) -> None:
        server.modes = list(modes)
        bench.store.issue(prompts(16))
        check(bench, await bench.receive(16), 16)

    bench = run(tmp_path, shared_redis, body, task=service(server, answer_tries=20))
    ledger = bench.store.ledger()
    assert ledger.is_exact and ledger.rejected == 0 and ledger.expired == 16
    bench.close()
    assert {"id", "prompt", "answer", "response", "finish_reason"} == set(server.requests[0]["items"][0])
    assert max(len(each["items"]) for each in server.requests) <= 4


def test_while_it_is_away_leasing_pauses_leases_are_kept_and_it_goes_on(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer
) -> None:
    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(4))
        found = await bench.receive(4)
        server.down()
        bench.store.issue(prompts(20, 4))
        assert bench.rewards is not None
        await bench.until(lambda: bench.rewards is not None and bench.rewards.away_seconds > 0, "not noticed")
        await asyncio.sleep(1.0)  # what was being leased is
        ledger = bench.store.ledger()
        assert ledger.queued > 0 and ledger.leased + ledger.queued == 20 and ledger.rejected == 0
        finished = bench.engine.num_finished
        await asyncio.sleep(6.0)  # longer than generator.lease_seconds
        assert bench.store.ledger() == ledger and bench.engine.num_finished == finished
        server.up()
        check(bench, [*found, *await bench.receive(20)], 24)
        await bench.until(lambda: rows()[-1]["reward_source/away"] == 0, "still away in the metrics")

    def rows() -> list[dict[str, Any]]:
        return read_metrics(tmp_path / "metrics" / "generator-0.jsonl")

    with structlog.testing.capture_logs() as lines:
        bench = run(tmp_path, shared_redis, body, task=service(server))
    assert bench.store.ledger().is_exact and bench.store.ledger().expired == 24
    bench.close()
    (away,) = [line for line in lines if line["event"] == "reward_source_away"]
    (back,) = [line for line in lines if line["event"] == "reward_source_back"]
    assert away["url"] == back["url"] == f"{server.url}/reward" and back["seconds"] > 6
    assert max(row["reward_source/away"] for row in rows()) > 5
    assert sum(row["reward_source/handed_back"] for row in rows()) == 0


def test_out_of_patience_prompts_are_handed_back_and_come_again(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer
) -> None:
    async def body(bench: Bench) -> None:
        server.down()
        bench.store.issue(prompts(8))
        await bench.until(lambda: bench.engine.num_finished > 0, "nothing begun")
        await bench.until(lambda: bench.store.ledger().queued == 8, "not handed back")
        assert bench.store.ledger().leased == 0 and bench.receiver.poll(0.1) == []
        server.up()
        check(bench, await bench.receive(8), 8)

    bench = run(tmp_path, shared_redis, body, task=service(server, patience_seconds=1.0, breaker_seconds=3.0))
    assert bench.store.ledger().is_exact and bench.store.ledger().expired == 8
    bench.close()


@pytest.mark.parametrize("kind", ["nan", "poison"])
def test_a_response_that_never_gets_one_is_rejected_by_name_and_the_others_are_not(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer, kind: str
) -> None:
    getattr(server, kind).add("rl-0003")

    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(12))
        found = await bench.receive(11)
        assert "rl-0003" not in {t.prompt_id for t in found}
        await bench.until(lambda: bench.store.ledger().rejected == 1, "not rejected")

    bench = run(tmp_path, shared_redis, body, task=service(server))
    assert bench.store.ledger().is_exact
    (letter,) = bench.store.dead_letters()
    assert "task.reward_service: asked 3 times, no reward: " in letter.reason and letter.detail == "rl-0003"
    bench.close()


def test_keys_and_certificates(tmp_path: Path, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = self_signed(tmp_path, "service")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = RewardServer(tls)
    server.key = "sesame"
    secret = tmp_path / "secret"
    secret.write_text("sesame\n")
    secret.chmod(0o600)

    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(4))
        check(bench, await bench.receive(4), 4)

    async def away(bench: Bench) -> None:
        bench.store.issue(prompts(4))
        await bench.until(lambda: bench.rewards is not None and bench.rewards.away_seconds > 0, "not noticed")

    try:
        good = service(server, key_file=str(secret), ca_file=str(certificate))
        run(tmp_path / "good", shared_redis, body, task=good).close()
        with structlog.testing.capture_logs() as lines:
            run(tmp_path / "stranger", shared_redis, away, task=service(server, key_file=str(secret))).close()
        assert any("CERTIFICATE_VERIFY_FAILED" in str(line.get("error")) for line in lines)
        monkeypatch.setenv("VCPPO_REWARD_SERVICE_KEY", "simsalabim")
        with structlog.testing.capture_logs() as lines:
            run(tmp_path / "wrong", shared_redis, away, task=service(server, ca_file=str(certificate))).close()
        assert any(str(line.get("error")).startswith("status 401") for line in lines)
        assert "simsalabim" not in json.dumps(lines, default=str)
    finally:
        server.close()


def judge(server: RewardServer, **more: Any) -> dict[str, Any]:
    quick = {name: value for name, value in QUICK.items() if not name.startswith("batch")}
    return {"judge": {"url": f"{server.url}/v1", "model": "tiny", **quick, **more}}


def test_a_judge_is_asked_once_for_each_vote_and_again_for_a_reply_without_a_number(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer
) -> None:
    server.replies = ["Well.", "It is", "7 of 10, so 0.5", ""]

    async def body(bench: Bench) -> None:
        server.modes = ["500", "drop"]
        bench.store.issue(prompts(1))
        (found,) = await bench.receive(1)
        assert found.reward == pytest.approx((0.0 + 0.5 + 0.5) / 3)  # votes of .5, .75 and .75, from -1 to 1
        Door.of(bench.config).check(found)

    template = "{prompt}|{response}|{answer.answer}"
    task = judge(server, votes=3, template=template, answer_tries=9, max_concurrency=1)
    bench = run(tmp_path, shared_redis, body, task=task)
    assert bench.store.ledger().is_exact
    bench.close()
    assert len(server.requests) == 3 + 3 + 2  # votes, replies without a number, failed requests
    (message,) = server.requests[0]["messages"]
    assert message["content"].endswith("|12") and message["content"].count("|") == 2


def test_a_judge_that_never_says_a_number_is_given_up_by_name(
    tmp_path: Path, shared_redis: RedisServer, server: RewardServer
) -> None:
    server.replies = ["no"] * 3

    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(1))
        await bench.until(lambda: bench.store.ledger().rejected == 1, "not rejected")
        bench.store.issue(prompts(2, 1))
        assert [t.reward for t in await bench.receive(2)] == [0.5, 0.5]

    bench = run(tmp_path, shared_redis, body, task=judge(server))
    (letter,) = bench.store.dead_letters()
    assert "task.judge: asked 3 times, no reward: no number" in letter.reason
    bench.close()


def in_a_thread(server: uvicorn.Server) -> threading.Thread:
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end, "uvicorn did not start"
        time.sleep(0.02)
    return thread


def test_the_service_on_the_page_works(
    tmp_path: Path, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/rewards.md: as printed, under uvicorn."""
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (module,) = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "FastAPI" in each]
    names: dict[str, Any] = {"__name__": "reward_service"}
    exec(compile(module, "reward_service.py", "exec"), names)  # noqa: S102  (our own page)
    port = free_port()
    uvicorn_server = uvicorn.Server(uvicorn.Config(names["app"], port=port, log_level="warning"))
    thread = in_a_thread(uvicorn_server)

    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(8))
        for found in await bench.receive(8):
            words = found.components["words"]
            assert found.reward == 1 / (1 + words)
            Door.of(bench.config).check(found)

    try:
        task = {"reward_service": {**QUICK, "url": f"http://127.0.0.1:{port}/reward"}}
        run(tmp_path, shared_redis, body, task=task).close()
    finally:
        uvicorn_server.should_exit = True
        thread.join(10)


CHECKS_OF = {"500": "status 500", "nan": "its answer is no reward: reward", "garbage": "not JSON", "drop": "Server"}


@pytest.mark.parametrize("mode", ["good", *CHECKS_OF, "down"])
def test_check_asks_once_and_says_by_name_what_is_wrong(tmp_path: Path, server: RewardServer, mode: str) -> None:
    make(tmp_path)
    config = load_config(tmp_path / "run.yaml", [f"task.reward_service.url={server.url}/reward"])
    server.modes = [] if mode in ("good", "down") else [mode]
    if mode == "down":
        server.down()
    (check,) = [each for each in CHECKS if each.group == "verifier"]
    (line,) = [each for each in check.lines(Context(config)) if "reward_service.url" in each.text]
    assert f"task.reward_service.url = {server.url}/reward" in line.text
    if mode == "good":
        assert line.status == "passed" and "a response that is correct earns 0" in line.text
        (item,) = server.requests[0]["items"]
        assert item["id"] == "check-0" and item["response"]
    else:
        assert line.status == "failed" and CHECKS_OF.get(mode, "Cannot connect") in line.text, line
    assert len(server.requests) <= 1


@pytest.mark.parametrize("down", [False, True])
def test_an_evaluation_counts_the_service_s_outcomes_or_ends_by_name(
    tmp_path: Path, server: RewardServer, down: bool
) -> None:
    config = VcppoConfig.model_validate(
        {"model": {"path": "x"}, "task": service(server, patience_seconds=0.5), "eval": {"num_problems": 3}}
    )
    server.outcome = "correct"
    if down:
        server.down()

    async def main() -> list[Sample]:
        samples: list[Sample] = []
        plan = Plan.of(config, "x")
        work, verifiers, source = plan.work(0, 1, set()), VerifierPool(config.task), open_source(config)
        await verifiers.start()
        files: Any = SimpleNamespace(add=samples.append)
        engine: Any = ScriptedEngine()
        engine.model = "x"
        tokenizer = load_task(config.task).tokenizer()
        try:
            await Sampler(config, engine, verifiers, Fast(tokenizer), files, source).run(work)
        finally:
            await verifiers.close()
            assert source is not None
            await source.close()
        return samples

    if down:
        with pytest.raises(SourceAway, match=r"task.reward_service.url = .* was away"):
            asyncio.run(main())
    else:
        assert [each.outcome for each in asyncio.run(main())] == ["correct"] * 3


class Fast:
    """As much of transformers' tokenizer as an evaluation uses."""

    chat_template = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, **_: Any) -> Any:
        return {"input_ids": self._tokenizer.encode(text).ids}

    def decode(self, ids: list[int], **_: Any) -> str:
        return str(self._tokenizer.decode(ids))


@pytest.fixture
def vllm_url(tmp_path: Path) -> Iterator[str]:
    """vLLM's own OpenAI server on the CPU, with a model that says digits."""
    model = tmp_path / "judge"
    make_tiny_model(model, 64)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", "tiny",
        "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "96", "--dtype", "float32", "--enforce-eager",
    ]  # fmt: skip
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    with (tmp_path / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while not answers(f"http://127.0.0.1:{port}/health"):
            said = (tmp_path / "vllm.log").read_text(errors="replace")[-4000:]
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310  (our own http address)
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_judge_that_vllm_serves(tmp_path: Path, shared_redis: RedisServer, vllm_url: str) -> None:
    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(8))
        found = await bench.receive(8)
        grades = [(each.reward + 1) * 4.5 for each in found]
        assert grades == pytest.approx([round(grade) for grade in grades], abs=1e-9)
        assert all(0 <= grade <= 9 for grade in grades) and len({round(grade) for grade in grades}) > 1
        for each in found:
            Door.of(bench.config).check(each)

    how = {"template": "{response}", "pattern": r"(\d)", "scale": [0.0, 9.0], "max_tokens": 32, "answer_tries": 20}
    task = {"judge": {"url": vllm_url, "model": "tiny", **how}}
    bench = run(tmp_path / "run", shared_redis, body, task=task)
    assert bench.store.ledger().is_exact and bench.store.ledger().rejected == 0
    bench.close()
