"""Read audio files as float32 arrays, resample them, and write PCM16 wav files."""

import io
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
import soxr
import torch

from sashimi_diffusion.data.decoding import MAX_SAMPLES, AudioFileError, Decoded, decode_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import writing
from sashimi_diffusion.terminal import first_line, printable

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
RATES = range(100, 1_000_001)
"""The sample rates in Hz from and to which audio can be resampled."""

_LARGEST_KERNEL = 2**20  # coefficients of torchaudio's filter; a common pair such as 44.1 and 16 kHz has 130,000
_ZERO_CROSSINGS = 64
_ROLLOFF = 0.945
_FILTER_PERIODS = 200  # no filter is longer on either side, in periods of the lower rate
_LONGEST_FILTER = _FILTER_PERIODS / RATES.start  # in seconds


def read_audio(
    path: Path | str,
    sample_rate: int | None = None,
    source_rate: int | None = None,
    max_seconds: float | None = None,
    channels: int = 1,
) -> np.ndarray:
    """Read an audio file and return the mean of its channels, or all of them.

    Args:
        path: a wav, flac, ogg or mp3 file, or any other that soundfile can decode.
        sample_rate: resample to this rate in Hz; None keeps the rate of the file.
        source_rate: required rate of the file in Hz; None accepts every rate.
        max_seconds: return the beginning of this duration, and decode little more of the file; None reads all.
        channels: 1 mixes the channels; a larger number is the required number of channels of the file.

    Returns:
        float32, shape (length,), or (channels, length) for more than one channel. Integer formats are divided by their
        full scale, so values are in [-1, 1).

    Raises:
        AudioFileError: the file is unreadable, no regular file, not audio, empty, cut short, too long, at the wrong
            rate or one outside ``RATES``, has another number of channels, or its level is impossible (see
            :mod:`sashimi_diffusion.data.levels`).
        UserError: the file must be resampled and torchaudio cannot be imported.
    """
    decoded = decode_audio(path, None if max_seconds is None else max_seconds + _LONGEST_FILTER, channels)
    if source_rate is not None and decoded.sample_rate != source_rate:
        raise AudioFileError(path, f"wrong sample rate ({decoded.sample_rate} Hz instead of {source_rate} Hz)")
    rate = sample_rate or decoded.sample_rate
    if max_seconds is not None and rate != decoded.sample_rate and decoded.sample_rate in RATES:
        seconds = max_seconds + _FILTER_PERIODS / min(rate, decoded.sample_rate)
        decoded = decoded._replace(samples=decoded.samples[..., : math.ceil(seconds * decoded.sample_rate)])
    samples = at_rate(decoded, rate, path)
    return samples if max_seconds is None else samples[..., : math.ceil(max_seconds * rate)]


def at_rate(decoded: Decoded, rate: int, path: Path | str) -> np.ndarray:
    """Return the samples of a decoded file at another rate.

    Args:
        decoded: a decoded file.
        rate: rate of the result in Hz.
        path: the file, for error messages.

    Raises:
        AudioFileError: audio at the rate of the file cannot be resampled, or the result would be too long.
        UserError: the file must be resampled and torchaudio cannot be imported.
    """
    if rate == decoded.sample_rate:
        return decoded.samples
    check_file_rate(path, decoded.sample_rate)
    if decoded.samples.size * rate > MAX_SAMPLES * decoded.sample_rate:
        longest = MAX_SAMPLES * decoded.samples.shape[-1] // decoded.samples.size
        raise AudioFileError(path, f"more than {longest} samples at {rate} Hz: cut it into shorter files")
    return resample(decoded.samples, decoded.sample_rate, rate)


