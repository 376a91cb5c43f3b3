"""The web server of the page: routes, limits, and no other connections."""

from __future__ import annotations

import json
import os
import signal
import socket
import types
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import anyio
import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofold.contracts import TwofoldError
from twofold.ui import work
from twofold.ui.examples import example
from twofold.ui.page import Page
from twofold.ui.restoring import Models
from twofold.ui.visits import Visits

LOCAL = ("127.0.0.1", "localhost", "::1")

# No script, font, picture or connection but from this server, whatever the libraries in the page would like.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; form-action 'self'; frame-ancestors 'self'; base-uri 'self'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


@dataclass(frozen=True)
class Guarded:
    """Adds the policy to every answer, and refuses uploads while the disk's share is used up."""

    app: ASGIApp
    visits: Visits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload"):
            try:
                await anyio.to_thread.run_sync(self.visits.check_room)
            except TwofoldError as error:
                await JSONResponse({"detail": str(error)}, 507)(scope, receive, sending)
                return
            await self._upload(scope, receive, sending)
        else:
            await self.app(scope, receive, sending)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes an upload on, and notes the files that the answer names."""
        body = bytearray()
        with self.visits.arriving() as arrived:

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.body":
                    body.extend(message.get("body", b""))
                    with suppress(ValueError, TypeError):  # an error, or not the whole answer yet
                        arrived([Path(name) for name in json.loads(body)])
                await send(message)

            await self.app(scope, receive, sending)


def application(visits: Visits, models: Models, *, host: str = "127.0.0.1") -> FastAPI:
    """The page at `/`, the files of visits at `/visit/TOKEN/…`, the examples at `/examples/…`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/visit/{token}/restored.zip")
    def restored(token: str) -> Response:
        visit = visits.by_token(token)
        if visit is None:
            return Response("This visit has ended.", 404)
        return Response(work.zip_of(visit.photos.values()), media_type="application/zip", headers=_UNKEPT)

    @app.get("/visit/{token}/{name:path}")
    def file(token: str, name: str) -> Response:
        path = visits.file(token, name)
        return Response("This visit has ended.", 404) if path is None else FileResponse(path, headers=_UNKEPT)

    @app.get("/examples/{name}.jpg")
    def thumbnail(name: str) -> Response:
        path = example(name, visits.root)
        return Response("There is no such example.", 404) if path is None else FileResponse(work.thumbnail(path))

    blocks = Page(visits, models).build().queue(default_concurrency_limit=4, max_size=256)
    gr.mount_gradio_app(
        app,
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        max_file_size=f"{visits.limits.megabytes}mb",
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=_text("style.css"),
        head=f"<script>{_text('limits.js').replace('LIMIT', str(visits.limits.megabytes))}</script>",
    )
    if host in LOCAL:  # else any page of the web could reach this one under a name of its own
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"])
    app.add_middleware(Guarded, visits=visits)
    return app


def _text(name: str) -> str:
    return resources.files("twofold.ui").joinpath(name).read_text()


def _theme() -> gr.themes.Base:
    """Fonts of the system, so that none is fetched; greys that can be read."""
    theme = gr.themes.Base(
        font=["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        spacing_size=gr.themes.sizes.spacing_sm,
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_800",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )


_UNKEPT = {"cache-control": "no-store"}


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises: TwofoldError where the port is taken, or the name is none of this machine."""
    listening: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        if listening is not None:
            listening.close()
        reason = error.strerror or str(error)
        raise TwofoldError(f"cannot serve at {host}:{port} ({reason}); choose another with --port or --host") from error
    return listening


def serve(visits: Visits, models: Models, *, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C or a signal to end; then everything that visits left is deleted.

    port: 0 takes a free one. announce: called with the address when the page answers.

    Raises: TwofoldError where the port is taken.
    """

    def end(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)  # uvicorn repeats the signal at its end; the folder must go first
    try:
        with closing(bound(host, port)) as listening, suppress(KeyboardInterrupt):
            number = listening.getsockname()[1]
            name = f"[{host}]" if ":" in host else host
            app = application(visits, models, host=host)
            config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
            _Announcing(config, lambda: announce(f"http://{name}:{number}/")).run(sockets=[listening])
    finally:
        visits.close()
        signal.signal(signal.SIGTERM, before)


class _Announcing(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()
