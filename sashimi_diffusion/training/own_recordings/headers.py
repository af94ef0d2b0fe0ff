"""Read the headers of all recordings in a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from sashimi_diffusion.data.audio import check_file_rate
from sashimi_diffusion.data.decoding import MAX_SAMPLES, AudioFileError, decode_audio

_BEGINNING = 0.01  # seconds that are decoded to find files that are no audio or cut short
_UNKNOWN = 2**50  # libsndfile gives larger numbers for an unknown length


@dataclass(frozen=True)
class Recording:
    """What the header of an audio file states.

    Args:
        path: the file.
        seconds: its duration.
        sample_rate: in Hz.
        channels: number of channels.
    """

    path: Path
    seconds: float
    sample_rate: int
    channels: int


def read_headers(files: Sequence[Path]) -> tuple[list[Recording], dict[Path, str]]:
    """Return the recordings that can be used as far as their headers say, and a reason for each other file.

    Only the beginning of each file is decoded.
    """
    recordings: list[Recording] = []
    bad: dict[Path, str] = {}
    for path in tqdm(files, desc="Reading headers", unit="file", delay=2):
        try:
            recordings.append(_read_header(path))
        except AudioFileError as error:
            bad[path] = error.reason
    return recordings, bad


def _read_header(path: Path) -> Recording:
    beginning = decode_audio(path, _BEGINNING)
    check_file_rate(path, beginning.sample_rate)
    samples = soundfile.info(path).frames
    if not 0 < samples < _UNKNOWN:  # the program that wrote the file did not know its length
        samples = len(decode_audio(path).samples)
    if samples > MAX_SAMPLES:
        raise AudioFileError(path, f"more than {MAX_SAMPLES} samples: cut it into shorter files")
    return Recording(path, samples / beginning.sample_rate, beginning.sample_rate, beginning.channels)
