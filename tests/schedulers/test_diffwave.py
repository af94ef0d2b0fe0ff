"""Tests of DiffWaveScheduler against the official update, the numbers of the official code, and diffusers' DDPM."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import FAST_BETAS_50, FAST_BETAS_200, DiffWaveScheduler


def fake_model(x: torch.Tensor, t: float) -> torch.Tensor:
    return torch.tanh(x) + 0.01 * t


def sample(scheduler, model, seed: int = 0, shape: tuple[int, ...] = (2, 1, 64)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, float(t)), t, x, generator=generator).prev_sample
    return x


def official_sample(betas: torch.Tensor, seed: int = 0, shape: tuple[int, ...] = (2, 1, 64)) -> torch.Tensor:
    """Return samples of Algorithm 2 of DiffWave, computed statement by statement in float32."""
    alpha = 1 - betas
    alpha_bar = alpha.clone()
    variance = betas.clone()
    for t in range(1, len(betas)):
        alpha_bar[t] *= alpha_bar[t - 1]
        variance[t] *= (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    for t in reversed(range(len(betas))):
        epsilon = fake_model(x, float(t))
        x = (x - (1 - alpha[t]) / torch.sqrt(1 - alpha_bar[t]) * epsilon) / torch.sqrt(alpha[t])
        if t > 0:
            x = x + torch.sqrt(variance[t]) * torch.randn(shape, generator=generator)
    return x


@pytest.mark.parametrize(("steps", "end"), [(8, 0.05), (50, 0.05), (200, 0.02)])
def test_all_steps_are_the_official_update(steps: int, end: float) -> None:
    ours = sample(DiffWaveScheduler(steps, beta_end=end), fake_model)
    expected = official_sample(torch.linspace(1e-4, end, steps))
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("T8", {"num_train_timesteps": 8, "beta_end": 0.05}),
        ("T200", {}),
        ("vocoder_T50", {"num_train_timesteps": 50, "beta_end": 0.05}),
        ("fast6", {"num_train_timesteps": 6, "trained_betas": [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5]}),
    ],
)
def test_schedules_agree_with_the_official_code(golden, name: str, options: dict) -> None:
    tensors = golden.tensors("e_sampling/ckpt")
    scheduler = DiffWaveScheduler(**options)
    torch.testing.assert_close(scheduler.betas, tensors[f"sched.{name}.Beta"], rtol=1e-6, atol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, tensors[f"sched.{name}.Alpha_bar"], rtol=1e-6, atol=0)
    sigmas = torch.tensor(scheduler._sigmas)[1:]
    # 1 - abar loses precision if abar is close to one.
    torch.testing.assert_close(sigmas, tensors[f"sched.{name}.Sigma"][1:], rtol=1e-3, atol=0)


@pytest.mark.parametrize("steps", [1, 6, 7, 20, 150, 200])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_fewer_steps_agree_with_diffusers_ddpm(steps: int, prediction: str) -> None:
    ours = DiffWaveScheduler(prediction_type=prediction)
    ours.set_timesteps(steps)
    theirs = DDPMScheduler(200, 1e-4, 0.02, timestep_spacing="trailing", clip_sample=False, prediction_type=prediction)
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    x = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1))
    for t in ours.timesteps:
        noise = [torch.Generator().manual_seed(int(t))], [torch.Generator().manual_seed(int(t))]
        expected = theirs.step(fake_model(x, float(t)), t, x, generator=noise[0]).prev_sample
        if t == ours.timesteps[-1]:  # diffusers adds noise of variance 1e-20 here
            expected = theirs.step(fake_model(x, float(t)), t, x, generator=noise[0]).pred_original_sample
        x = ours.step(fake_model(x, float(t)), t, x, generator=noise[1]).prev_sample
        # diffusers computes 1 - abar_t / abar_{t-1} in float32, which loses precision.
        assert (x - expected).abs().max() < 2e-4 * expected.abs().max()


@given(st.integers(1, 1000), st.data())
@settings(max_examples=60)
def test_timesteps_are_trailing_and_distinct(total: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, total))
    scheduler = DiffWaveScheduler(trained_betas=[0.01] * total, num_train_timesteps=total)
    scheduler.set_timesteps(steps)
    visited = scheduler.timesteps.tolist()
    assert len(visited) == steps
    assert visited[0] == total - 1
    assert visited[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(visited))


def test_velocity_and_epsilon_predictions_generate_the_same_audio() -> None:
    epsilon, velocity = DiffWaveScheduler(), DiffWaveScheduler(prediction_type="v_prediction")

    def as_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        signal, deviation = epsilon.alphas_cumprod[int(t)].sqrt(), (1 - epsilon.alphas_cumprod[int(t)]).sqrt()
        noise = fake_model(x, t)
        return signal * noise - deviation * (x - deviation * noise) / signal

    expected = sample(epsilon, fake_model)
    assert (sample(velocity, as_velocity) - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(("betas", "end", "steps"), [(FAST_BETAS_200, 0.02, 200), (FAST_BETAS_50, 0.05, 50)])
def test_fast_sampling_aligns_noise_levels(betas: tuple, end: float, steps: int) -> None:
    scheduler = DiffWaveScheduler(steps, beta_end=end, inference_betas=list(betas))
    trained = scheduler.alphas_cumprod.double().sqrt()
    level, expected = 1.0, []
    for beta in betas:
        level *= 1 - beta
        for t in range(steps - 1):
            if trained[t + 1] <= math.sqrt(level) <= trained[t]:
                expected.append(float(t + (trained[t] - math.sqrt(level)) / (trained[t] - trained[t + 1])))
    # The first level equals the first trained one up to rounding, which may put it on either side.
    expected = [0.0, *expected[-5:]]
    assert scheduler.timesteps.flip(0).tolist() == pytest.approx(expected, abs=2e-3)
    assert scheduler.timesteps.is_floating_point()


def test_fast_sampling_applies_the_update_of_its_own_betas() -> None:
    scheduler = DiffWaveScheduler(inference_betas=list(FAST_BETAS_200))
    timesteps = []
    x = sample(scheduler, lambda x, t: (timesteps.append(t), torch.tanh(x))[1])
    own = DiffWaveScheduler(6, trained_betas=list(FAST_BETAS_200))
    torch.testing.assert_close(x, sample(own, lambda x, t: torch.tanh(x)))
    assert timesteps == scheduler.timesteps.tolist()


def test_alignment_is_clamped_to_the_training_schedule() -> None:
    scheduler = DiffWaveScheduler(50, beta_end=0.05)
    aligned = scheduler.align(torch.tensor([0.99999, float(scheduler.alphas_cumprod[7]), 0.01]))
    assert aligned.tolist() == pytest.approx([0.0, 7.0, 49.0], abs=1e-3)


def test_noise_and_velocity_have_a_level_per_example() -> None:
    scheduler = DiffWaveScheduler()
    x, noise, t = torch.randn(3, 1, 8), torch.randn(3, 1, 8), torch.tensor([0, 100, 199])
    level = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 200, dtype=torch.float64), 0)[t].reshape(3, 1, 1)
    noisy = level.sqrt() * x + (1 - level).sqrt() * noise
    torch.testing.assert_close(scheduler.add_noise(x, noise, t), noisy.float(), rtol=1e-3, atol=1e-4)
    velocity = level.sqrt() * noise - (1 - level).sqrt() * x
    torch.testing.assert_close(scheduler.get_velocity(x, noise, t), velocity.float(), rtol=1e-3, atol=1e-4)


def test_noise_levels_are_copied_to_a_device_once(monkeypatch) -> None:
    scheduler, timesteps = DiffWaveScheduler(), torch.tensor([0, 7, 199])
    sample, noise = torch.randn(2, 3, 1, 8)
    before = scheduler.add_noise(sample, noise, timesteps)
    copied: list[object] = []
    original = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: copied.append(args) or original(self, *args))
    meta = timesteps.to("meta")
    for _ in range(3):
        assert scheduler.noise_levels(meta).is_meta
    assert copied == [("meta",), (meta.device,)]
    monkeypatch.undo()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    assert torch.equal(scheduler.noise_levels(timesteps), scheduler.alphas_cumprod[timesteps])
    assert not torch.equal(scheduler.add_noise(sample, noise, timesteps), before)


def test_other_schedulers_built_from_the_config_keep_the_schedule() -> None:
    built = DDIMScheduler.from_config(DiffWaveScheduler().config)
    assert built.config.num_train_timesteps == 200
    assert built.config.timestep_spacing == "trailing"
    assert not built.config.clip_sample
    torch.testing.assert_close(built.alphas_cumprod, DiffWaveScheduler().alphas_cumprod)


def test_a_saved_scheduler_is_the_same(tmp_path) -> None:
    saved = DiffWaveScheduler(50, beta_end=0.05, prediction_type="v_prediction", inference_betas=list(FAST_BETAS_50))
    saved.save_pretrained(tmp_path)
    loaded = DiffWaveScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.timesteps, saved.timesteps)
    assert loaded.config.prediction_type == "v_prediction"


def test_cosine_schedule_agrees_with_diffusers() -> None:
    expected = DDPMScheduler(200, beta_schedule="squaredcos_cap_v2")
    ours = DiffWaveScheduler(200, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(ours.alphas_cumprod, expected.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_each_sample_has_its_own_noise() -> None:
    scheduler = DiffWaveScheduler()
    x = torch.zeros(2, 1, 32)
    both = scheduler.step(x, 150, x, generator=[torch.Generator().manual_seed(s) for s in (1, 2)]).prev_sample
    second = scheduler.step(x[:1], 150, x[:1], generator=torch.Generator().manual_seed(2)).prev_sample
    torch.testing.assert_close(both[1:], second)
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize("steps", [0, -3, 201])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="ask for 1 to 200"):
        DiffWaveScheduler().set_timesteps(steps)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "sample"},
        {"timestep_spacing": "leading"},
        {"clip_sample": True},
        {"beta_schedule": "quadratic"},
        {"trained_betas": [0.1, 0.2]},
        {"beta_end": 1.5},
        {"inference_betas": []},
        {"inference_betas": [0.1, 0.0]},
    ],
)
def test_invalid_settings_are_refused(options: dict) -> None:
    with pytest.raises(UserError):
        DiffWaveScheduler(**options)


def test_a_fast_schedule_has_its_own_number_of_steps() -> None:
    with pytest.raises(UserError, match="has 6 steps"):
        DiffWaveScheduler(inference_betas=list(FAST_BETAS_200)).set_timesteps(20)


def test_a_timestep_of_another_schedule_is_refused() -> None:
    scheduler = DiffWaveScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="timestep 5 "):
        scheduler.step(torch.zeros(1, 1, 4), 5, torch.zeros(1, 1, 4))


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_a_rescaled_schedule_is_that_of_diffusers_and_ends_in_pure_noise(schedule: str) -> None:
    plain = DiffWaveScheduler(50, beta_end=0.1, beta_schedule=schedule, prediction_type="v_prediction")
    rescaled = DiffWaveScheduler.from_config(plain.config, rescale_betas_zero_snr=True)
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(plain.betas.double()), dim=0)
    torch.testing.assert_close(rescaled.alphas_cumprod[:-1].double(), theirs[:-1], rtol=1e-3, atol=1e-7)
    assert float(rescaled.alphas_cumprod[-1]) == pytest.approx(2.0**-24, rel=0.01)
    assert float(rescaled.alphas_cumprod[0]) == pytest.approx(float(plain.alphas_cumprod[0]), rel=1e-5)
    x = torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0))
    for t in rescaled.timesteps:
        x = rescaled.step(torch.zeros_like(x), t, x, torch.Generator().manual_seed(0)).prev_sample
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rescale_betas_zero_snr needs prediction_type='v_prediction', not 'epsilon'"),
        ({"prediction_type": "v_prediction", "num_train_timesteps": 1}, "use at least two timesteps"),
        ({"rescale_betas_zero_snr": 1}, "rescale_betas_zero_snr is 1: expected true or false"),
    ],
)
def test_a_schedule_that_cannot_be_rescaled_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DiffWaveScheduler(**{"rescale_betas_zero_snr": True, **options})
