"""Read audio files as mono float32 arrays, resample them, and write PCM16 wav files."""

import io
from pathlib import Path
from types import ModuleType

import numpy as np
import soundfile
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import writing

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")


class AudioFileError(UserError):
    """Error for a file that cannot be used as audio.

    Args:
        path: the file.
        reason: why it cannot be used, in a few words, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"cannot use {path}: {reason}")
        self.reason = reason


def read_audio(path: Path | str, sample_rate: int | None = None, source_rate: int | None = None) -> np.ndarray:
    """Read a file that soundfile can decode as one channel, the mean of its channels.

    Args:
        path: a wav, flac, ogg or mp3 file.
        sample_rate: resample to this rate in Hz; None keeps the file's own rate.
        source_rate: if given, a file at any other rate in Hz raises an error.

    Returns:
        float32, shape (length,). Integer formats are divided by their full scale, so values lie in [-1, 1).

    Raises:
        AudioFileError: the file is unreadable, not audio, empty, at the wrong rate, or has non-finite samples.
        UserError: the file must be resampled and torchaudio cannot be imported.
    """
    samples, file_rate = _decode(Path(path))
    if len(samples) == 0:
        raise AudioFileError(path, "empty (no samples)")
    if not np.isfinite(samples).all():
        raise AudioFileError(path, "non-finite samples (NaN or infinity)")
    if source_rate is not None and file_rate != source_rate:
        raise AudioFileError(path, f"wrong sample rate ({file_rate} Hz instead of {source_rate} Hz)")
    if sample_rate is None or sample_rate == file_rate:
        return samples
    return resample(samples, file_rate, sample_rate)


def _decode(path: Path) -> tuple[np.ndarray, int]:
    try:
        if path.stat().st_size == 0:
            raise AudioFileError(path, "empty (0 bytes)")
        frames, file_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (L, channels)
    except OSError as error:
        raise AudioFileError(path, f"unreadable ({error.strerror})") from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise AudioFileError(path, f"not audio that soundfile can read ({reason})") from error
    return frames.mean(axis=1), file_rate


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Change the sample rate by windowed-sinc interpolation with a Kaiser window (torchaudio).

    Args:
        waveform: float32, shape (..., length).
        from_rate: its rate in Hz.
        to_rate: rate of the result in Hz.

    Returns:
        float32, shape (..., ceil(length * to_rate / from_rate)).

    Raises:
        UserError: torchaudio cannot be imported.
    """
    if from_rate == to_rate:
        return waveform
    torchaudio = import_torchaudio(
        f"resampling from {from_rate} Hz to {to_rate} Hz", f"give recordings that are at {to_rate} Hz already"
    )
    # A long filter with a cut-off close to Nyquist: the model reproduces artifacts of its training data, and each
    # recording is resampled only once.
    resampled = torchaudio.functional.resample(
        torch.from_numpy(waveform),
        from_rate,
        to_rate,
        lowpass_filter_width=64,
        rolloff=0.945,
        resampling_method="sinc_interp_kaiser",
        beta=14.77,
    )
    return resampled.numpy()


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
        raise UserError(f"cannot write {path}: the waveform has non-finite samples (NaN or infinity)")
    clip_ratio = float((np.abs(samples) > 1).mean())
    pcm = np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm.T, sample_rate, subtype="PCM_16", format="WAV")
    with writing(str(path)):
        # Not by soundfile: libsndfile reports no error if the disk is full.
        Path(path).write_bytes(encoded.getvalue())
    return clip_ratio


def import_torchaudio(purpose: str, alternative: str) -> ModuleType:
    """Import torchaudio; only at its use, because its published builds cannot be imported with a CPU-only torch.

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
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}). Install a torchaudio built for this torch "
            f"(for a CPU-only one: pip install torchaudio --index-url https://download.pytorch.org/whl/cpu), "
            f"or {alternative}."
        ) from error
    return torchaudio
