"""Output of sampling commands: the batches of each process, the folder, and the record in samples.json."""

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

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file, writing

SHEET_CLIPS = 60
"""Maximum number of clips on the contact sheet."""

Clip = TypeVar("Clip")


def share_of_batches(clips: Sequence[Clip], batch_size: int, state: PartialState) -> list[Sequence[Clip]]:
    """Return the batches of this process; batches are smaller if a process would have none otherwise."""
    size = min(batch_size, math.ceil(len(clips) / state.num_processes))
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    return batches[state.process_index :: state.num_processes]


def prepare_folder(out: Path, needed: int) -> None:
    """Create the folder, and check before generation that ``needed`` bytes can be written to it.

    Raises:
        UserError: the folder cannot be written, or the disk has less free space.
    """
    with writing(f"to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            free = shutil.disk_usage(out).free
    if needed > free:
        raise UserError(
            f"{out} needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left: free some space or choose "
            "another place"
        )


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Write ``samples.json``: ``record`` and the versions of Python and the packages."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in ("sashimi-diffusion", "diffusers", "accelerate")},
    }
    text = json.dumps({**record, "versions": versions}, indent=2, default=list) + "\n"
    write_file(out / "samples.json", text.encode())
