"""Tests of the order of the calls in a sampling loop, and of the noise levels of every scheduler."""

import diffusers
import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.schedule import Schedule
from sashimi_diffusion.pipelines.steps import set_timesteps
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.noise_paths import Level
from tests.pipelines.exact_denoiser import COSINE

NAMES = sorted(SCHEDULERS)


def create(name: str, steps: int = 10) -> object:
    fast = name == "diffwave-fast"  # made for DiffWave's schedule
    scheduler = create_scheduler(name, (DiffWaveScheduler() if fast else COSINE).config)
    set_timesteps(scheduler, None if fast else steps)
    return scheduler


def schedule_of(name: str, steps: int = 10) -> Schedule:
    return Schedule(create(name, steps))


@pytest.mark.parametrize("name", NAMES)
def test_the_levels_are_those_of_the_noise_that_the_scheduler_adds(name: str) -> None:
    schedule = schedule_of(name)
    assert len(schedule) == (6 if name == "diffwave-fast" else 10)
    assert schedule.levels[-1] == (1, 0)
    ratios = [level.noise / level.signal for level in schedule.levels]
    assert ratios == sorted(ratios, reverse=True)
    if name in ("diffwave-fast", "ipndm"):
        return  # fractional timesteps; a class of diffusers without add_noise
    for step in (0, 4, 9):
        fresh = create(name)
        own = Schedule(fresh)
        own.begin(step)
        timestep = own.calls(step)[0].timestep[None]
        if not fresh.timesteps.is_floating_point():
            timestep = timestep.long()
        one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
        expected = [float(fresh.add_noise(*pair, timestep)) for pair in ((one, zero), (zero, one))]
        assert list(own.levels[step]) == pytest.approx(expected, rel=1e-4, abs=1e-6), step


def test_flow_matching_has_levels_of_its_own() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    schedule = Schedule(scheduler)
    for level, sigma in zip(schedule.levels, scheduler.sigmas.tolist(), strict=True):
        assert level == pytest.approx((1 - sigma, sigma))
    assert [schedule.first_step(strength) for strength in (1, 0.5, 0.25, 0.01)] == [0, 2, 3, 3]


def test_edm_has_levels_without_a_factor_of_the_signal() -> None:
    scheduler = diffusers.EDMDPMSolverMultistepScheduler()
    scheduler.set_timesteps(4)
    assert [level.signal for level in Schedule(scheduler).levels] == [1.0] * 5
    assert Schedule(scheduler).levels[0].noise == pytest.approx(80.0)


@pytest.mark.parametrize("name", NAMES)
def test_all_calls_in_order_are_those_of_the_scheduler(name: str) -> None:
    schedule = schedule_of(name)
    calls = schedule.calls()
    assert torch.equal(torch.stack([call.timestep for call in calls]), create(name).timesteps)
    assert [call.reached for call in calls if call.reached is not None] == list(range(1, len(schedule) + 1))
    assert not any(call.back_from for call in calls)


def test_strength_is_the_share_of_the_training_schedule() -> None:
    schedule = schedule_of("diffwave")
    assert [schedule.first_step(strength) for strength in (1.0, 0.9, 0.52, 0.5, 0.1, 0.001)] == [0, 1, 5, 5, 9, 9]
    karras = schedule_of("dpmsolver++-karras", 20)
    half = karras.levels[karras.first_step(0.5)]
    assert half.noise / half.signal == pytest.approx(1.0, rel=0.3)  # cosine: abar is 1/2 in the middle


def test_sampling_jumps_back_after_each_stretch() -> None:
    calls = schedule_of("diffwave", 40).calls(0, jumps=1)  # stretches of two steps
    assert [call.step for call in calls[:6]] == [0, 1, 0, 1, 2, 3]
    assert [call.back_from for call in calls[:6]] == [None, None, 2, None, None, None]
    assert len(calls) == 80
    assert calls[-1].reached == 40


def test_the_second_step_of_pndm_has_two_calls_also_after_a_jump() -> None:
    schedule = schedule_of("pndm", 40)
    assert [call.step for call in schedule.calls(37)] == [37, 38, 38, 39]
    calls = schedule.calls(0, jumps=1)
    assert [call.step for call in calls[:8]] == [0, 1, 1, 0, 1, 1, 2, 3]
    assert [call.reached for call in calls[:4]] == [1, None, 2, 1]


def test_pndm_with_runge_kutta_steps_runs_from_its_beginning_only() -> None:
    scheduler = diffusers.PNDMScheduler(num_train_timesteps=200, trained_betas=COSINE.betas.tolist())
    set_timesteps(scheduler, 10)
    schedule = Schedule(scheduler)
    assert len(schedule.calls()) == len(scheduler.timesteps)
    with pytest.raises(UserError, match="cannot begin in the middle"):
        schedule.calls(3)


@pytest.mark.parametrize(
    ("here", "there"), [((1.0, 0.0), (0.6, 0.8)), ((1.0, 2.0), (1.0, 3.0)), ((0.7, 0.3), (0.2, 0.8))]
)
def test_a_jump_back_gives_the_distribution_of_the_noisier_level(here: tuple, there: tuple) -> None:
    clean = torch.full((1, 1, 100_000), 2.0)
    noise, fresh = torch.randn(2, 1, 1, 100_000, generator=torch.Generator().manual_seed(0))
    sample = Level(*here).noisier(Level(*here).of(clean, noise), Level(*there), fresh)
    assert sample.mean().item() == pytest.approx(2 * there[0], abs=0.02)
    assert sample.std().item() == pytest.approx(there[1], rel=0.02)
