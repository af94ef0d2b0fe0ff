"""The diffusion loss: mean square error of the predicted noise or velocity, optionally Min-SNR weighted."""

import torch
from torch import Tensor

from sashimi_diffusion.training.diffusion.batches import Batch


def diffusion_losses(model, scheduler, batch: Batch, min_snr_gamma: float | None = None) -> Tensor:
    """The loss of each example, DDPM equation 14 (Ho et al. 2020) with the weights of Min-SNR (arXiv 2303.09556).

    Args:
        model: a denoiser, called as ``model(noisy, timesteps, class_labels=, mel=, speaker_labels=)``.
        scheduler: has ``add_noise``, ``get_velocity``, ``alphas_cumprod`` and ``config.prediction_type``.
        batch: examples with their noise and timesteps.
        min_snr_gamma: gamma; None: no weighting.

    Returns:
        Tensor: losses, shape (B,), float32.
    """
    noisy = scheduler.add_noise(batch.waveform, batch.noise, batch.timesteps)  # (B, 1, L)
    told = {"class_labels": batch.labels, "mel": batch.mel, "speaker_labels": batch.speakers}
    prediction = model(noisy, batch.timesteps, **told, return_dict=False)[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(batch.waveform, batch.noise, batch.timesteps) if velocity else batch.noise
    losses = (prediction.float() - target).square().mean(dim=(1, 2))  # (B,)
    if min_snr_gamma is None:
        return losses
    alphas_cumprod = scheduler.alphas_cumprod.to(losses.device)[batch.timesteps]
    return losses * min_snr_weights(alphas_cumprod, min_snr_gamma, velocity)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, velocity: bool) -> Tensor:
    """Min-SNR weights of the noise loss, min(SNR, gamma)/SNR, or of the velocity loss, min(SNR, gamma)/(SNR + 1).

    Written in terms of abar = alphas_cumprod, SNR = abar/(1 - abar), so that abar = 0 and abar = 1 stay finite.

    Args:
        alphas_cumprod: abar of each example's timestep, shape (B,).
    """
    noise_power = 1 - alphas_cumprod
    if velocity:
        return torch.minimum(alphas_cumprod, gamma * noise_power)
    return torch.where(alphas_cumprod > gamma * noise_power, gamma * noise_power / alphas_cumprod, 1.0)
