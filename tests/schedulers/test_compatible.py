"""Tests of every named sampler with the exact denoiser of independent Gaussian samples."""

import importlib.util
import inspect
from pathlib import Path

import diffusers
import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import (
    EDM_SCHEDULERS,
    FLOW_SCHEDULERS,
    SCHEDULERS,
    DiffWaveScheduler,
    LinearMultistepScheduler,
    create_scheduler,
    fitting_schedulers,
)
from sashimi_diffusion.schedulers.compatible import MAX_NOISE

HAS_SCIPY = importlib.util.find_spec("scipy") is not None
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not HAS_SCIPY, reason="needs scipy")) if name == "lms" else name
    for name in SCHEDULERS
]


DEVIATIONS = torch.tensor([1.0, 0.1]).reshape(2, 1, 1)


def generate(name: str, steps: int, base: DiffWaveScheduler, length: int = 4000) -> torch.Tensor:
    """Generate two waveforms with the exact denoiser of data with the standard deviations 1 and 0.1."""
    scheduler = create_scheduler(name, base.config)
    scheduler.set_timesteps(None if name == "diffwave-fast" else steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = torch.randn(2, 1, length, generator=generator) * scheduler.init_noise_sigma
    levels = torch.cat([base.alphas_cumprod, base.alphas_cumprod[-1:]]).double()
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(x, t).double()
        below = int(t)
        root = levels[below].sqrt() + (float(t) - below) * (levels[below + 1].sqrt() - levels[below].sqrt())
        signal, noise = root**2, 1 - root**2
        gain = 1 / (signal * DEVIATIONS**2 + noise)
        if base.config.prediction_type == "epsilon":
            prediction = noise.sqrt() * gain * noisy
        else:
            prediction = (signal * noise).sqrt() * (1 - DEVIATIONS**2) * gain * noisy
        x = scheduler.step(prediction.float(), t, x, **options).prev_sample
    return x


def assert_deviations(x: torch.Tensor, tolerance: float) -> None:
    assert x.std(dim=-1).flatten().tolist() == pytest.approx(DEVIATIONS.flatten().tolist(), rel=tolerance)


@pytest.mark.parametrize(
    ("prediction", "schedule", "numbers"),
    # The next test covers 200 steps with epsilon prediction.
    [("epsilon", "linear", (1, 6, 20, 50)), ("v_prediction", "squaredcos_cap_v2", (6, 200))],
)
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_every_number_of_steps(name: str, prediction: str, schedule: str, numbers: tuple[int, ...]) -> None:
    base = DiffWaveScheduler(prediction_type=prediction, beta_schedule=schedule)
    for steps in numbers:
        assert generate(name, steps, base, length=64).isfinite().all(), steps


@pytest.mark.parametrize("name", [name for name in NAMES if name != "diffwave-fast"])
def test_all_steps_reproduce_the_deviations_of_the_data(name: str) -> None:
    assert_deviations(generate(name, 200, DiffWaveScheduler()), 0.12)


LIMITED = [name for name, (_, settings) in SCHEDULERS.items() if any("use_" in key for key in settings)]


@pytest.mark.parametrize("steps", [6, 20, 50])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_levels_within_limits_keep_the_loudness_with_few_and_many_steps(schedule: str, steps: int) -> None:
    """Evenly spaced timesteps of a cosine schedule made heun 31 dB too loud in six steps, others 10 dB too quiet."""
    base = DiffWaveScheduler(prediction_type="v_prediction", beta_schedule=schedule)
    for name in LIMITED:
        if name == "lms" and not HAS_SCIPY:
            continue
        decibels = 20 * torch.log10(generate(name, steps, base).std(dim=-1) / DEVIATIONS[..., 0]).flatten()
        # Six steps are a test of stability: the quiet signal is 20 dB below the loud one.
        assert (decibels.abs() < (6 if steps == 6 else 1.8)).all(), (name, decibels)


@pytest.mark.parametrize("name", LIMITED)
def test_the_limits_are_saved_with_the_scheduler(name: str, tmp_path: Path) -> None:
    if name == "lms" and not HAS_SCIPY:
        pytest.skip("needs scipy")
    scheduler = create_scheduler(name, DiffWaveScheduler(prediction_type="v_prediction").config)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    for own in (scheduler, loaded):
        own.set_timesteps(6)
    torch.testing.assert_close(loaded.sigmas, scheduler.sigmas, rtol=0, atol=0)
    assert scheduler.config.sigma_max == pytest.approx(2.5623, abs=1e-3)  # that of the last training step
    cosine = create_scheduler(name, DiffWaveScheduler(beta_schedule="squaredcos_cap_v2").config)
    assert (cosine.config.sigma_min, cosine.config.sigma_max) == (pytest.approx(0.01597, abs=1e-5), MAX_NOISE)


@pytest.mark.parametrize("name", ["dpmsolver++-karras", "unipc-karras", "ipndm", "deis"])
def test_velocity_prediction_reproduces_the_deviations_of_the_data(name: str) -> None:
    assert_deviations(generate(name, 50, DiffWaveScheduler(prediction_type="v_prediction")), 0.12)


@pytest.mark.parametrize(
    "name", ["dpmsolver++-karras", "dpmsolver++-3m-karras", "dpmsolver++-sde-karras", "unipc-karras", "ipndm", "pndm"]
)
def test_twenty_steps_are_enough_for_higher_order_samplers(name: str) -> None:
    assert_deviations(generate(name, 20, DiffWaveScheduler()), 0.12)


def test_fast_sampling_is_finite_and_not_louder_than_the_data() -> None:
    quiet = generate("diffwave-fast", 6, DiffWaveScheduler()).std(dim=-1).flatten() / DEVIATIONS.flatten()
    assert ((quiet > 0.5) & (quiet < 1.1)).all()


def test_the_training_schedule_comes_from_the_config() -> None:
    base = DiffWaveScheduler(50, beta_end=0.05, prediction_type="v_prediction")
    built = create_scheduler("unipc", base.config)
    assert built.config.prediction_type == "v_prediction"
    torch.testing.assert_close(built.alphas_cumprod, base.alphas_cumprod)
    back = create_scheduler("diffwave", built.config)
    torch.testing.assert_close(back.alphas_cumprod, base.alphas_cumprod)


def test_the_fast_betas_stay_within_the_training_schedule() -> None:
    assert create_scheduler("diffwave-fast", DiffWaveScheduler().config).config.inference_betas[-1] == 0.7
    short = DiffWaveScheduler(50, beta_end=0.05)
    assert create_scheduler("diffwave-fast", short.config).config.inference_betas[-1] == 0.5


def test_linear_multistep_is_exact_where_the_noise_is_known() -> None:
    """If there is only one clean signal, epsilon is linear in x, so that one step returns the signal."""
    scheduler = LinearMultistepScheduler()
    scheduler.set_timesteps(1)
    clean, noise = torch.full((1, 1, 8), 0.3), torch.randn(1, 1, 8)
    level = scheduler.alphas_cumprod[-1]
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    torch.testing.assert_close(scheduler.step(noise, scheduler.timesteps[0], noisy).prev_sample, clean)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'unipk', did you mean 'unipc'.*ddim"):
        create_scheduler("unipk", DiffWaveScheduler().config)


@pytest.mark.skipif(HAS_SCIPY, reason="scipy is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="scipy"):
        create_scheduler("lms", DiffWaveScheduler().config)


def test_every_sampler_has_a_rescaled_schedule() -> None:
    rescaled = DiffWaveScheduler(50, beta_end=0.1, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    for name in SCHEDULERS:
        if name == "lms" and not HAS_SCIPY:
            continue
        built = create_scheduler(name, rescaled.config)
        torch.testing.assert_close(built.alphas_cumprod, rescaled.alphas_cumprod, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("name", [*FLOW_SCHEDULERS, *EDM_SCHEDULERS])
def test_samplers_of_continuous_objectives_keep_the_settings_of_the_training(name: str) -> None:
    if name in FLOW_SCHEDULERS:
        trained = diffusers.FlowMatchEulerDiscreteScheduler(50, shift=2.0)
    else:
        trained = diffusers.EDMEulerScheduler(sigma_data=1.0, sigma_max=40.0, num_train_timesteps=50)
    built = create_scheduler(name, trained.config)
    own = {"num_train_timesteps", "shift"} if name in FLOW_SCHEDULERS else {"sigma_data", "sigma_max", "sigma_min"}
    assert {key: built.config[key] for key in own} == {key: trained.config[key] for key in own}
    assert name in fitting_schedulers(built.config)
    with pytest.raises(UserError, match=r"does not fit a model with the training objective (flow|edm): choose one of"):
        create_scheduler("ddim", trained.config)
    with pytest.raises(UserError, match="does not fit a model with the training objective diffusion"):
        create_scheduler(name, DiffWaveScheduler().config)
    with pytest.raises(UserError, match="unknown scheduler 'none'"):
        create_scheduler("none", trained.config)
