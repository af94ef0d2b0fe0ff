"""Tests of the diffusion loss and its weights against their formulas."""

import pytest
import torch

from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler
from sashimi_diffusion.training.diffusion.batches import Batch
from sashimi_diffusion.training.diffusion.task import diffusion_losses, min_snr_weights


def make_batch(count=6, length=16):
    generator = torch.Generator().manual_seed(0)
    waveform, noise = torch.randn(2, count, 1, length, generator=generator)
    return Batch(waveform, noise, torch.arange(count) * 30, None, None)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_mean_square_error_of_the_prediction(prediction_type):
    scheduler, batch = DiffWaveScheduler(prediction_type=prediction_type), make_batch()
    abar = scheduler.alphas_cumprod[batch.timesteps, None, None]
    target = (
        batch.noise if prediction_type == "epsilon" else abar.sqrt() * batch.noise - (1 - abar).sqrt() * batch.waveform
    )

    def network(noisy, timesteps, class_labels, mel, speaker_labels, return_dict):
        assert torch.allclose(noisy, abar.sqrt() * batch.waveform + (1 - abar).sqrt() * batch.noise, atol=1e-6)
        assert torch.equal(timesteps, batch.timesteps)
        return (target,)

    assert diffusion_losses(network, scheduler, batch).max() < 1e-10
    losses = diffusion_losses(lambda *args, **kwargs: (torch.zeros(6, 1, 16),), scheduler, batch)
    assert torch.allclose(losses, target.square().mean((1, 2)), atol=1e-5)


@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_weights(velocity):
    abar = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    snr = abar / (1 - abar)
    expected = snr.clamp(max=5) / (snr + 1 if velocity else snr)
    assert torch.allclose(min_snr_weights(abar, 5.0, velocity), expected)


@pytest.mark.parametrize("velocity", [False, True])
def test_min_snr_weights_at_the_ends(velocity):
    weights = min_snr_weights(torch.tensor([0.0, 1.0]), 5.0, velocity)
    assert weights.tolist() == ([0, 0] if velocity else [1, 0])


def test_the_network_receives_the_labels_of_the_batch():
    batch, received = make_batch(), {}
    batch.labels, batch.speakers = torch.arange(6), torch.arange(6, 12)

    def network(noisy, timesteps, return_dict, **labels):
        received.update(labels)
        return (noisy,)

    diffusion_losses(network, DiffWaveScheduler(), batch)
    assert received == {"class_labels": batch.labels, "speaker_labels": batch.speakers, "mel": None}


def test_weights_are_applied_per_example():
    scheduler, batch = DiffWaveScheduler(), make_batch()
    plain = diffusion_losses(lambda *args, **kwargs: (torch.zeros(6, 1, 16),), scheduler, batch)
    weighted = diffusion_losses(lambda *args, **kwargs: (torch.zeros(6, 1, 16),), scheduler, batch, 5.0)
    expected = min_snr_weights(scheduler.alphas_cumprod[batch.timesteps], 5.0, False)
    assert torch.allclose(weighted / plain, expected)
    assert expected.min() < 0.1
