"""VGGish (Hershey et al. 2017, arXiv 1609.09430): the network of the first Fréchet audio distances."""

import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_evaluation.extractors.interface import NamedExtractor
from sashimi_evaluation.extractors.weights import fingerprint_of, load_weights, read_weights, shape_of

VERSION = 1  # increase it whenever the same weights give other features
RATE = 16000
_WINDOW, _FFT, _HOP = 400, 512, 160  # samples
_BANDS, _LOW, _HIGH = 64, 125.0, 7500.0  # mel bands, and the frequencies in Hz between which they lie
_OFFSET = 0.01  # added before the logarithm
_FRAMES = 96  # of one patch
PATCH = (_FRAMES - 1) * _HOP + _WINDOW
"""Samples that one patch needs: 0.975 seconds."""
_CONVOLUTIONS = (0, 3, 6, 8, 11, 13)  # positions of the convolutions among the layers
_POOLED = (0, 1, 3, 5)  # numbers of the convolutions before a pool
_LINEAR = (0, 2, 4)
_WHAT = "VGGish"


class VGGish(nn.Module):
    """Mean of the embeddings of the patches of 0.96 s of a waveform, before the last activation.

    The layers have the names and positions of the published weights for PyTorch.

    Args:
        channels: output channels of the six convolutions; published: 64, 128, 256, 256, 512, 512.
        widths: sizes of the three linear layers; published: 4096, 4096, 128.
    """

    def __init__(self, channels: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number in _POOLED else []
        self.features = nn.Sequential(*layers)
        first, second, last = widths
        pooled = channels[-1] * (_FRAMES // 16) * (_BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(pooled, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, last)
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, L) at 16 kHz to features (B, D). Shorter ones than a patch are padded with zeros."""
        levels = log_mel(F.pad(waveform, (0, max(0, PATCH - waveform.shape[1]))))
        patches = levels.shape[1] // _FRAMES
        inputs = levels[:, : patches * _FRAMES].reshape(-1, 1, _FRAMES, _BANDS)
        hidden = self.features(inputs).permute(0, 2, 3, 1)  # the published weights expect the channels last
        return self.embeddings(hidden.flatten(1)).unflatten(0, (-1, patches)).mean(dim=1)


def log_mel(waveform: Tensor) -> Tensor:
    """Return the logarithm of the mel magnitudes of waveforms (B, L) at 16 kHz, (B, frames, 64), without padding."""
    frames = waveform.unfold(-1, _WINDOW, _HOP) * torch.hann_window(_WINDOW, device=waveform.device)
    magnitudes = torch.fft.rfft(frames, _FFT).abs()
    return torch.log(magnitudes @ _mel_filters().to(waveform.device) + _OFFSET)


@functools.cache
def _mel_filters() -> Tensor:
    """Return filters that are triangles on the mel scale 1127 log(1 + f / 700), float32 (257, 64)."""
    mels = 1127 * np.log1p(np.linspace(0, RATE / 2, _FFT // 2 + 1) / 700)[:, None]
    edges = np.linspace(1127 * np.log1p(_LOW / 700), 1127 * np.log1p(_HIGH / 700), _BANDS + 2)
    rising = (mels - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mels) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[0] = 0
    return torch.from_numpy(filters.astype(np.float32))


def load_vggish(path: Path, device: str | torch.device = "cpu") -> NamedExtractor:
    """Load VGGish from a file of weights; nothing is downloaded.

    Args:
        path: a state dict with ``features.N.weight`` and ``embeddings.N.weight``. Parameters of the principal component
            analysis (``pproc.``) are not used.
        device: device of the network.

    Raises:
        UserError: the file cannot be used, or has other weights.
    """
    tensors = read_weights(path)
    channels = tuple(shape_of(tensors, f"features.{number}.weight", 4, path, _WHAT)[0] for number in _CONVOLUTIONS)
    widths = tuple(shape_of(tensors, f"embeddings.{number}.weight", 2, path, _WHAT)[0] for number in _LINEAR)
    with torch.device("meta"):
        network = VGGish(channels, widths)
    load_weights(network, tensors, path, _WHAT, unused=["pproc."])
    fingerprint = fingerprint_of(network.state_dict(), {"network": "vggish", "version": VERSION})
    return NamedExtractor(network, "vggish", RATE, PATCH / RATE, fingerprint, device)
