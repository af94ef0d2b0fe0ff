"""The server of the page: on this computer only unless asked otherwise, until it is interrupted. It needs gradio."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from types import FrameType
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response, StreamingResponse

from sashimi_diffusion.demo.handlers import LIVE_ADDRESS
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.demo.page import CSS, theme
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import say

LARGEST_UPLOAD = "50mb"
_TERMINATED = 128 + signal.SIGTERM


def serve(page: gr.Blocks, sounds: LiveSounds, listening: socket.socket, open_browser: bool) -> None:
    """Serve the page until Ctrl-C, which raises KeyboardInterrupt, or SIGTERM, which raises SystemExit."""
    port = listening.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(application(page, sounds), log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
    )
    address = f"http://127.0.0.1:{port}/"
    threading.Thread(target=_announce, args=(server, address, open_browser), daemon=True).start()
    with _termination_as_exit():
        server.run(sockets=[listening])
    if not server.started:
        raise UserError("the server of the page did not start: see the messages above")


def application(page: gr.Blocks, sounds: LiveSounds) -> FastAPI:
    """Return the page with the route of the live sounds as a web application."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/" + LIVE_ADDRESS)
    def live(name: str) -> Response:
        sound = sounds.find(name)
        if sound is None:
            return Response(status_code=404)
        return StreamingResponse(sound.pieces(), media_type="audio/wav", headers={"Cache-Control": "no-store"})

    options: dict[str, Any] = {"footer_links": [], "run_history": False, "ssr_mode": False, "show_error": True}
    return gr.mount_gradio_app(
        app, page, path="/", max_file_size=LARGEST_UPLOAD, theme=theme(), css=CSS, pwa=False, **options
    )


def _announce(server: uvicorn.Server, address: str, open_browser: bool) -> None:
    while not server.started:
        if server.should_exit:
            return
        time.sleep(0.05)
    say(f"sashimi-demo is ready: {address} (Ctrl-C ends it)")
    # Without a desktop, webbrowser would start a browser in this terminal.
    if open_browser and (sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(address)


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Let SIGTERM raise SystemExit in the block, so that temporary files are removed."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
