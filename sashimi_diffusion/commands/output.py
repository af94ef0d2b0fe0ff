"""What sampling commands share: who makes which clips, the folder they write to, the record of it."""

import json
import math
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from sashimi_diffusion.commands.cli import writing_to
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file

SHEET_CLIPS = 60
"""The contact sheet shows the first so many samples."""

Clip = TypeVar("Clip")


def share_of_batches(clips: Sequence[Clip], batch_size: int, state: PartialState) -> list[Sequence[Clip]]:
    """The batches that this process makes: small enough that every process has some, where there are enough clips."""
    size = min(batch_size, math.ceil(len(clips) / state.num_processes))
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    return batches[state.process_index :: state.num_processes]


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
    text = json.dumps({**record, "versions": versions}, indent=2, default=list) + "\n"
    write_file(out / "samples.json", text.encode())
