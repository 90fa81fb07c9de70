"""The export goes to a server that answers as the hub does; one that refuses costs a line."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT

PROGRAM = """
import sys
from pathlib import Path
from vcppo.learner.evaluation.push_to_hub import push_to_hub
print(push_to_hub(Path(sys.argv[1]), "us/ours", "vcppo run r"))
"""


class Hub(ThreadingHTTPServer):
    """Keeps what is committed. `refuses`: the status of every answer, instead."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.created: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.refuses: int | None = None


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses is not None:
            self._say({"error": "no"}, self.server.refuses)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self._say({"url": f"http://127.0.0.1:{self.server.server_address[1]}/us/ours"})
        elif "/preupload/" in self.path:
            paths = [each["path"] for each in json.loads(body)["files"]]
            self._say({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._say(
                {
                    "commitUrl": f"http://127.0.0.1:{self.server.server_address[1]}/us/ours/commit/1",
                    "commitOid": "1",
                    "success": True,
                }
            )

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self._say({"error": "no such thing"}, self.server.refuses or 404)

    def _say(self, answer: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def push(folder: Path, hub: Hub) -> subprocess.CompletedProcess[str]:
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {
        **os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_ours", "PYTHONPATH": str(ROOT),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text('{"a": 1}')
    (tmp_path / "export" / "model.safetensors").write_bytes(bytes(range(256)) * 9)
    return tmp_path / "export"


def test_every_file_is_there_in_a_private_repository(hub: Hub, folder: Path) -> None:
    done = push(folder, hub)
    assert done.stdout.splitlines()[-1] == "True", done.stderr + done.stdout
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    name = "/".join(hub.created[key] for key in ("organization", "name") if hub.created.get(key))
    is_private = hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert (name, is_private) == ("us/ours", True), hub.created
    assert hub.tokens == {"Bearer hf_ours"}


@pytest.mark.parametrize("status", [401, 403])
def test_one_that_refuses_costs_a_line_that_says_what_to_do(hub: Hub, folder: Path, status: int) -> None:
    hub.refuses = status
    done = push(folder, hub)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr
    said = done.stdout + done.stderr
    assert "not_pushed_to_hub" in said and f"hf upload us/ours {folder}" in said and "Traceback" not in said
    assert hub.files == {}


def test_one_that_is_away_costs_a_line(folder: Path) -> None:
    with Hub() as gone:
        pass
    done = push(folder, gone)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False", done.stderr
    assert "Traceback" not in done.stdout + done.stderr
