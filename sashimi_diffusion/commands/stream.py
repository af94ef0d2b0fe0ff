"""Write a wav file block by block, into a file that can be played at any time, a FIFO, or a device."""

import argparse
import itertools
import os
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from sashimi_diffusion.command_line import path_argument
from sashimi_diffusion.files import writing
from sashimi_diffusion.paths import status
from sashimi_diffusion.terminal import printable

_SAMPLE_BYTES = 2
_STANDARD_OUTPUT = Path("/dev/stdout")
_OTHER_FORMATS = (".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wma")


def stream_argument(text: str) -> Path:
    """Return the path of the option ``--stream``, for its ``type``; ``-`` is the standard output."""
    path = _STANDARD_OUTPUT if text == "-" else path_argument(text)
    if path.suffix.lower() in _OTHER_FORMATS:
        raise argparse.ArgumentTypeError(f"a stream is a wav file, not {path.suffix}: name it {path.stem}.wav")
    return path


def text_stream(path: Path | None) -> TextIO:
    """Return where a command prints while it writes audio to ``path``: not into the audio.

    Args:
        path: the file, which exists; None: there is none.
    """
    found = None if path is None or sys.stdout is None else status(path)  # None: the program started without one
    return sys.stderr if found is not None and os.path.samestat(found, os.fstat(1)) else sys.stdout


def write_stream(path: Path, blocks: Iterable[np.ndarray], length: int, rate: int) -> None:
    """Write a PCM16 wav file while its audio is generated.

    A regular file is valid after every block: its header states the samples so far. The header of a FIFO or a device,
    which cannot be changed later, states ``length``.

    Args:
        path: the file; links are followed, and an existing file is overwritten.
        blocks: the audio, (n,) each, in [-1, 1).
        length: samples of all blocks together.
        rate: sample rate in Hz.

    Raises:
        UserError: the file cannot be written.
    """
    blocks = iter(blocks)
    first = next(blocks)  # its errors leave an existing file as it is
    with writing(f"to {printable(path)}"), open(path, "wb") as file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        file.write(_header(0 if regular else length, rate))
        done = 0
        for block in itertools.chain([first], blocks):
            pcm = (block.astype(np.float64) * 2**15).round().astype("<i2")
            file.write(pcm.tobytes())
            done += len(pcm)
            if regular:
                file.seek(0)
                file.write(_header(done, rate))
                file.seek(0, os.SEEK_END)
            file.flush()


def _header(length: int, rate: int) -> bytes:
    """Return the header of a mono PCM16 wav file of ``length`` samples."""
    size = _SAMPLE_BYTES * length
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, _SAMPLE_BYTES * rate, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
