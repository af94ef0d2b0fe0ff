"""The folder that a command writes to."""

import json
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.commands.cli import writing_to
from sashimi_diffusion.errors import UserError


def prepare_folder(out: Path, needed: int) -> None:
    """Make the folder, and make sure that ``needed`` bytes can be written to it, before hours of computing are lost."""
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(f"{out} needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left")


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write ``samples.json``, with the versions of what made it."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("sashimi-diffusion", "diffusers", "accelerate")},
    }
    # Written beside and renamed: the record is whole, or it is the old one.
    beside = out / "samples.json.part"
    beside.write_text(json.dumps({**record, "versions": versions}, indent=2, default=list) + "\n", encoding="utf-8")
    os.replace(beside, out / "samples.json")
