"""Estimates of bits per sample, and the requests for them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood.flow_ode import NOT_FINITE
from sashimi_diffusion.pipelines.arrays import given_tensor
from sashimi_diffusion.pipelines.labels import Labels, known_labels, label_conditioning


@dataclass(frozen=True)
class BitsPerSample:
    """Bits per sample of waveforms, averaged over channels and samples.

    Args:
        bits: estimate for each waveform, float64 (B,).
        standard_error: its standard error, float64 (B,): over the draws; over the probes of Hutchinson if there is only
            one draw; 0 if nothing was drawn; NaN if there is only one of everything.
        evaluations: evaluations of the network for each waveform, over all draws.
    """

    bits: Tensor
    standard_error: Tensor
    evaluations: int


def estimate_from(nats: Tensor, samples: int, evaluations: int) -> BitsPerSample:
    """Return the estimate from the negative log-likelihoods of all draws and probes.

    Args:
        nats: float64 (draws, probes, B).
        samples: number of samples of a waveform, over all channels.
        evaluations: see :class:`BitsPerSample`.

    Raises:
        UserError: an estimate is not finite.
    """
    bits = nats.double().cpu() / (samples * math.log(2))
    if not bits.isfinite().all():
        raise UserError(NOT_FINITE)
    own = bits.mean(dim=1) if len(bits) > 1 else bits[0]
    error = own.std(dim=0) / math.sqrt(len(own)) if len(own) > 1 else torch.full_like(own[0], math.nan)
    return BitsPerSample(own.mean(dim=0), error, evaluations)


def checked_audio(audio: np.ndarray | Tensor, channels: int, multiple: int) -> Tensor:
    """Return waveforms, float64 (B, C, L).

    Args:
        audio: floating-point numbers with full scale 1, (L,), (B, L) or (B, C, L).
        channels: channels of the model.
        multiple: the length must be a multiple of it.

    Raises:
        UserError: other numbers, another shape or length, or numbers that are not finite.
    """
    given = given_tensor("audio", audio, "recordings with full scale 1")
    if not given.is_floating_point():
        raise UserError(
            f"audio has numbers of {str(given.dtype).removeprefix('torch.')}: expected floating-point numbers with "
            "full scale 1; divide 16-bit integers by 32768"
        )
    waveform = given.double()
    if waveform.ndim in (1, 2):
        waveform = waveform.reshape(-1, 1, waveform.shape[-1])
    if waveform.ndim != 3 or waveform.shape[1] != channels or not waveform.numel():
        raise UserError(f"audio has shape {tuple(given.shape)}, expected (B, {channels}, L)")
    if waveform.shape[-1] % multiple:
        fitting = waveform.shape[-1] // multiple * multiple
        raise UserError(
            f"audio has {waveform.shape[-1]} samples, but this model needs a multiple of {multiple}: "
            + (f"cut it to {fitting}" if fitting else f"pad it to {multiple}")
        )
    if not waveform.isfinite().all():
        raise UserError("audio has samples that are not finite (NaN or infinity)")
    return waveform


def required_labels(
    config: Any, class_labels: Labels | None, speaker_labels: Labels | None, batch_size: int
) -> dict[str, Tensor]:
    """Return the label arguments of the model; unlike in sampling, no label has a default.

    Raises:
        UserError: labels that the model has are missing, or an error of
            :func:`~sashimi_diffusion.pipelines.labels.label_conditioning`.
    """
    for kind, given in (("class", class_labels), ("speaker", speaker_labels)):
        known = known_labels(config, kind)
        if known is not None and given is None:
            raise UserError(
                f"the likelihood under this model depends on the {kind}: give {kind}_labels ({known.choices}; "
                f"{known.count} for none)"
            )
    return label_conditioning(config, class_labels, speaker_labels, batch_size)
