"""Waveforms from mel spectrograms without a network, from which a vocoder can begin."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.data.audio import import_torchaudio
from sashimi_diffusion.data.mel import BLOCK_FRAMES, LogMel
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.windows import equal_windows

_ITERATIONS = 32
_OVERLAP_FRAMES = 32


def griffin_lim(transform: LogMel, mel: Tensor) -> Tensor:
    """Return waveforms that have approximately the given log-mel spectrograms.

    The algorithm is the fast form (Perraudin et al. 2013) of that of Griffin and Lim (1984). The spectra are the
    least-squares solution for the levels of the bands. Their phases begin at zero, so the result is always the same.
    Long spectrograms are processed in overlapping blocks of 4,096 frames.

    Args:
        transform: transform that computes the spectrograms.
        mel: log-mel spectrograms, (B, n_mels, frames).

    Returns:
        float32, shape (B, 1, frames · hop), on the device of ``mel``.

    Raises:
        UserError: a window is shorter than two hops.
    """
    if len(transform.window) < 2 * transform.hop:
        raise UserError(
            f"Griffin-Lim needs mel windows of at least two hops ({2 * transform.hop} samples), got "
            f"{len(transform.window)}: leave strength out"
        )
    transform = transform.to(mel.device)
    hop, frames = transform.hop, mel.shape[-1]
    windows = equal_windows(frames * hop, BLOCK_FRAMES * hop, _OVERLAP_FRAMES * hop, hop, batch=1)
    padded = F.pad(mel.float(), (0, windows.length // hop - frames), mode="replicate")
    inverse = torch.linalg.pinv(transform.bands)  # (n_fft // 2 + 1, n_mels)

    def inverted(_sample: Tensor, _timestep: Tensor, block: Tensor) -> Tensor:
        return _block(transform, inverse, block)

    waveforms = windows.predict(inverted, padded.new_zeros(len(mel), 1, windows.length), torch.tensor(0), padded)
    return waveforms[..., : frames * hop]


def _block(transform: LogMel, inverse: Tensor, mel: Tensor) -> Tensor:
    """Return the waveforms (B, 1, frames · hop) of a block of frames."""
    torchaudio = import_torchaudio("Griffin-Lim", "leave strength out")
    settings, hop, n_fft = transform.settings, transform.hop, transform.n_fft
    # torchaudio's frames have their centers at multiples of the hop, and the waveform ends with the center of the last.
    # It must be longer than half of a transform.
    more = n_fft // (2 * hop) + 1
    padded = F.pad(mel, (more, more), mode="replicate")
    spectra = (inverse @ (padded / settings.unit).exp()).clamp(min=0)
    waveforms = torchaudio.functional.griffinlim(
        spectra,
        transform.window,
        n_fft,
        hop,
        win_length=len(transform.window),
        power=settings.power,
        n_iter=_ITERATIONS,
        momentum=0.99,
        length=None,
        rand_init=False,
    )
    first = more * hop - (n_fft // 2 - transform.padding[0])
    return waveforms[:, None, first : first + mel.shape[-1] * hop]
