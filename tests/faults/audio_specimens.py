"""Specimens of the audio zoo: generated audio files, each with what reading it must give, and how they are made."""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import soundfile

RATE = 16000
LENGTH = 20000
MAX_SAMPLES = 100_000
"""The limit with which the zoo is read, so that the files that exceed it are small."""


@dataclass(frozen=True)
class Decoded:
    """The file is read as these samples.

    Attributes:
        samples: the mean of the channels, shape (length,).
        error: largest root mean square of the difference, relative to that of the samples; 0 is exact.
        warning: beginning of the warning about its level, or None.
        extra: number of samples that the format may add.
    """

    samples: np.ndarray
    error: float = 0.0
    warning: str | None = None
    extra: int = 0


@dataclass(frozen=True)
class Refused:
    """The file is refused with a reason that begins with this text."""

    reason: str


@dataclass(frozen=True)
class Either:
    """The file is read, or refused with a reason: it is damaged where a decoder may not notice it."""


@dataclass(frozen=True)
class Specimen:
    """One file.

    Attributes:
        kind: what the file is an example of.
        name: its name, with an ending.
        content: function that returns its content.
        outcome: what reading it gives.
    """

    kind: str
    name: str
    content: Callable[[], bytes]
    outcome: Decoded | Refused | Either


def signal(channels: int = 1, length: int = LENGTH, rate: int = RATE) -> np.ndarray:
    """Return tones of different frequency in each channel, in steps of 2^-15, shape (length, channels)."""
    time = np.arange(length)[:, None] / rate
    tones = 0.4 * np.sin(2 * np.pi * 300 * (1 + np.arange(channels)) * time)
    return np.round(tones * 2**15) / 2**15


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """Return the content of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav(data: bytes, before: bytes = b"", after: bytes = b"", size: int | None = None, **changes: int) -> bytes:
    """Return a wav file written by hand.

    Args:
        data: the samples.
        before: chunks before the samples.
        after: chunks after the samples.
        size: stated size of the samples; default: the true one.
        changes: fields of the format: tag, channels, rate, align, bits.
    """
    field = {"tag": 1, "channels": 1, "rate": RATE, "align": 2, "bits": 16} | changes
    layout = struct.pack(
        "<HHIIHH",
        field["tag"],
        field["channels"],
        field["rate"],
        field["rate"] * field["align"] % 2**32,
        field["align"],
        field["bits"],
    )
    stated = len(data) if size is None else size
    chunks = chunk(b"fmt ", layout) + before + b"data" + struct.pack("<I", stated) + data + after
    return b"RIFF" + struct.pack("<I", (4 + len(chunks)) % 2**32) + b"WAVE" + chunks


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def pcm16(samples: np.ndarray) -> bytes:
    return np.round(samples * 2**15).astype("<i2").tobytes()


def at(content: bytes, position: int, new: bytes) -> bytes:
    """Return content with other bytes at one position."""
    return content[:position] + new + content[position + len(new) :]


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return at(content, position, bytes([content[position] ^ 1 << bit]))


def flac_total(content: bytes, total: int) -> bytes:
    """Return a FLAC file whose header states this number of samples."""
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
    return at(content, 18, field.to_bytes(8, "big"))


def without_tag(content: bytes) -> bytes:
    """Return an MP3 file without its first frame, which states the length."""
    return content[content.index(content[:2], 100) :]


def mean(channels: int = 1) -> np.ndarray:
    """Return the mean of the channels of :func:`signal`."""
    return signal(channels).mean(axis=1)


def of(format: str, channels: int = 1) -> bytes:
    """Return a file of a format in its usual encoding."""
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(format, "PCM_16")
    return encoded(signal(channels), RATE, format, subtype)
