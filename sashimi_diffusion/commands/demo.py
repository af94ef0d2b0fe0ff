"""``sashimi-demo``: a page in the browser to generate, continue and compare sounds."""

import argparse
import contextlib
import errno
import importlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence

from sashimi_diffusion.command_line import Parser, run, select_device, whole_number
from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.jobs import Jobs, Stopped
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.demo.sampling import warm_up
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import first_line, say
from sashimi_kernels.allocation import keep_freed_memory

_OLDEST = 6  # major version of gradio
_TRIED_PORTS = 100

EXAMPLES = """examples:
  sashimi-demo                                   the bundled pipelines, on http://127.0.0.1:7860/
  sashimi-demo --pipeline runs/mine/pipeline     your own pipeline as well
  sashimi-demo --port 8000 --no-browser
"""


def build_parser() -> Parser:
    """Return the argument parser of the command."""
    parser = Parser(
        prog="sashimi-demo",
        description="Open a page to draw sounds, continue recordings and compare pipelines. It works offline.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    pipeline_help = "folder, name of a bundled pipeline, or hub id; may be repeated (the bundled ones are always there)"
    add("--pipeline", action="append", default=[], metavar="NAME_OR_FOLDER", help=pipeline_help)
    add("--port", type=_port, default=7860, metavar="N", help="port of the page; 0 is any free port")
    add("--share-on-network", action="store_true", help="let other computers of the network use the page")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")
    add("--no-browser", action="store_true", help="print the address, and do not open a browser")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run(lambda: demo(build_parser().parse_args(arguments)))


def demo(options: argparse.Namespace) -> None:
    """Serve the page until it is interrupted.

    Raises:
        UserError: gradio is missing, a pipeline cannot be loaded, or the port is in use.
    """
    host = "0.0.0.0" if options.share_on_network else "127.0.0.1"
    with listen(host, options.port) as listening, tempfile.TemporaryDirectory(prefix="sashimi-demo-") as folder:
        # gradio reads these variables when it is imported and when it stores uploaded files.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        _require_gradio()
        keep_freed_memory()
        catalog = Catalog(options.pipeline, select_device(options.device))
        if options.share_on_network:
            say(
                "warning: everybody on this network can use this page and this computer's processor, without a "
                "password and without encryption",
                sys.stderr,
            )
        _serve(Handlers(catalog, Jobs(), LiveSounds()), listening, not options.no_browser)


def _serve(handlers: Handlers, listening: socket.socket, open_browser: bool) -> None:
    """Serve the page; warm up in the meantime, and stop all work at the end."""
    from sashimi_diffusion.demo.page import build_page
    from sashimi_diffusion.demo.server import serve

    stop = threading.Event()
    warming = threading.Thread(target=_warm_up, args=(handlers.catalog, stop), daemon=True)
    warming.start()
    try:
        serve(build_page(handlers), handlers.sounds, listening, open_browser)
    finally:
        stop.set()
        handlers.jobs.stop_all()
        handlers.sounds.end_all()
        warming.join()


def _warm_up(catalog: Catalog, stop: threading.Event) -> None:
    try:
        warm_up(catalog, stop)
    except (Stopped, UserError) as error:
        if not isinstance(error, Stopped):
            say(f"warning: {error}", sys.stderr)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a port; port 0 is any free one.

    Raises:
        UserError: the port is in use (the message names a free one) or may not be used.
    """
    try:
        return _bound(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} is in use: try --port {_free_port(host, port)}") from error
        raise UserError(f"cannot use port {port} ({error.strerror}): try --port 7860") from error


def _bound(host: str, port: int) -> socket.socket:
    listening = socket.socket()
    try:
        if os.name == "posix":  # a port is free again as soon as its server has ended; elsewhere it means sharing
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


def _free_port(host: str, port: int) -> int:
    """Return a free port, if possible one of the next."""
    for other in [*range(port + 1, min(port + _TRIED_PORTS, 65536)), 0]:
        with contextlib.suppress(OSError), _bound(host, other) as listening:
            return listening.getsockname()[1]
    raise UserError("no port of this computer is free")


def _port(text: str) -> int:
    port = whole_number(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {port}")
    return port


def _require_gradio() -> None:
    """Raise UserError if gradio is missing, too old or broken."""
    try:
        gradio = importlib.import_module("gradio")
    except ImportError as error:
        broken = "" if getattr(error, "name", None) == "gradio" else f" ({first_line(error)})"
        raise UserError(f"sashimi-demo needs gradio{broken}: pip install gradio") from error
    if int(gradio.__version__.split(".")[0]) < _OLDEST:
        raise UserError(
            f"sashimi-demo needs gradio {_OLDEST} or newer, and {gradio.__version__} is installed: "
            "pip install --upgrade gradio"
        )


if __name__ == "__main__":
    sys.exit(main())
