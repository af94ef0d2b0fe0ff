"""Decode audio files that may be damaged or made to do harm.

No number in a header is believed: files are decoded in blocks up to a bound, and what they have is compared with what
their headers state. Whatever a decoder raises is an error of this one file.
"""

import contextlib
import io
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from sashimi_diffusion.data.audio_headers import (
    AudioData,
    damaged_ogg_page,
    find_audio_data,
    is_cut_ogg,
    mp3_frame_count,
)
from sashimi_diffusion.data.levels import MAX_PEAK, peak_of, peak_problem
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import kind, reason
from sashimi_diffusion.terminal import printable

MAX_SAMPLES = 2**29
"""Maximum number of samples of all channels: 3 hours of one channel at 48 kHz, 9 hours at 16 kHz; 2 GB as float32."""

_BLOCK = 4096  # samples of each channel; also the usual block of FLAC, so a cut file is read to its last whole block
_READ_ALL = 2**22  # bytes of an Ogg file whose pages are all examined, even if only its beginning is decoded
_UNKNOWN = 2**50  # more samples than any format can state; libsndfile gives larger numbers for an unknown length
_ENDLESS = 2**56 + 1  # not 2^56: libsndfile divides by the lower 32 bits if it takes a file for another format
_TAG_TOLERANCE = 8 * 1152  # samples of an MP3 file that its tag counts, but that are delay or padding
_MP3_SLACK = 1152  # some encoders count the frame of the tag as well
_SAMPLE_BYTES = {
    "PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip


class AudioFileError(UserError):
    """Error for a file that cannot be used as audio.

    Args:
        path: the file.
        reason: why it cannot be used, in a few words, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot use {printable(path)}: {reason}")
        self.reason = reason


class Decoded(NamedTuple):
    """A decoded file.

    Attributes:
        samples: the mean of the channels, float32, shape (length,), or all channels, shape (channels, length).
        sample_rate: in Hz.
        channels: number of channels in the file.
    """

    samples: np.ndarray
    sample_rate: int
    channels: int


class _Wanted(NamedTuple):
    """What to decode of a file: seconds from the beginning, or all (None), and channels; 1 is the mean of all."""

    max_seconds: float | None
    channels: int


def decode_audio(path: Path | str, max_seconds: float | None = None, channels: int = 1) -> Decoded:
    """Decode an audio file, and mix its channels if one channel is requested.

    Args:
        path: a wav, flac, ogg or mp3 file, or any other that soundfile can decode.
        max_seconds: decode only this much from the beginning; None decodes the whole file.
        channels: 1: the mean of the channels, shape (length,). A larger number: the channels of a file that has this
            number of them, shape (channels, length).

    Raises:
        AudioFileError: the file is unreadable, no regular file, not audio, empty, cut short, has more than
            ``MAX_SAMPLES`` or another number of channels, or its level is impossible (see
            :mod:`sashimi_diffusion.data.levels`).
    """
    with _named_errors(path), _opened(path) as raw:
        return _decode(Path(path), raw, _Wanted(max_seconds, channels))


def decode_blocks(path: Path | str, start: int = 0) -> Iterator[Decoded]:
    """Yield the mean of the channels of a file in blocks, so that memory does not grow with the duration.

    Args:
        path: a file as for :func:`decode_audio`, of any duration.
        start: index of the first sample; there is no block if the file has fewer samples.

    Raises:
        AudioFileError: as :func:`decode_audio`, when the block with the problem is reached.
    """
    count, peak = 0, 0.0
    with _named_errors(path), _opened(path) as raw, _decoder(Path(path), raw, whole=True) as file:
        for block in _blocks(Path(path), file, _stated(file), start):
            count += len(block)
            peak = float(np.maximum(peak, peak_of(block)))  # NaN stays NaN
            if not peak <= MAX_PEAK and (problem := peak_problem(peak)):
                raise AudioFileError(path, problem)
            yield Decoded(block.mean(axis=1), file.samplerate, file.channels)
        if start == 0 and (problem := peak_problem(peak) if count else "empty (no samples)"):
            raise AudioFileError(path, problem)


@contextlib.contextmanager
def _named_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever a decoder raises in the block into an AudioFileError."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioFileError(path, f"not audio that soundfile can read ({_words(error)})") from error
    except OSError as error:
        raise AudioFileError(path, f"unreadable ({reason(error)})") from error
    except MemoryError as error:
        raise AudioFileError(path, "too long for the memory of this computer") from error
    except UserError:  # a ValueError that names the file already
        raise
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # what soundfile raises for odd headers
        raise AudioFileError(path, f"not audio that soundfile can read ({printable(error)})") from error


def decode_content(content: bytes, name: Path | str, channels: int = 1) -> Decoded:
    """Decode the content of an audio file that is not a file of its own, for example a member of an archive.

    Args:
        content: what the file would contain.
        name: a name for error messages.
        channels: see :func:`decode_audio`.

    Raises:
        AudioFileError: as :func:`decode_audio`; or the temporary file that the decoder reads cannot be written.
    """
    try:
        # All checks of a file need a file, and a decoder that gets a name does not call Python for each block.
        with tempfile.NamedTemporaryFile(prefix="sashimi-") as file:
            file.write(content)
            file.flush()
            return decode_audio(file.name, channels=channels)
    except AudioFileError as error:
        raise AudioFileError(name, error.reason) from error
    except OSError as error:
        raise AudioFileError(name, f"its temporary copy cannot be written ({reason(error)})") from error


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[BinaryIO]:
    """Open a regular file that is not empty."""
    found = os.stat(path)  # opening a FIFO would wait for a writer
    if not stat.S_ISREG(found.st_mode):
        raise AudioFileError(path, f"{kind(found)}, not a regular file")
    if found.st_size == 0:
        raise AudioFileError(path, "empty (0 bytes)")
    with open(path, "rb") as file:
        yield file


class _Stream(soundfile.SoundFile):
    """A file that is only read forward: soundfile would limit each read by the header, and seek after it."""

    def seekable(self) -> bool:
        return False


class _Corrected(io.RawIOBase):
    """A file with other content at one position, or with no end.

    libsndfile asks where the end of an MP3 file is to estimate its length, and decodes no more than this estimate.
    """

    def __init__(self, file: BinaryIO, position: int = 0, content: bytes = b"", endless: bool = False) -> None:
        self._file, self._position, self._content, self._endless = file, position, content, endless
        self._at, self._size = 0, os.fstat(file.fileno()).st_size
        self.error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        try:
            self._file.seek(min(self._at, self._size))
            data = bytearray(self._file.read(len(buffer)))
        except OSError as error:  # an exception cannot pass through libsndfile
            self.error = error
            return 0
        if self._endless and self._at >= _ENDLESS - 128:
            data = bytearray(len(buffer))  # where MP3 files have their ID3v1 tag
        for index, value in enumerate(self._content, self._position - self._at):
            if 0 <= index < len(data):
                data[index] = value
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = _ENDLESS if self._endless else self._size
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: end}[whence])
        return self._at

    def tell(self) -> int:
        return self._at


def _decode(path: Path, raw: BinaryIO, wanted: _Wanted) -> Decoded:
    whole = wanted.max_seconds is None or os.fstat(raw.fileno()).st_size <= _READ_ALL
    with _decoder(path, raw, whole) as file:
        return _read(path, file, wanted)


@contextlib.contextmanager
def _decoder(path: Path, raw: BinaryIO, whole: bool) -> Iterator[soundfile.SoundFile]:
    """Open the decoder of a file whose header was checked; ``whole``: all pages of an Ogg stream are checked, too."""
    if is_cut_ogg(raw):
        raise AudioFileError(path, "cut short: the end of the stream is missing")
    if whole and (page := damaged_ogg_page(raw)) is not None:
        raise AudioFileError(path, f"damaged: page {page} of the Ogg stream is missing or was changed")
    data = find_audio_data(raw)
    if data is not None and data.size_field is not None:
        source = _Corrected(raw, data.size_field, b"\xff" * 4)
    else:
        with _Stream(_own_name(path, raw)) as file:
            if not _is_estimated(file, raw):
                _check_header(path, file, data)
                yield file
                return
        source = _Corrected(raw, endless=True)
    with _Stream(source) as file:
        yield file
    if source.error is not None:
        raise source.error


def _own_name(path: Path, raw: BinaryIO) -> str | bytes:
    """Return a name of an open file that has no files beside it.

    macOS writes ``._a.mp3`` beside ``a.mp3`` on most disks, and libsndfile then takes the MP3 for another format.
    """
    name = f"/proc/self/fd/{raw.fileno()}"
    if os.path.exists(name):
        return name
    return str(path) if os.name == "nt" else os.fsencode(path)


def _is_estimated(file: soundfile.SoundFile, raw: BinaryIO) -> bool:
    """Return whether the number of samples is a guess from the size of the file, as for MP3 files without a tag."""
    if file.format != "MP3":
        return False
    count = mp3_frame_count(raw)
    return count is None or all(abs(file.frames - count * size) > _TAG_TOLERANCE for size in (576, 1152))


def _check_header(path: Path, file: soundfile.SoundFile, data: AudioData | None) -> None:
    """Check the formats in which libsndfile gives the samples that the file has, not those that its header states."""
    if data is None or data.stated is None or data.stated <= data.present:
        return
    size = _SAMPLE_BYTES.get(file.subtype)
    if size:
        stated, about = data.stated // (size * file.channels), ""
    else:  # compressed samples have no fixed size
        stated, about = round(file.frames * data.stated / max(data.present, 1)), "about "
    if stated > file.frames:
        raise AudioFileError(path, _cut_short(stated, file.frames, about))


def _read(path: Path, file: soundfile.SoundFile, wanted: _Wanted) -> Decoded:
    mixed, seconds = wanted.channels == 1, wanted.max_seconds
    if not mixed and file.channels != wanted.channels:
        number = "1 channel" if file.channels == 1 else f"{file.channels} channels"
        raise AudioFileError(path, f"{number} instead of {wanted.channels}")
    longest = MAX_SAMPLES // wanted.channels
    stated = _stated(file)
    most = longest + 1 if seconds is None else min(longest, math.ceil(seconds * file.samplerate))
    end = most if stated is None else min(stated, most)  # other data may follow
    # A file that states that it is too long is decoded to find out whether it is, but it is not kept.
    kept = stated is None or end <= longest
    samples, count, peak = bytearray(), 0, 0.0
    for block in _blocks(path, file, end):
        count += len(block)
        peak = float(np.maximum(peak, peak_of(block)))  # NaN stays NaN
        if kept:
            with np.errstate(over="ignore", invalid="ignore"):  # the peak says what is wrong
                samples += (block.mean(axis=1) if mixed else block).tobytes()
    if count > longest:
        raise AudioFileError(path, f"more than {longest} samples: cut it into shorter files")
    if count == 0:
        raise AudioFileError(path, "empty (no samples)")
    if problem := peak_problem(peak):
        raise AudioFileError(path, problem)
    decoded = np.frombuffer(samples, dtype=np.float32)
    if not mixed:
        decoded = np.ascontiguousarray(decoded.reshape(count, file.channels).T)
    return Decoded(decoded, file.samplerate, file.channels)


def _stated(file: soundfile.SoundFile) -> int | None:
    """Return the number of samples that the header of a file states, or None if it states none."""
    return file.frames if file.frames < _UNKNOWN else None


def _blocks(path: Path, file: soundfile.SoundFile, end: int | None, start: int = 0) -> Iterator[np.ndarray]:
    """Yield blocks of all channels, float32 (L, channels), from the sample ``start`` to ``end``; None: to the last.

    Raises:
        AudioFileError: the file has fewer samples than its header states.
    """
    stated, count = _stated(file), start
    if stated is not None and start >= stated:
        return
    if file.format == "MP3" or start:
        file.seek(start)  # results of MP3 differ in the last digit without it, and it is how soundfile.read begins
    while end is None or count < end:
        try:
            block = file.read(_BLOCK if end is None else min(_BLOCK, end - count), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            if stated is None:
                raise AudioFileError(path, f"cut short or damaged after {count} samples ({_words(error)})") from error
            raise AudioFileError(path, f"{_cut_short(stated, count)} ({_words(error)})") from error
        if len(block) == 0:
            break
        count += len(block)
        yield block
    slack = _MP3_SLACK if file.format == "MP3" else 0
    if stated is not None and end is not None and count < end - slack:
        raise AudioFileError(path, _cut_short(stated, count))


def _cut_short(stated: int, found: int, about: str = "") -> str:
    return f"cut short: header says {about}{stated} samples, file has {found}"


def _words(error: soundfile.LibsndfileError) -> str:
    text = error.error_string.strip().removeprefix("Error : ").rstrip(".")
    # What libsndfile says if another library cannot open the content, or if it knows no other format.
    if text.startswith("File does not exist") or text == "bad resource fork":
        return "its decoder cannot begin"
    return printable(text)
