"""Sound and pictures as data URIs, which a page carries inside itself."""

import base64
import io

import numpy as np
import soundfile

from sashimi_diffusion.data.pictures import spectrogram_image


def data_uri(content: bytes, kind: str) -> str:
    """``content`` as a URI of the MIME type ``kind``."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def audio_uri(waveform: np.ndarray, sample_rate: int) -> str:
    """A clip as 16-bit FLAC: every current browser plays it, nothing is lost, and it is never much larger than a wav.

    Args:
        waveform: real, shape (length,); clamped to [-1, 1], non-finite samples become zero.
        sample_rate: in Hz.
    """
    samples = np.nan_to_num(np.asarray(waveform, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    pcm = np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm, sample_rate, subtype="PCM_16", format="FLAC")
    return data_uri(encoded.getvalue(), "audio/flac")


def spectrogram_uri(waveform: np.ndarray, sample_rate: int, width: int, height: int) -> str:
    """The spectrogram of a clip as a WebP picture of ``width`` by ``height`` pixels."""
    encoded = io.BytesIO()
    spectrogram_image(waveform, sample_rate, width, height).save(encoded, format="WEBP", quality=70)
    return data_uri(encoded.getvalue(), "image/webp")
