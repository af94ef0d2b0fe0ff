"""The map between waveforms and what the diffusion sees of them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.data.pre_emphasis import de_emphasize, pre_emphasize
from sashimi_diffusion.pipelines.mel import log_mel


def normalized(waveforms: Tensor, config: Mapping[str, Any], mel: Tensor | None = None) -> Tensor:
    """Return waveforms as the diffusion sees them, as ``Denoiser.normalize`` does for denoisers of this package.

    Args:
        waveforms: (B, C, L).
        config: config of the model.
        mel: log-mel spectrograms of a vocoder, (B, mel_channels, frames), which a model with ``mel_whitening`` needs.
    """
    if mel is not None and config.get("mel_whitening", False):
        waveforms = MelEnvelope(log_mel(config)).to(waveforms.device).whiten(waveforms, mel)
    return pre_emphasize(waveforms, config.get("pre_emphasis", 0.0)) / config["waveform_std"]


def denormalized(latents: Tensor, config: Mapping[str, Any], mel: Tensor | None = None) -> Tensor:
    """Return the waveforms of what the diffusion sees, the inverse of :func:`normalized`; arguments as there."""
    # A denoiser of another package need not know pre-emphasis.
    waveforms = de_emphasize(latents * config["waveform_std"], config.get("pre_emphasis", 0.0))
    if mel is not None and config.get("mel_whitening", False):
        waveforms = MelEnvelope(log_mel(config)).to(waveforms.device).color(waveforms, mel)
    return waveforms
