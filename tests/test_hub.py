"""Models from the hub: against a server on this machine that answers as the hub does, never the network."""

from __future__ import annotations

import base64
import hashlib
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

from twofold import hub
from twofold.contracts import WeightsError

pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """files: "user/name/file" → content. pushed: what was committed, by the file's name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.pushed: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.resolve(send=False)

    def do_GET(self) -> None:
        self.resolve(send=True)

    def resolve(self, *, send: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        data = self.server.files.get(f"{repo}/{file}")
        if data is None:
            known = any(name.startswith(f"{repo}/") for name in self.server.files)
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
            return
        digest = hashlib.sha256(data).hexdigest()
        facts = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self.answer(200, data if send else b"", facts, length=len(data))

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.reply({"url": f"{self.server.address}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.pushed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"commitUrl": f"{self.server.address}/user/name/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self.answer(404, b"", {})

    def reply(self, facts: Any) -> None:
        self.answer(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, data: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data) if length is None else length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


def asked(server: Server, home: Path, code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own: the library reads its switches when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {
        "HF_ENDPOINT": server.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_only_for_this_test",
        "NO_PROXY": "127.0.0.1",
        **more,
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


RUN = "from twofold.cli.app import run_command_line as run"
LOAD = (
    "import torch, twofold; print(twofold.load('hf://user/name', precision='exact')(torch.zeros(3, 8, 8)).image.shape)"
)


def test_a_model_is_loaded_from_the_hub_and_then_offline_from_the_cache(
    server: Server, tmp_path: Path, guided_model: Path
) -> None:
    server.files["user/name/model.safetensors"] = guided_model.read_bytes()
    first = asked(server, tmp_path, LOAD)
    assert first.stdout == "torch.Size([3, 8, 8])\n", first.stderr
    assert any(line.startswith("GET /user/name/resolve/main/model.safetensors") for line in server.requests)
    server.requests.clear()
    second = asked(server, tmp_path, LOAD, HF_HUB_OFFLINE="1")
    assert second.stdout == "torch.Size([3, 8, 8])\n", second.stderr
    assert server.requests == []


def test_offline_without_the_file_says_what_to_do(server: Server, tmp_path: Path) -> None:
    done = asked(server, tmp_path, LOAD, HF_HUB_OFFLINE="1")
    assert "hf://user/name: it is not in the cache and the hub cannot be asked" in done.stderr
    assert server.requests == []


def test_what_is_not_there_is_named(server: Server, tmp_path: Path, guided_model: Path) -> None:
    assert "there is no such repository" in asked(server, tmp_path, LOAD).stderr
    server.files["user/name/rain.safetensors"] = guided_model.read_bytes()
    assert "the repository has no file model.safetensors" in asked(server, tmp_path, LOAD).stderr
    named = LOAD.replace("hf://user/name", "hf://user/name/rain.safetensors")
    assert asked(server, tmp_path, named).stdout.startswith("torch.Size")


def test_a_file_of_the_hub_that_is_no_model_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["user/name/model.safetensors"] = b"\x80\x02 a pickle"
    assert "is a pickle" in asked(server, tmp_path, LOAD).stderr


def test_a_model_is_pushed_with_its_card(server: Server, tmp_path: Path, guided_model: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(guided_model.read_bytes())
    weights.with_suffix(".json").write_text('{"name": "mine"}')
    code = f"{RUN}; run(['export', 'hf://user/name', '--model', {str(weights)!r}])"
    done = asked(server, tmp_path / "home", code)
    assert f"/user/name/commit/{COMMIT}" in done.stdout, done.stderr
    assert server.pushed == {
        "model.safetensors": guided_model.read_bytes(),
        "model.json": b'{"name": "mine"}',
    }


def test_a_model_is_pulled_into_a_file(server: Server, tmp_path: Path, guided_model: Path) -> None:
    server.files["user/name/model.safetensors"] = guided_model.read_bytes()
    out = tmp_path / "mine.safetensors"
    code = f"{RUN}; run(['import', 'hf://user/name', {str(out)!r}])"
    done = asked(server, tmp_path / "home", code)
    assert "guided" in done.stdout, done.stderr
    from twofold import zoo

    assert zoo.read_weights(out)[0] == zoo.read_weights(guided_model)[0]


@pytest.mark.parametrize(
    "name",
    ["hf://", "hf://user", "hf://user/", "hf://user/name/../x.safetensors", "hf://user/name/weights.pth", "hf://a b/c"],
)
def test_a_name_that_cannot_be_meant_is_refused(name: str) -> None:
    with pytest.raises(WeightsError, match="write hf://user/name"):
        hub.hub_place(f"hf://{name}")


@pytest.mark.parametrize(
    "name",
    [
        "hf://user/name",
        "hf://user/name@v1.0",
        "hf://user/name/sub/rain.safetensors",
        "hf://user/name@main/x.safetensors",
    ],
)
def test_a_place_is_written_as_it_is_read(name: str) -> None:
    assert str(hub.hub_place(name)) == name
