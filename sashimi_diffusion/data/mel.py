"""The log-mel spectrogram that conditions DiffWave's vocoders, and the conventions that such spectrograms follow."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sashimi_diffusion.arguments import Range, check_arguments, short_form
from sashimi_diffusion.data.audio import import_torchaudio
from sashimi_diffusion.errors import UserError

MAX_WINDOW = 1 << 20
"""The matrix of the mel bands has a row of this length for each band."""
CHOICES: dict[str, tuple[object, ...]] = {
    "mel_scale": ("slaney", "htk"),
    "norm": ("slaney", None),
    "power": (1, 2),
    "log": ("natural", "log10", "db"),
    "padding": ("center", "hop"),
}
"""The values of those settings that name a convention."""
_WINDOW, _HERTZ = Range(2, MAX_WINDOW), Range(0, 10_000_000)
_RANGES = {"n_fft": _WINDOW, "win_length": _WINDOW, "f_min": _HERTZ, "f_max": _HERTZ, "floor": Range(1e-30, 1.0)}
BLOCK_FRAMES = 4096  # limits the memory of spectra of long waveforms
_BEYOND = 50.0  # a mel that another network predicts may leave the range of recordings by less than this factor


@dataclass(frozen=True)
class MelSettings:
    """How a log-mel spectrogram is computed, besides the sample rate, the hop and the number of bands.

    The defaults are those of the published LJSpeech vocoders (DiffWave, arXiv 2009.09761, section 5.1).

    Args:
        n_fft: samples in a Fourier transform.
        win_length: samples in the window, a periodic Hann window in the center of the transform; None is ``n_fft``.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.
        mel_scale: ``"slaney"`` (linear below 1 kHz) or ``"htk"`` (2595 log10(1 + f / 700)).
        norm: ``"slaney"`` for bands of unit area, or None for bands with the peak 1.
        power: 1 for bands of magnitudes, 2 for bands of power.
        log: ``"natural"``, ``"log10"``, or ``"db"``, which is 20 log10 of magnitudes and 10 log10 of power.
        floor: smaller values of the bands are replaced by this one, so that the logarithm of silence is finite.
        padding: ``"center"`` reflects ``n_fft // 2`` samples at both ends, for 1 + L // hop frames; ``"hop"`` reflects
            ``n_fft - hop`` samples in total, for L // hop frames.

    Raises:
        UserError: a value has another type or is out of its range.
    """

    n_fft: int = 1024
    win_length: int | None = None
    f_min: float = 0.0
    f_max: float = 8000.0
    mel_scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    power: Literal[1, 2] = 1
    log: Literal["natural", "log10", "db"] = "natural"
    floor: float = 1e-5
    padding: Literal["center", "hop"] = "center"

    def __post_init__(self) -> None:
        check_arguments(type(self).__init__, asdict(self), _RANGES)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or value not in choices:
                expected = " or ".join("null" if choice is None else repr(choice) for choice in choices)
                raise UserError(f"{name} is {short_form(value)}: expected {expected}")
        if self.win_length is not None and self.win_length > self.n_fft:
            raise UserError(f"win_length is {self.win_length}: expected at most n_fft={self.n_fft}")

    @classmethod
    def of(cls, settings: Any) -> "MelSettings":
        """Return the settings in a mapping; None is an empty one.

        Raises:
            UserError: it is no mapping, or has an unknown key or an invalid value.
        """
        settings = {} if settings is None else settings
        names = [field.name for field in fields(cls)]
        if not isinstance(settings, Mapping):
            raise UserError(
                f"mel_settings is {short_form(settings)}: expected a mapping with some of {', '.join(names)}"
            )
        unknown = next((key for key in settings if key not in names), None)
        if unknown is not None:
            raise UserError(f"mel_settings has {short_form(unknown)}: expected some of {', '.join(names)}")
        try:
            return cls(**settings)
        except UserError as error:
            raise UserError(f"mel_settings: {error}") from error

    def check(self, sample_rate: int, hop: int) -> None:
        """Check that these settings fit a sample rate in Hz and a hop in samples.

        Raises:
            UserError: a band would be above half the sample rate, or a hop is longer than the window that it needs.
        """
        if not self.f_min < self.f_max <= sample_rate / 2:
            raise UserError(
                f"mel bands from {self.f_min:g} to {self.f_max:g} Hz need 0 <= f_min < f_max <= {sample_rate / 2:g} "
                f"Hz, half the sample rate of {sample_rate} Hz"
            )
        if self.padding == "hop" and self.n_fft < hop:
            raise UserError(f"padding 'hop' needs an n_fft of at least the hop, {hop} samples, got {self.n_fft}")

    @property
    def unit(self) -> float:
        """The factor from natural logarithms to the unit of the spectrogram."""
        return {"natural": 1.0, "log10": 1 / math.log(10), "db": 20 / self.power / math.log(10)}[self.log]

    @property
    def limits(self) -> tuple[float, float]:
        """The range of a log-mel spectrogram of audio within [-1, 1], wider by a factor of 50 at both ends."""
        loudest = (self.n_fft / 2) ** self.power * (1 if self.norm else self.n_fft)
        return math.log(self.floor / _BEYOND) * self.unit, math.log(loudest * _BEYOND) * self.unit


class LogMel(nn.Module):
    """Log-mel spectrogram, ``log(max(M |STFT(x)|^power, floor))`` with the matrix M of the mel bands.

    Args:
        sample_rate: sample rate of the waveforms in Hz.
        n_fft: samples in a Fourier transform.
        hop: samples between two frames.
        n_mels: number of mel bands.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.
        **conventions: the other settings, see :class:`MelSettings`.

    Raises:
        UserError: torchaudio, which computes the bands, cannot be imported, or settings are impossible.

    Attributes:
        settings: the settings besides the sample rate, the hop and the number of bands.
    """

    bands: Tensor
    window: Tensor

    def __init__(
        self,
        sample_rate: int = 22050,
        n_fft: int = 1024,
        hop: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        **conventions: Any,
    ) -> None:
        super().__init__()
        self.settings = MelSettings.of({"n_fft": n_fft, "f_min": f_min, "f_max": f_max, **conventions})
        self.settings.check(sample_rate, hop)
        torchaudio = import_torchaudio("a mel spectrogram", "use a model that is not conditioned on mels")
        bands = torchaudio.functional.melscale_fbanks(
            *(n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate),
            norm=self.settings.norm,
            mel_scale=self.settings.mel_scale,
        )
        self.n_fft = n_fft
        self.hop = hop
        self.register_buffer("bands", bands.T.contiguous(), persistent=False)  # (n_mels, n_fft // 2 + 1)
        window = torch.hann_window(self.settings.win_length or n_fft)
        self.register_buffer("window", window, persistent=False)  # (win_length,)

    @property
    def shortest(self) -> int:
        """The smallest number of samples of a waveform."""
        return max(self.padding) + 1

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the log-mel spectrogram.

        Args:
            waveform: float32, shape (B, L) or (B, 1, L), with L at least ``shortest``.

        Returns:
            float32, shape (B, n_mels, frames), with 1 + L // hop frames, or L // hop for the padding ``"hop"``.

        Raises:
            UserError: the waveform has another shape or is too short.
        """
        if waveform.ndim == 3 and waveform.shape[1] == 1:
            waveform = waveform[:, 0]
        if waveform.ndim != 2:
            raise UserError(f"expected waveforms of shape (batch, length) or (batch, 1, length), got {waveform.shape}")
        if waveform.shape[-1] < self.shortest:
            raise UserError(f"a mel needs more than {self.shortest - 1} samples, got {waveform.shape[-1]}")
        padded = nn.functional.pad(waveform[:, None], self.padding, mode="reflect")[:, 0]
        frames = 1 + (padded.shape[-1] - self.n_fft) // self.hop
        blocks = [
            self._levels(padded[:, first * self.hop : (min(first + BLOCK_FRAMES, frames) - 1) * self.hop + self.n_fft])
            for first in range(0, frames, BLOCK_FRAMES)
        ]
        return torch.cat(blocks, dim=-1).clamp(min=self.settings.floor).log() * self.settings.unit

    def _levels(self, padded: Tensor) -> Tensor:
        """Return the level of each band in all frames of a waveform (B, L), (B, n_mels, frames)."""
        spectrum = torch.stft(
            padded,
            self.n_fft,
            hop_length=self.hop,
            win_length=len(self.window),
            window=self.window,
            center=False,
            return_complex=True,
        )  # (B, n_fft // 2 + 1, frames)
        return self.bands @ (spectrum.abs() if self.settings.power == 1 else spectrum.abs().square())

    @property
    def padding(self) -> tuple[int, int]:
        """Samples by which a waveform is reflected at its beginning and its end."""
        if self.settings.padding == "center":
            return self.n_fft // 2, self.n_fft // 2
        total = self.n_fft - self.hop
        return total // 2, total - total // 2