def check_file_rate(path: Path | str, rate: int) -> None:
    """Raise AudioFileError if audio at the rate of a file, in Hz, cannot be resampled."""
    if rate not in RATES:
        raise AudioFileError(path, f"impossible sample rate ({_outside(rate)})")


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate by band-limited interpolation.

    Most pairs of rates use torchaudio's windowed sinc with a Kaiser window. Its table of coefficients grows with the
    product of the rates divided by their greatest common divisor; pairs that would need more than 2^20 coefficients,
    for example 11,127 Hz and 16 kHz, use soxr at its highest quality. The memory does not depend on the pair.

    With either, a tone up to 0.85 of the lower Nyquist frequency is changed by less than 0.1 % of its amplitude, and a
    tone 1 % or more above the new Nyquist frequency is suppressed by at least 95 dB.

    Args:
        waveform: float32, shape (..., length).
        from_rate: rate of ``waveform`` in Hz, in ``RATES``.
        to_rate: rate of the result in Hz, in ``RATES``.

    Returns:
        float32, shape (..., ceil(length * to_rate / from_rate)).

    Raises:
        UserError: a rate is not in ``RATES``, or torchaudio cannot be imported.
    """
    if from_rate == to_rate:
        return waveform
    for rate in (from_rate, to_rate):
        if rate not in RATES:
            raise UserError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: {_outside(rate)}")
    if _kernel_size(from_rate, to_rate) > _LARGEST_KERNEL:
        return _resample_with_soxr(waveform, from_rate, to_rate)
    torchaudio = import_torchaudio(
        f"resampling from {from_rate} Hz to {to_rate} Hz", f"give recordings that are at {to_rate} Hz already"
    )
    # A long filter with a cut-off close to Nyquist: the model reproduces artifacts of its training data, and each
    # recording is resampled only once.
    resampled = torchaudio.functional.resample(
        torch.from_numpy(waveform),
        from_rate,
        to_rate,
        lowpass_filter_width=_ZERO_CROSSINGS,
        rolloff=_ROLLOFF,
        resampling_method="sinc_interp_kaiser",
        beta=14.77,
    )
    return resampled.numpy()


def _kernel_size(from_rate: int, to_rate: int) -> int:
    """Return the number of coefficients that torchaudio computes."""
    common = math.gcd(from_rate, to_rate)
    before, after = from_rate // common, to_rate // common
    return after * (2 * math.ceil(_ZERO_CROSSINGS * before / (min(before, after) * _ROLLOFF)) + before)


def _resample_with_soxr(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    rows = waveform.reshape(math.prod(waveform.shape[:-1]), waveform.shape[-1])
    length = -(-waveform.shape[-1] * to_rate // from_rate)
    result = np.zeros((len(rows), length), dtype=np.float32)
    for row, out in zip(rows, result, strict=True):
        resampled = soxr.resample(row, from_rate, to_rate, quality="VHQ")[:length]
        out[: len(resampled)] = resampled  # soxr rounds the length
    return result.reshape(*waveform.shape[:-1], length)


def _outside(rate: int) -> str:
    return f"{rate} Hz, expected {RATES.start} Hz to {RATES[-1]:,} Hz"


def write_audio(path: Path | str, waveform: np.ndarray | torch.Tensor, sample_rate: int) -> float:
    """Write a PCM16 wav file; samples outside [-1, 1] are clamped and counted.

    Args:
        path: the file to write; an existing file is replaced.
        waveform: real, shape (length,) or (channels, length).
        sample_rate: in Hz.

    Returns:
        The fraction of samples that were clamped, from 0 to 1.

    Raises:
        UserError: the waveform is empty, has another shape or is not finite, or the file cannot be written.
    """
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().float().cpu().numpy()
    samples = np.asarray(waveform, dtype=np.float64)
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise UserError(f"expected a waveform of shape (length,) or (channels, length), got {samples.shape}")
    if not np.isfinite(samples).all():
        raise UserError(f"cannot write {printable(path)}: the waveform has non-finite samples (NaN or infinity)")
    clip_ratio = float((np.abs(samples) > 1).mean())
    pcm = np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm.T, sample_rate, subtype="PCM_16", format="WAV")
    with writing(printable(path)):
        # soundfile does not write the file itself, because libsndfile reports no error if the disk is full.
        Path(path).write_bytes(encoded.getvalue())
    return clip_ratio


def import_torchaudio(purpose: str, alternative: str) -> ModuleType:
    """Import torchaudio and return it.

    The package imports it only where it is used, because its published builds cannot be imported with a CPU-only torch.

    Args:
        purpose: what needs torchaudio, for the error message.
        alternative: what the user can do without torchaudio, for the error message.

    Raises:
        UserError: torchaudio cannot be imported.
    """
    try:
        import torchaudio
    except (ImportError, OSError) as error:
        raise UserError(
            f"{purpose} needs torchaudio, which cannot be imported with torch {torch.__version__} "
            f"({type(error).__name__}: {first_line(error)}). Install a torchaudio built for this torch "
            f"(for a CPU-only one: pip install torchaudio --index-url https://download.pytorch.org/whl/cpu), "
            f"or {alternative}."
        ) from error
    return torchaudio
