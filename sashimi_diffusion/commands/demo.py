"""``sashimi-demo``: a page in the browser to generate, continue and compare sounds."""

import argparse
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Sequence

from sashimi_diffusion.command_line import Parser, run, select_device
from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.jobs import Jobs, Stopped
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.demo.sampling import warm_up
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import first_line, say
from sashimi_kernels.allocation import keep_freed_memory

_OLDEST = 6  # major version of gradio

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
    with tempfile.TemporaryDirectory(prefix="sashimi-demo-") as folder:
        # gradio reads these variables when it is imported and when it stores uploaded files.
        os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder)
        _require_gradio()
        from sashimi_diffusion.demo.page import build_page
        from sashimi_diffusion.demo.server import listen, serve

        host = "0.0.0.0" if options.share_on_network else "127.0.0.1"
        with listen(host, options.port) as listening:
            keep_freed_memory()
            catalog, jobs, sounds = Catalog(options.pipeline, select_device(options.device)), Jobs(), LiveSounds()
            if options.share_on_network:
                say(
                    "warning: everybody on this network can use the page, this computer's processor and the uploaded "
                    "recordings, without a password",
                    sys.stderr,
                )
            stop = threading.Event()
            warming = threading.Thread(target=_warm_up, args=(catalog, stop), daemon=True)
            warming.start()
            try:
                serve(build_page(Handlers(catalog, jobs, sounds)), sounds, listening, not options.no_browser)
            finally:
                stop.set()
                jobs.stop_all()
                sounds.end_all()
                warming.join()


def _warm_up(catalog: Catalog, stop: threading.Event) -> None:
    try:
        warm_up(catalog, stop)
    except (Stopped, UserError) as error:
        if not isinstance(error, Stopped):
            say(f"warning: {error}", sys.stderr)


def _port(text: str) -> int:
    port = int(text)
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
