"""Tests of sampling and the training loss of a converted network, with the noise of the official code."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.interop.diffwave import convert_diffwave
from sashimi_diffusion.pipelines import SashimiPipeline, sashimi
from sashimi_diffusion.schedulers import DiffWaveScheduler, diffwave

FAST = [1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.5]
SCHEDULES = {
    "T8": {"num_train_timesteps": 8, "beta_end": 0.05},
    "T200": {"num_train_timesteps": 200, "beta_end": 0.02},
    "fast6": {"num_train_timesteps": 6, "trained_betas": FAST},
}


@pytest.mark.parametrize("stored", [True, False], ids=["stored-nodes", "exact-nodes"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sampling_matches(official: Callable, monkeypatch: pytest.MonkeyPatch, schedule: str, stored: bool) -> None:
    network = official("e_sampling/ckpt", full=schedule == "T200")
    noise = network.tensors[f"in.{schedule}.noise"]  # (T, B, 1, L): x_T, then the noise of each step
    expected = network.tensors[f"out64.{schedule}.x0"]
    draws = iter(noise)

    def next_noise(shape: tuple, *_: object) -> Tensor:
        drawn = next(draws)
        assert drawn.shape == torch.Size(shape)
        return drawn

    for module in (diffwave, sashimi):
        monkeypatch.setattr(module, "draw_noise", next_noise)
    model = network.convert(stored_nodes=stored).model
    pipe = SashimiPipeline(model, DiffWaveScheduler(**SCHEDULES[schedule]))
    pipe.set_progress_bar_config(disable=True)
    audio = pipe(batch_size=noise.shape[1], output_type="pt").audios
    assert next(draws, None) is None
    assert (audio - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("schedule", ["T8", "T200", "fast6", "vocoder_T50"])
def test_schedule_matches(official: Callable, schedule: str) -> None:
    tensors = official("e_sampling/ckpt").tensors
    config = {**SCHEDULES, "vocoder_T50": {"num_train_timesteps": 50, "beta_end": 0.05}}[schedule]
    scheduler = DiffWaveScheduler(**config)
    torch.testing.assert_close(scheduler.betas, tensors[f"sched.{schedule}.Beta"], rtol=1e-6, atol=0)
    torch.testing.assert_close(scheduler.alphas, tensors[f"sched.{schedule}.Alpha"], rtol=1e-6, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, tensors[f"sched.{schedule}.Alpha_bar"], rtol=1e-6, atol=0)


def test_training_loss_and_gradients_match(official: Callable) -> None:
    network = official("e_sampling/ckpt")
    tensors = network.tensors
    model = network.convert(stored_nodes=True).model.train()
    scheduler = DiffWaveScheduler(num_train_timesteps=200, beta_end=0.02)
    audio, z, steps = tensors["in.loss.audio"], tensors["in.loss.z"], tensors["in.loss.steps"].flatten()
    prediction = model(scheduler.add_noise(audio, z, steps), steps).sample
    loss = torch.nn.functional.mse_loss(prediction, z)
    torch.testing.assert_close(loss, tensors["out.loss"].squeeze(), rtol=1e-5, atol=0)
    loss.backward()
    # The conversion renames the official gradients; 2^100 where the file has none.
    gradients = {
        name: tensors.get(f"grad.{name}", torch.full_like(value, 2.0**100)) for name, value in network.state.items()
    }
    expected, compared = convert_diffwave(gradients).model, 0
    for (name, parameter), official_gradient in zip(model.named_parameters(), expected.parameters(), strict=True):
        known = official_gradient != 2.0**100
        if known.any():
            scale = official_gradient[known].abs().max()
            # The gradient of the direction of a one-element vector is only rounding, hence the absolute tolerance.
            assert (parameter.grad - official_gradient)[known].abs().max() < 1e-4 * scale + 1e-8, name
            compared += int(known.sum())
    assert compared == sum(value.numel() for name, value in tensors.items() if name.startswith("grad."))
