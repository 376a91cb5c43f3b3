"""The server as a browser sees it, without one: what it answers, refuses, survives and deletes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import socket
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the web page needs gradio: pip install 'twofold[ui]'")

import httpx
from ui_stubs import Served, picture, serving, until

from twofold.contracts import TwofoldError
from twofold.ui import server
from twofold.ui.visits import Limits

_sessions = itertools.count()
_opened: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """No test leaves a connection to be collected during another."""
    yield
    while _opened:
        _opened.pop().close()


class Client:
    """A browser without eyes: uploads, presses buttons by the name of what they do, reads what they change."""

    def __init__(self, address: str) -> None:
        self.session = f"session{next(_sessions)}"
        self.http = httpx.Client(base_url=address, timeout=600, trust_env=False)
        _opened.append(self.http)
        config = self.http.get("config").json()
        self.actions = {made["api_name"]: made for made in config["dependencies"]}
        self.ids = {made["props"].get("elem_id"): made["id"] for made in config["components"]}

    def upload(self, content: bytes, name: str) -> dict[str, Any]:
        answer = self.http.post("gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def press(self, action: str, *data: Any, event: Any = None, queued: bool = True) -> dict[str, Any]:
        """What changed, by the id of the part."""
        made = self.actions[action]
        body = {"data": data, "fn_index": made["id"], "session_hash": self.session, "event_data": event}
        if not queued:
            done = self.http.post(f"gradio_api/run/{action}", json=body)
            return dict(zip(made["outputs"], done.raise_for_status().json()["data"], strict=True))
        self.http.post("gradio_api/queue/join", json=body).raise_for_status()
        changed: dict[str, Any] | None = None
        # To its end, as a browser reads it: a stream that is closed before cancels whatever the session asks next.
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    changed = dict(zip(made["outputs"], message["output"]["data"], strict=True))
        assert changed is not None, "the stream ended early"
        return changed

    def text(self, changed: dict[str, Any], part: str) -> str:
        value = changed[self.ids[part]]
        return str(value.get("value", "")) if isinstance(value, dict) else str(value)

    def add(self, image: Image.Image | bytes, name: str = "a.png") -> dict[str, Any]:
        buffer = io.BytesIO()
        if isinstance(image, Image.Image):
            image.save(buffer, Path(name).suffix[1:].upper().replace("JPG", "JPEG"))
        return self.press("received", [self.upload(buffer.getvalue() or image, name)])

    def restore(self, task: str = "rain", model: str = "dry", *, strength: float = 1.0) -> dict[str, Any]:
        return self.press("restore_current", task, model, strength, False, 0.02, 31, "as it came")

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """The page is open, as long as this lasts."""
        with self.http.stream("GET", f"gradio_api/heartbeat/{self.session}") as alive:
            lines = alive.iter_lines()  # kept: without it the connection would be closed at once
            next(lines)
            yield


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, Limits(megabytes=1, megapixels=1, photographs=3)) as made:
        yield made


def test_a_photograph_is_restored_and_downloaded(page: Served) -> None:
    client = Client(page.address)
    added = client.add(picture(), "wet.png")
    assert 'alt="wet.png, as it came"' in client.text(added, "viewer")
    done = client.restore(strength=0.5)
    assert 'alt="wet.png, restored"' in client.text(done, "viewer")
    links = client.text(done, "downloads")
    address = links.split('href="')[1].split('"')[0]
    answer = client.http.get(address)
    assert answer.headers["cache-control"] == "no-store"
    with Image.open(io.BytesIO(answer.content)) as restored, picture() as before:
        assert restored.size == before.size
        assert restored.tobytes() != before.tobytes()
    client.add(picture(seed=1), "second.png")
    everything = client.press("restore_every", "rain", "dry", 1.0, False, 0.02, 31, "JPEG")
    assert "2 of 2 restored" in client.text(everything, "status")
    packed = client.http.get(client.text(everything, "downloads").split('restored.zip" href="')[1].split('"')[0])
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.namelist() == ["wet-restored.jpg", "second-restored.jpg"]


def test_a_broken_file_is_named_and_the_others_are_taken(page: Served) -> None:
    client = Client(page.address)
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    files = [client.upload(b"<b>no</b>", "<i>bad<i>.jpg"), client.upload(buffer.getvalue(), "good.png")]
    changed = client.press("received", files)
    assert "bad" in client.text(changed, "status")
    assert "<b>" not in client.text(changed, "status")
    assert "not a JPEG" in client.text(changed, "status")
    assert "<i>" not in client.text(changed, "status")
    assert "good.png" in client.text(changed, "viewer")


def test_restoring_without_a_photograph_says_so(page: Served) -> None:
    client = Client(page.address)
    assert "add one first" in client.text(client.restore(), "status")
    assert "There is no map yet" in client.text(
        client.press("restore_by_map", None, "rain", "dry", 1.0, False, 0.02, 31, "PNG"), "status"
    )


def test_what_is_too_large_is_refused_before_it_is_kept(page: Served) -> None:
    client = Client(page.address)
    answer = client.http.post("gradio_api/upload", files={"files": ("large.png", b"x" * 1_200_000)})
    assert answer.status_code == 413
    changed = client.add(Image.new("RGB", (1200, 1000)), "wide.png")
    assert "megapixels, the limit of this page is 1" in client.text(changed, "status")


def test_an_upload_is_refused_where_the_share_of_the_disk_is_used_up(tmp_path: Path) -> None:
    with serving(tmp_path, Limits(gigabytes=0)) as page:
        client = Client(page.address)
        client.upload(b"x", "a.png")  # nothing was there before it
        answer = client.http.post("gradio_api/upload", files={"files": ("a.png", b"x")})
        assert answer.status_code == 507
        assert "its limit" in answer.json()["detail"]


def test_the_page_may_load_nothing_from_elsewhere(page: Served) -> None:
    answer = httpx.get(page.address, trust_env=False)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert '"analytics_enabled":false' in answer.text.replace(" ", "")
    assert "fonts.googleapis" not in answer.text
    assert "fonts.gstatic" not in httpx.get(page.address + "theme.css", trust_env=False).text


def test_a_page_of_the_web_cannot_reach_this_one_under_its_own_name(page: Served) -> None:
    assert httpx.get(page.address, headers={"host": "example.org"}, trust_env=False).status_code == 400


@pytest.mark.parametrize(
    "path", ["visit/guess/1/thumb.jpg", "visit/guess/restored.zip", "visit/x/..%2f..%2fetc%2fpasswd", "examples/x.jpg"]
)
def test_other_files_are_not_there(page: Served, path: str) -> None:
    assert httpx.get(page.address + path, trust_env=False).status_code == 404


def test_files_of_the_machine_are_not_handed_out(page: Served) -> None:
    for path in ("/etc/passwd", str(Path(server.__file__)), str(page.root)):
        assert httpx.get(f"{page.address}gradio_api/file={path}", trust_env=False).status_code in (403, 404)


def test_a_visit_ends_with_the_page_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as page:
        client = Client(page.address)
        with client.present():
            client.add(picture())
            client.restore()
            assert len(page.visits()) > 5
        until(lambda: not page.visits())


def test_an_upload_survives_that_everybody_else_leaves(tmp_path: Path) -> None:
    """Its visit begins when the page says what arrived, which may be after the last other visit has ended."""
    with serving(tmp_path) as page:
        early, leaving = Client(page.address), Client(page.address)
        buffer = io.BytesIO()
        picture(seed=5).save(buffer, "PNG")
        waiting = early.upload(buffer.getvalue(), "waiting.png")
        with leaving.present():
            leaving.add(picture(seed=6), "left.png")
            leaving.restore()
        until(lambda: [file.name for file in page.visits()] == ["waiting.png"])
        assert "waiting.png, as it came" in early.text(early.press("received", [waiting]), "viewer")
        assert not [
            file for file in page.visits() if file.name == "waiting.png"
        ]  # it is in the visit, and nowhere else


def test_work_stops_when_asked(tmp_path: Path) -> None:
    with serving(tmp_path, seconds=60) as page, ThreadPoolExecutor(1) as threads:
        client = Client(page.address)
        client.add(picture())
        running = threads.submit(client.restore)
        until(page.called.exists)
        _same_visit(client).press("stopping", queued=False)
        assert "Stopped" in client.text(running.result(600), "status")


def test_work_stops_when_the_page_is_left(tmp_path: Path) -> None:
    with serving(tmp_path, seconds=60) as page, ThreadPoolExecutor(1) as threads:
        client = Client(page.address)
        with _same_visit(client).present():
            client.add(picture())
            threads.submit(client.restore)
            until(page.called.exists)
        until(lambda: not page.visits())


def _same_visit(client: Client) -> Client:
    twin = Client(str(client.http.base_url))
    twin.session = client.session
    return twin


def test_a_port_in_use_is_an_error_with_the_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TwofoldError, match=r"choose another with --port"):
            server.bound("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(TwofoldError, match=r"cannot serve at no\.such\.machine\.invalid"):
        server.bound("no.such.machine.invalid", 0)


@pytest.mark.slow
@pytest.mark.skipif("TWOFOLD_LOAD_TEST" not in os.environ, reason="a load test; set TWOFOLD_LOAD_TEST")
def test_a_thousand_requests_leave_neither_files_nor_memory(tmp_path: Path) -> None:
    """Twenty visits of fifty restorations each, four at a time."""
    psutil = pytest.importorskip("psutil")

    with serving(tmp_path, Limits(photographs=2)) as page:
        process = psutil.Process(page.process.pid)

        def visit(number: int) -> None:
            client = Client(page.address)
            with contextlib.closing(client.http), client.present():
                client.add(picture(seed=number), f"{number}.png")
                for _ in range(50):
                    assert f"{number}.png, restored" in client.text(client.restore(), "viewer")

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(visit, range(4)))
            before = process.memory_info().rss
            list(threads.map(visit, range(4, 20)))
            grown = process.memory_info().rss - before
        until(lambda: not page.visits())
        assert grown < 100 * 2**20, f"{grown / 2**20:.0f} MiB after 800 more restorations"
