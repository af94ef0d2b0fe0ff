"""Audio and images as data URIs, which a page embeds instead of links to files."""

import base64
import io

import numpy as np
import soundfile

from sashimi_diffusion.data.pictures import spectrogram_image
from sashimi_evaluation.html import playable


def data_uri(content: bytes, media_type: str) -> str:
    """Return ``content`` as a data URI of ``media_type``, for example "audio/flac"."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def audio_uri(waveform: np.ndarray, sample_rate: int) -> str:
    """Return a clip as 16-bit FLAC, which every current browser plays. It is lossless at the rates that they play.

    Args:
        waveform: real, shape (length,); clamped to [-1, 1], non-finite samples become zero.
        sample_rate: in Hz.
    """
    finite = np.nan_to_num(waveform.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    samples, sample_rate = playable(finite, sample_rate)
    pcm = np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    encoded = io.BytesIO()
    soundfile.write(encoded, pcm, sample_rate, subtype="PCM_16", format="FLAC")
    return data_uri(encoded.getvalue(), "audio/flac")


def spectrogram_uri(waveform: np.ndarray, sample_rate: int, width: int, height: int) -> str:
    """Return the spectrogram of a clip as a WebP image of ``width`` by ``height`` pixels."""
    encoded = io.BytesIO()
    spectrogram_image(waveform, sample_rate, width, height).save(encoded, format="WEBP", quality=70)
    return data_uri(encoded.getvalue(), "image/webp")
