"""PANNs (Kong et al. 2020, arXiv 1912.10211): the 14-layer network for audio tagging, Cnn14."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.extractors.interface import NamedExtractor
from sashimi_evaluation.extractors.weights import fingerprint_of, load_weights, read_weights, shape_of

VERSION = 1  # increase it whenever the same weights give other features
_RATES = {256: 8000, 512: 16000, 1024: 32000}  # sample rate in Hz by the size of the window in samples
_BLOCKS = 6
_SHORTEST = 2 ** (_BLOCKS - 1)  # frames that the pools reduce to one
_SMALLEST = 1e-10  # power below which the level is constant
_STFT, _MEL = "spectrogram_extractor.stft.conv_real.weight", "logmel_extractor.melW"
_WHAT = "Cnn14"


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)))


class Cnn14(nn.Module):
    """The embedding of Cnn14, the input of its last layer. The layers have the names of the published weights.

    Args:
        channels: channels of the six blocks; published: 64, 128, 256, 512, 1024, 2048.
        width: size of the embedding; published: 2048.
        window: samples of a window of the spectrogram: 1024 at 32 kHz, 512 at 16 kHz, 256 at 8 kHz.
        filters: the mel filters, float32 (window // 2 + 1, bands); the published weights contain them.
    """

    filters: Tensor

    def __init__(self, channels: tuple[int, ...], width: int, window: int, filters: Tensor) -> None:
        super().__init__()
        self.window, self.hop = window, _RATES[window] // 100
        self.register_buffer("filters", filters, persistent=False)
        self.bn0 = nn.BatchNorm2d(filters.shape[1])
        for number, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), start=1):
            self.add_module(f"conv_block{number}", _Block(inputs, outputs))
        self.fc1 = nn.Linear(channels[-1], width)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, L) to embeddings (B, width). Those shorter than 0.32 s are padded with zeros."""
        padded = F.pad(waveform, (0, max(0, _SHORTEST * self.hop - waveform.shape[1])))
        # (B, 1, frames, bands); the first norm is one of the bands
        hidden = self.bn0(self.levels(padded).transpose(1, 2)[..., None]).permute(0, 3, 2, 1)
        for number in range(1, _BLOCKS + 1):
            hidden = self.get_submodule(f"conv_block{number}")(hidden)
            hidden = F.avg_pool2d(hidden, 2) if number < _BLOCKS else hidden
        over_bands = hidden.mean(dim=3)
        return F.relu(self.fc1(over_bands.amax(dim=2) + over_bands.mean(dim=2)))

    def levels(self, waveform: Tensor) -> Tensor:
        """Return the levels of the mel bands of waveforms (B, L) in dB, (B, frames, bands)."""
        window = torch.hann_window(self.window, device=waveform.device)
        spectrum = torch.stft(
            waveform, self.window, self.hop, window=window, center=True, pad_mode="reflect", return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=_SMALLEST))


def load_panns(path: Path, device: str | torch.device = "cpu") -> NamedExtractor:
    """Load Cnn14 from a file of weights; nothing is downloaded.

    Args:
        path: the published file, or its state dict; the sizes are read from the tensors.
        device: device of the network.

    Raises:
        UserError: the file cannot be used, or has other weights.
    """
    tensors = read_weights(path)
    window = shape_of(tensors, _STFT, 3, path, _WHAT)[2]
    if window not in _RATES:
        raise UserError(
            f"{printable(path)} has windows of {window} samples: expected Cnn14 at 8, 16 or 32 kHz, with 256, 512 or "
            "1024 samples"
        )
    bins, bands = shape_of(tensors, _MEL, 2, path, _WHAT)
    if bins != window // 2 + 1 or bands < _SHORTEST:
        raise UserError(f"{printable(path)} does not fit {_WHAT}: misshapen {_MEL} {(bins, bands)}")
    names = [f"conv_block{number}.conv1.weight" for number in range(1, _BLOCKS + 1)]
    channels = tuple(shape_of(tensors, name, 4, path, _WHAT)[0] for name in names)
    width = shape_of(tensors, "fc1.weight", 2, path, _WHAT)[0]
    filters = tensors[_MEL].float()
    with torch.device("meta"):
        network = Cnn14(channels, width, window, filters)
    load_weights(network, tensors, path, _WHAT, ["spectrogram_extractor.", "logmel_extractor.", "fc_audioset."])
    hashed = {**network.state_dict(), "filters": filters}
    fingerprint = fingerprint_of(hashed, {"network": "cnn14", "version": VERSION, "window": window})
    return NamedExtractor(network, "panns", _RATES[window], 1.0, fingerprint, device)
