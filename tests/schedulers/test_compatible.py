"""Every named sampler, with the one model whose answer is known: data of independent Gaussian samples."""

import importlib.util
import inspect

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, LinearMultistepScheduler, create_scheduler

HAS_SCIPY = importlib.util.find_spec("scipy") is not None
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(not HAS_SCIPY, reason="needs scipy"))
    if name == "lms"
    else name
    for name in SCHEDULERS
]


def generate(name: str, steps: int, base: DiffWaveScheduler, deviation: float, length: int = 4000) -> torch.Tensor:
    """Samples of a sampler whose model knows that the data have this standard deviation."""
    scheduler = create_scheduler(name, base.config)
    scheduler.set_timesteps(None if name == "diffwave-fast" else steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = torch.randn(1, 1, length, generator=generator) * scheduler.init_noise_sigma
    levels = torch.cat([base.alphas_cumprod, base.alphas_cumprod[-1:]]).double()
    for t in scheduler.timesteps:
        noisy = scheduler.scale_model_input(x, t).double()
        below = int(t)
        root = levels[below].sqrt() + (float(t) - below) * (levels[below + 1].sqrt() - levels[below].sqrt())
        signal, noise = root**2, 1 - root**2
        gain = 1 / (signal * deviation**2 + noise)
        if base.config.prediction_type == "epsilon":
            prediction = noise.sqrt() * gain * noisy
        else:
            prediction = (signal * noise).sqrt() * (1 - deviation**2) * gain * noisy
        x = scheduler.step(prediction.float(), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize(("prediction", "schedule"), [("epsilon", "linear"), ("v_prediction", "squaredcos_cap_v2")])
@pytest.mark.parametrize("name", NAMES)
def test_finite_at_every_number_of_steps(name: str, prediction: str, schedule: str) -> None:
    base = DiffWaveScheduler(prediction_type=prediction, beta_schedule=schedule)
    for steps in (6, 20, 50, 200):
        assert generate(name, steps, base, 0.3, length=64).isfinite().all(), steps


@pytest.mark.parametrize("name", [name for name in NAMES if name != "diffwave-fast"])
def test_all_steps_give_the_data_their_loudness(name: str) -> None:
    base = DiffWaveScheduler()
    assert float(generate(name, 200, base, 1.0).std()) == pytest.approx(1.0, rel=0.1)
    assert float(generate(name, 200, base, 0.1).std()) == pytest.approx(0.1, rel=0.12)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++", "unipc", "ipndm", "pndm"])
def test_velocity_prediction_gives_the_data_their_loudness(name: str) -> None:
    base = DiffWaveScheduler(prediction_type="v_prediction")
    assert float(generate(name, 50, base, 0.3).std()) == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(
    "name", ["dpmsolver++-karras", "dpmsolver++-3m-karras", "dpmsolver++-sde-karras", "unipc-karras", "ipndm", "pndm"]
)
def test_twenty_steps_are_enough_for_the_good_ones(name: str) -> None:
    for deviation in (1.0, 0.1):
        assert float(generate(name, 20, DiffWaveScheduler(), deviation).std()) == pytest.approx(deviation, rel=0.12)


def test_fast_sampling_is_finite_and_not_louder_than_the_data() -> None:
    assert 0.5 < float(generate("diffwave-fast", 6, DiffWaveScheduler(), 1.0).std()) < 1.1


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
    """With one clean signal behind all noise, epsilon is linear in x and one step leads to the signal."""
    scheduler = LinearMultistepScheduler()
    scheduler.set_timesteps(1)
    clean, noise = torch.full((1, 1, 8), 0.3), torch.randn(1, 1, 8)
    level = scheduler.alphas_cumprod[-1]
    noisy = level.sqrt() * clean + (1 - level).sqrt() * noise
    torch.testing.assert_close(scheduler.step(noise, scheduler.timesteps[0], noisy).prev_sample, clean)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'unipk', did you mean 'unipc'.*ddim"):
        create_scheduler("unipk", DiffWaveScheduler().config)


@pytest.mark.skipif(HAS_SCIPY, reason="scipy is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="scipy"):
        create_scheduler("lms", DiffWaveScheduler().config)
