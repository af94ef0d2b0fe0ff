"""Tests of the noise paths of all training objectives."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    IPNDMScheduler,
)

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.schedulers.noise_paths import (
    even_levels,
    noise_path,
    objective_of,
    signal_and_deviation,
)

COSINE = {"beta_schedule": "squaredcos_cap_v2"}
ALL: dict[str, Any] = {
    "diffwave": DiffWaveScheduler(),
    "diffwave, v": DiffWaveScheduler(prediction_type="v_prediction"),
    "cosine": DiffWaveScheduler(**COSINE),
    "cosine, v": DiffWaveScheduler(prediction_type="v_prediction", **COSINE),
    "ddim": DDIMScheduler(200, prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(200),
    "flow, heun": FlowMatchHeunDiscreteScheduler(200),
    "edm": EDMEulerScheduler(sigma_data=1.0),
    "edm of other data": EDMEulerScheduler(sigma_data=0.4),
    "edm, v": EDMEulerScheduler(sigma_data=0.4, prediction_type="v_prediction"),
    "edm, dpm": EDMDPMSolverMultistepScheduler(sigma_data=1.0),
}


@pytest.mark.parametrize("name", ALL)
def test_the_target_of_training_gives_the_velocity(name: str) -> None:
    path, random = noise_path(ALL[name]), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 1, 8, generator=random)
    discrete = objective_of(ALL[name]) == "diffusion"
    level = path.ladder[[1, 20, 70, 120, 180]].float()
    timesteps = torch.tensor([1, 20, 70, 120, 180]) if discrete else path.timestep(level)
    model_input, target = path.example(clean, noise, timesteps)
    level = level.reshape(-1, 1, 1)
    signal, deviation = signal_and_deviation(level)
    x = signal * clean + deviation * noise
    torch.testing.assert_close(path.model_input(x, level), model_input, rtol=1e-4, atol=1e-5)
    velocity = path.velocity(target, x, level)
    torch.testing.assert_close(velocity, signal * noise - deviation * clean, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["diffwave", "cosine", "ddim"])
def test_the_levels_of_the_training_have_its_timesteps(name: str) -> None:
    path = noise_path(ALL[name])
    found = path.timestep(path.ladder)
    torch.testing.assert_close(found, torch.arange(200.0, dtype=torch.float64), rtol=0, atol=0.05)
    beyond = path.timestep(torch.tensor([path.lowest / 9, path.highest * 9]))
    torch.testing.assert_close(beyond, torch.tensor([0.0, 199.0]), rtol=0, atol=0.01)
    between = path.timestep(path.ladder[60:62].log().mean().exp())
    assert 60 < float(between) < 61


@pytest.mark.parametrize("name", ["flow", "flow, heun", "edm", "edm of other data", "edm, dpm"])
def test_the_timesteps_and_levels_are_those_of_diffusers(name: str) -> None:
    scheduler, path = ALL[name], noise_path(ALL[name])
    scheduler.set_timesteps(8)
    sigmas, timesteps = scheduler.sigmas[:-1].double(), scheduler.timesteps
    if name == "flow, heun":
        sigmas, timesteps = sigmas[::2], timesteps[::2]
    level = sigmas if name.startswith("edm") else sigmas[1:-1] / (1 - sigmas[1:-1])
    expected = timesteps if name.startswith("edm") else timesteps[1:-1]
    torch.testing.assert_close(path.timestep(level).float(), expected, rtol=1e-4, atol=1e-4)


def test_even_levels_reach_both_ends() -> None:
    levels = even_levels(0.01, 100.0, 50)
    assert float(levels[0]) == pytest.approx(0.01)
    assert float(levels[-1]) == pytest.approx(100.0)
    assert (levels.diff() > 0).all()


def test_schedulers_that_fit_no_denoiser_are_refused() -> None:
    assert objective_of(IPNDMScheduler()) is None
    assert objective_of(EulerDiscreteScheduler()) == "diffusion"
    with pytest.raises(UserError, match="IPNDMScheduler fits no model of this package"):
        noise_path(IPNDMScheduler())
    with pytest.raises(UserError, match="prediction_type is 'flow_prediction': expected epsilon"):
        noise_path(EulerDiscreteScheduler(prediction_type="flow_prediction"))
