"""Every page, over a run folder as a learner leaves it; what strangers get; text that would like to be markup."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.unit.rig.fake_run import make_run
from tests.unit.rig.learner_samples import trajectory
from tests.unit.rig.written_samples import write_step
from vcppo.common.records.trajectory import Trajectory, VersionSpan
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.deploy.cli import main
from vcppo.deploy.ui.app import _share, make_app
from vcppo.deploy.ui.guard import is_loopback
from vcppo.deploy.ui.runs import Runs

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\x1b[31m\u202e'\" onmouseover='x"
WORDS = [HOSTILE, *(f"word{number}" for number in range(1, 100))]
PAGES = ["/run", "/samples", "/critic", "/evaluation", "/logs", "/config", "/api/run"]


def responses(step: int, count: int = 8) -> list[Trajectory]:
    rng = np.random.default_rng(step)
    made = [trajectory(rng, f"rl-{step:08d}-{i}", 4, 12, tool_text=0.2, group=f"rl-{step:08d}") for i in range(count)]
    prompt = np.arange(4, dtype=np.int32)
    return [
        replace(each, reward=float(i % 3) - 1, outcome="correct" if i % 3 == 2 else "wrong", prompt_token_ids=prompt,
                response_token_ids=each.response_token_ids % 100)
        for i, each in enumerate(made)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("runs")
    folder = make_run(found, "first")
    for step in (1, 2, 3):
        write_step(folder.samples, step, responses(step), WORDS)
    line = {"time": "2026-01-01T00:00:00Z", "service": "learner", "level": "warning", "event": HOSTILE, "text": HOSTILE}
    folder.logs.mkdir(exist_ok=True)
    (folder.logs / "learner.jsonl").write_text(json.dumps(line) + "\n")
    make_run(found / "suite", "second")
    (found / "broken").mkdir()
    (found / "broken" / "config.yaml").write_text("run: {nmae: x}")
    return found


@pytest.fixture(scope="module")
def browser(root: Path) -> TestClient:
    return TestClient(make_app(root), base_url="http://localhost:8117")


def text(browser: TestClient, address: str, status: int = 200) -> str:
    answer = browser.get(address)
    assert answer.status_code == status, answer.text[-2000:]
    return answer.text


class Tags(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements, self.attributes = set[str](), set[str]()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("href", "src") and value]


def sample_address(step: int = 3, number: int = 0, **more: str) -> str:
    id = quote(f"rl-{step:08d}-{number}@generator-0.0")
    return f"/sample?run=first&step={step}&id={id}" + "".join(f"&{name}={value}" for name, value in more.items())


def test_runs_are_found_and_one_that_can_not_be_read_is_named(browser: TestClient) -> None:
    page = text(browser, "/")
    assert "/run?run=first" in page and "/run?run=suite/second" in page
    assert "broken" in page and "nmae" in page
    assert "30 of 30" in page


@pytest.mark.parametrize("address", PAGES)
@pytest.mark.parametrize("run", ["first", "suite/second"])
def test_every_page_of_a_run(browser: TestClient, address: str, run: str) -> None:
    assert text(browser, f"{address}?run={quote(run)}")


@pytest.mark.parametrize("run", ["none", "../first", "/etc", "first/../..", ".", ""])
@pytest.mark.parametrize("address", PAGES)
def test_other_folders_are_no_runs(browser: TestClient, address: str, run: str) -> None:
    assert "no such run" in text(browser, f"{address}?run={quote(run)}", 404)


def test_curves_are_numbers_a_browser_can_read(browser: TestClient) -> None:
    drawn = {chart["title"]: chart for chart in json.loads(text(browser, "/api/run?run=first"))}
    assert {"Accuracy", "Explained variance", "Explained against explainable", "Value pretraining"} <= drawn.keys()
    for chart in drawn.values():
        assert len({len(points) for points in chart["points"]}) == 1
        assert len(chart["labels"]) == len(chart["points"]) - 1
        assert len(chart["intervals"]) == len(chart["is_joined"]) == len(chart["labels"])
    assert drawn["Accuracy"]["points"][0] == list(range(31))  # 0: the cold start's evaluation
    assert drawn["Accuracy"]["labels"] == ["training batches", "vcppo eval, held out"]
    assert drawn["Accuracy"]["points"][2] == [0.34, *[None] * 29, 0.86]


@pytest.fixture
def measured(tmp_path: Path) -> tuple[RunFolder, TestClient]:
    """A run whose policy was evaluated on the way, after step 30 on a benchmark too; beside one that was not."""
    folder = make_run(tmp_path, "measured")
    make_run(tmp_path, "plain")
    writer = MetricsWriter(folder.path, "learner", "measured")
    ends = {"eval/accuracy_low": 0.4, "eval/accuracy_high": 0.6}
    writer.write(0, {"stage": "evaluation", "eval/accuracy": 0.2})
    writer.write(30, {"stage": "evaluation", "eval/accuracy": 0.514, **ends, "eval/aime/accuracy": 0.1})
    writer.close()
    return folder, TestClient(make_app(tmp_path), base_url="http://localhost:8117")


def test_held_out_accuracy_is_on_every_page_that_compares(measured: tuple[RunFolder, TestClient]) -> None:
    _, browser = measured
    rows = {row.split("'")[0]: row for row in text(browser, "/").split("/run?run=")[1:]}
    assert f"{100 * 0.8125:.1f}" == "81.2" and _share(0.8125) == "81.3 %" and _share(None) == "–"
    assert "51.4 %" in rows["measured"] and "held out, step 30" in rows["measured"]
    assert "last batch" in rows["plain"] and "held out" not in rows["plain"]
    page = text(browser, "/run?run=measured")
    assert "held-out accuracy after step 30, 95 %: 40.0 % to 60.0 %" in page
    assert "held-out accuracy" not in text(browser, "/run?run=plain")
    table = text(browser, "/evaluation?run=measured").split("While it trained")[1]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == [
        "held out", "30", "51.4 %", "40.0 % to 60.0 %", "held out", "0", "20.0 %", "–", "aime", "30", "10.0 %", "–",
    ]  # fmt: skip
    assert "While it trained" not in text(browser, "/evaluation?run=plain")
    accuracy, *_ = json.loads(text(browser, "/api/run?run=measured"))
    assert accuracy["labels"] == ["training batches", "held out", "aime", "vcppo eval, held out"]
    assert accuracy["points"][2] == [0.2, *[None] * 29, 0.514] and accuracy["intervals"][1][0][-1] == 0.4
    compared = {chart["title"]: chart for chart in json.loads(text(browser, "/api/compare?run=measured&run=plain"))}
    assert compared["Held-out accuracy"]["points"][1][-1] == 0.514 and "Reward" in compared
    assert compared["Held-out accuracy"]["intervals"][0][1][-1] == 0.6
    titles = [chart["title"] for chart in json.loads(text(browser, "/api/compare?run=plain"))]
    assert "Held-out accuracy" not in titles


def test_weight_updates_of_the_log_and_without_one_of_the_metrics(measured: tuple[RunFolder, TestClient]) -> None:
    folder, browser = measured
    section = text(browser, "/run?run=measured").split("Weight updates")[1]
    assert "30 updates, median 0.30 s" in section and "The newest 10 of 30" in section
    sent = {"time": "2026-01-02T03:04:05.678Z", "event": "weights_broadcast", "policy_version": 1, "seconds": 0.25,
            "pause_seconds": 0.125, "num_bytes": 2**21, "members": ["g-0", "g-1"], "dropped": ["<b>"]}  # fmt: skip
    lost = {"time": "2026-01-02T03:05:05.678Z", "event": "broadcast_failed", "error": HOSTILE}
    with folder.log_file("learner").open("a") as file:
        file.write("".join(json.dumps(each) + "\n" for each in (sent, lost)))
    section = text(browser, "/run?run=measured").split("Weight updates")[1].split("</section>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", section)
    assert cells == ["1", "2026-01-02 03:04:05", "0.250", "0.125", "2.0", "2", "&lt;b&gt;"]
    assert "1 update, 2.0 MiB each" in section and "1 failure" in section and "update failed" in section
    assert "<script" not in section


def test_what_a_run_can_do_without_costs_only_itself(measured: tuple[RunFolder, TestClient]) -> None:
    folder, browser = measured
    folder.explainable_results.write_text("{rubbish")
    drawn = [chart["title"] for chart in json.loads(text(browser, "/api/run?run=measured"))]
    assert "Explained against explainable" not in drawn and "Accuracy" in drawn


def test_a_cold_start_is_drawn_before_there_is_anything_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "young", num_steps=0)
    for path in [*folder.metrics.iterdir(), *folder.eval.iterdir(), folder.explainable_results]:
        path.unlink()
    MetricsWriter(folder.path, "sft", "young").write(1, {"stage": "sft", "sft/loss": 2.5})
    browser = TestClient(make_app(tmp_path), base_url="http://localhost:8117")
    assert "cold start" in text(browser, "/")
    (drawn,) = json.loads(text(browser, "/api/run?run=young"))
    assert drawn["title"] == "Cold start" and drawn["points"] == [[1], [2.5]]


def test_a_folder_inside_a_run_is_no_run(measured: tuple[RunFolder, TestClient]) -> None:
    folder, browser = measured
    folder.explainable.mkdir()
    (folder.explainable / "config.yaml").write_text(folder.config.read_text())
    assert "explainable" not in text(browser, "/")
    assert "no such run" in text(browser, "/run?run=measured/explainable", 404)


def test_the_run_s_page_leads_to_what_the_critic_misjudged(browser: TestClient) -> None:
    page = text(browser, "/run?run=first")
    assert "A response that it misjudged" in page and "It changed its mind most at the token <mark>" in page
    link = next(address for address in Tags(page).addresses if address.startswith("/sample?"))
    shown = text(browser, link)
    assert "The critic misjudged it." in shown and "id=turning" in shown and "class=mark" in shown


def test_runs_side_by_side(browser: TestClient) -> None:
    page = text(browser, "/compare?run=first&run=suite/second")
    assert "run.name" in page and "rl.batch_size" not in page
    (accuracy, *_) = json.loads(text(browser, "/api/compare?run=first&run=suite/second"))
    assert accuracy["labels"] == ["first", "suite/second"] and len(accuracy["points"]) == 3
    assert "no such run" in text(browser, "/compare?run=none", 404)


@pytest.mark.parametrize(
    ("query", "count"),
    [("", 8), ("&steps=all", 24), ("&steps=1-2", 16), ("&steps=all&outcome=correct", 6),
     ("&steps=all&min_reward=0", 15), ("&steps=all&max_reward=-1&outcome=wrong", 9), ("&group=rl-00000003", 8),
     ("&group=rl-00000001", 0), ("&text=no+such+text", 0), ("&min_length=99", 0), ("&steps=all&min_reward=much", 24),
     ("&steps=9-10", 0)],
)  # fmt: skip
def test_samples_are_filtered(browser: TestClient, query: str, count: int) -> None:
    assert f"{count} match" in text(browser, f"/samples?run=first{query}")


def test_the_most_misjudged_first_and_a_page_at_a_time(browser: TestClient) -> None:
    page = text(browser, "/samples?run=first&steps=all&sort=critic+too+hopeful")
    assert re.findall(r"<td class='outcome \w+'>(\w+)", page)[:9] == ["wrong"] * 9
    assert "after →" not in page
    assert "match" in text(browser, "/samples?run=first&page=99")


def test_too_hopeful_is_what_was_believed_before_the_last_token(tmp_path: Path) -> None:
    """Not the value after it, which no critic is trained for: here 0.5 everywhere. Beliefs grow with the length."""
    folder = make_run(tmp_path, "hopeful")
    wrong = [replace(each, reward=-1.0, outcome="wrong") for each in responses(1, 4)]
    lengths = [each.response_token_ids.size for each in wrong]
    cut = [replace(each, response_token_ids=each.response_token_ids[:n], action_mask=np.ones(n, np.bool_),
                   behaviour_log_probs=each.behaviour_log_probs[:n], version_spans=(VersionSpan(0, n),))
           for each, n in zip(wrong, (3, 9, 6, 12), strict=True)]  # fmt: skip
    assert min(lengths) >= 12
    write_step(folder.samples, 1, cut, WORDS)
    browser = TestClient(make_app(tmp_path), base_url="http://localhost")
    page = text(browser, "/samples?run=hopeful&sort=critic+too+hopeful")
    assert re.findall(r"data-is='believed'>([\d.]+)", page) == ["1.10", "0.80", "0.50", "0.20"]


def test_a_response_token_by_token_with_its_relatives(browser: TestClient) -> None:
    page = text(browser, sample_address())
    spans = re.findall(r"<span class='([^']*)'(?: id=turning)? title='([^']*)'>", page)
    assert len(spans) == 12 and sum("turning" in kind for kind, _ in spans) == 1
    assert "value +0.000" in spans[0][1] and "The critic changed its mind most at token" in page
    assert page.count("step 3, ") == 7 and page.count("step 1, ") == 8  # its group; the same problem elsewhere
    assert "<polyline" in page
    for by in ("advantage", "mismatch", "log-prob", "entropy", "version", "turn"):
        assert text(browser, sample_address(by=by)) != page
    assert browser.get(sample_address(by="beauty")).status_code == 422
    assert "not among the samples" in text(browser, "/sample?run=first&step=3&id=x", 404)
    assert "no samples of step 9" in text(browser, "/sample?run=first&step=9&id=x", 404)


def test_what_the_critic_believed_leads_to_the_token(browser: TestClient) -> None:
    page = text(browser, "/critic?run=first&step=2")
    assert "Where it changed its mind most" in page and "What it misjudged" in page
    links = [address for address in Tags(page).addresses if address.startswith("/sample?")]
    assert len(links) == 8 + 6  # of each response where it changed its mind; those whose reward was not 1
    for link in links:
        assert text(browser, link)
    place, calibration = json.loads(text(browser, "/api/critic?run=first&step=2"))
    assert place["labels"] == ["right (2)", "not right (6)"] and len(place["points"][0]) == 10
    assert len(calibration["points"][0]) == len(calibration["points"][1]) > 0


def test_logs_are_filtered(browser: TestClient) -> None:
    assert "1 lines match" in text(browser, "/logs?run=first&level=warning")
    assert "0 lines match" in text(browser, "/logs?run=first&level=error")
    assert "0 lines match" in text(browser, "/logs?run=first&service=buffer&trajectory=x&version=3")


def test_long_logs_are_shown_from_their_end_and_older_lines_on_demand(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "long")
    lines = [
        {
            "time": f"2026-01-01T00:00:00.{i:06d}Z",
            "level": "info",
            "service": "learner",
            "event": f"line {i}",
            "more": "x" * 900,
        }
        for i in range(6000)
    ]
    folder.log_file("learner").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser = TestClient(make_app(tmp_path), base_url="http://localhost")
    page = text(browser, "/logs?run=long&service=learner&level=info")
    found = re.search(r"([\d,]+) lines match of the newest ([\d,]+)", page)
    assert found and 4000 < int(found[1].replace(",", "")) < 6000 and "line 5999" in page
    older = next(address for address in Tags(page).addresses if "all=true" in address)
    assert "6,000 lines match;" in text(browser, older) and "all=true" not in text(browser, older)


def test_from_one_step_of_the_critic_to_those_beside_it(browser: TestClient) -> None:
    beside = {step: [address[-1] for address in Tags(text(browser, f"/critic?run=first&step={step}")).addresses
                     if address.startswith("/critic?run=first&step=")] for step in (1, 2, 3)}  # fmt: skip
    assert beside == {1: ["2"], 2: ["1", "3"], 3: ["2"]}
    assert "there are some of steps between 1 and 3" in text(browser, "/critic?run=first&step=7", 404)


def test_the_first_look_finds_runs_read_already(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_read = threading.Event()
    lines = Runs.lines
    monkeypatch.setattr(Runs, "lines", lambda self: [*lines(self), is_read.set()])
    with TestClient(make_app(root), base_url="http://localhost:8117"):
        assert is_read.wait(30)


@pytest.mark.parametrize(
    "address",
    ["/", "/samples?run=first", "/critic?run=first", "/logs?run=first", sample_address(),
     f"/samples?run=first&text={quote(HOSTILE)}", f"/run?run={quote(HOSTILE)}",
     f"/logs?run=first&trajectory={quote(HOSTILE)}", f"/compare?run={quote(HOSTILE)}"],
)  # fmt: skip
def test_what_a_model_or_an_address_says_stays_text(browser: TestClient, address: str) -> None:
    page = browser.get(address).text
    tags = Tags(page)
    assert "img" not in tags.elements and not any(name.startswith("on") for name in tags.attributes)
    assert page.count("<script") == 2 and "style" not in tags.attributes
    assert "\x1b" not in page and "\u202e" not in page
    assert all(each.startswith(("/", "#")) for each in tags.addresses)


def test_a_page_may_run_our_scripts_only_and_nobody_writes(browser: TestClient) -> None:
    for address in ("/", "/static/pages.js", "/none", sample_address()):
        policy = browser.get(address).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert browser.request(method, "/").status_code == 405


def test_on_loopback_only_names_of_this_machine_are_answered(root: Path) -> None:
    """A page of somebody else that resolves its own name to 127.0.0.1 reads nothing."""
    for name, status in (("localhost", 200), ("127.0.0.1:99", 200), ("[::1]:8117", 200), ("evil.example", 403)):
        answer = TestClient(make_app(root), base_url=f"http://{name}").get("/")
        assert answer.status_code == status, name


def test_beyond_loopback_nothing_is_shown_without_the_token(root: Path) -> None:
    stranger = TestClient(make_app(root, "secret"), base_url="http://machine:8117")
    for address in ("/", "/run?run=first", "/static/pages.js", "/?token=wrong", "/api/events?run=first"):
        assert stranger.get(address).status_code == 401
    assert stranger.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200
    answer = stranger.get("/run?run=first&token=secret", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/run?run=first"
    assert "httponly" in answer.headers["set-cookie"].lower() and "strict" in answer.headers["set-cookie"].lower()
    assert stranger.get("/run?run=first").status_code == 200


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)]  # noqa: S104
)  # fmt: skip
def test_which_addresses_need_a_token(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_a_step_that_is_done_again_is_read_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "again")
    browser = TestClient(make_app(tmp_path), base_url="http://localhost")
    write_step(folder.samples, 1, responses(1, 8), WORDS)
    assert "8 match" in text(browser, "/samples?run=again")
    time.sleep(0.02)  # another time of modification
    write_step(folder.samples, 1, responses(1, 5), WORDS)
    assert "5 match" in text(browser, "/samples?run=again")


def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ui"]) == 2
    assert "runs: no such folder" in capsys.readouterr().err
    assert main(["ui", str(tmp_path), "--host", "192.0.2.1"]) == 2
    assert "--host 192.0.2.1 --port 8117: can't be listened on" in capsys.readouterr().err


def test_the_folder_may_be_a_run_itself(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "alone")
    browser = TestClient(make_app(folder.path), base_url="http://localhost")
    assert "/run?run=alone" in text(browser, "/")
    assert text(browser, "/run?run=alone")
