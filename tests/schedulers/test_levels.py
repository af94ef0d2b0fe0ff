"""Tests of the check of noise levels, and of the level of the bundled pipeline's audio with every sampler."""

import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.commands.sample import main
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.levels import check_levels, noise_levels, visited_levels

COSINE = DiffWaveScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
NAMES = [name for name in SCHEDULERS if name != "lms" or importlib.util.find_spec("scipy") is not None]


def scheduler_for(name: str, steps: int, base: DiffWaveScheduler = COSINE) -> Any:
    scheduler = create_scheduler(name, base.config)
    scheduler.set_timesteps(steps)
    return scheduler


def warned(scheduler: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_levels(scheduler)
    return [str(warning.message) for warning in caught if "too few" in str(warning.message)]


def test_levels_are_ratios_of_noise_and_signal() -> None:
    levels = noise_levels(COSINE.alphas_cumprod)
    noisy = COSINE.add_noise(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([50])).item()
    assert levels[50] == pytest.approx(noisy / (1 - noisy**2) ** 0.5, rel=1e-5)
    assert visited_levels(scheduler_for("ddim", 200)) == pytest.approx(levels[::-1], rel=1e-4)
    heun = scheduler_for("heun", 6)
    assert visited_levels(heun)[::2] == pytest.approx(heun.sigmas[:-1:2].numpy(), rel=0.01)


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [
        ("diffwave", 13, 14),
        ("ddim", 6, 14),
        ("euler-ancestral", 6, 14),
        ("pndm", 1, 14),
        ("heun", 5, 6),
        ("unipc", 3, 4),
    ],
)
def test_the_smallest_sensible_number_of_steps_is_named(name: str, steps: int, least: int) -> None:
    (text,) = warned(scheduler_for(name, steps))
    assert f"{steps} step{'s are' if steps > 1 else ' is'} too few" in text
    assert f"at least {least}" in text
    assert ("such as unipc-karras" in text) == (least > 6)
    assert warned(scheduler_for(name, least)) == []


@pytest.mark.parametrize("steps", [14, 20, 50, 199, 200])
def test_enough_steps_are_silent(steps: int) -> None:
    for name in NAMES:
        if name != "diffwave-fast":
            assert warned(scheduler_for(name, steps)) == [], name


def test_all_steps_of_a_short_training_schedule_are_enough() -> None:
    short = DiffWaveScheduler(2, trained_betas=[0.1, 0.5])
    assert warned(short) == []
    short.set_timesteps(1)
    assert "at least 2" in warned(short)[0]


def test_fixed_levels_have_no_smallest_number_of_steps() -> None:
    (text,) = warned(DiffWaveScheduler(inference_betas=[0.3, 0.6]))
    assert text.endswith("use a scheduler that needs fewer, such as unipc-karras")


def test_the_check_leaves_the_scheduler_as_it_is() -> None:
    scheduler = scheduler_for("heun", 4)
    timesteps = scheduler.timesteps
    assert warned(scheduler)
    assert scheduler.timesteps is timesteps
    assert scheduler.num_inference_steps == 4


def test_fast_betas_that_start_below_the_noise_of_the_training_are_refused(tmp_path: Any) -> None:
    pipe = SashimiPipeline.from_pretrained("sashimi-digits")
    pipe.scheduler = create_scheduler("diffwave-fast", pipe.scheduler.config)
    with pytest.raises(UserError, match=r"start at a noise of 1\.9.*up to 4\.1e\+03.*unipc-karras"):
        pipe(class_labels=[1])
    assert main(["--scheduler", "diffwave-fast", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    for base in (DiffWaveScheduler(), DiffWaveScheduler(50, beta_end=0.05)):
        assert warned(create_scheduler("diffwave-fast", base.config)) == []


def test_the_command_says_that_steps_are_too_few(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "1", "--num-samples", "2", "--batch-size", "1", "--out", str(tmp_path / "out")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [line for line in said if "1 step is too few for DiffWaveScheduler" in line]
    assert len(said) == 1


REFERENCE_LEVEL = -29.1
"""Level of the clip below in dB, sampled with 40 steps."""


def bundled_pipeline() -> SashimiPipeline:
    pipe = SashimiPipeline.from_pretrained("sashimi-digits")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def level_and_peak(pipe: SashimiPipeline, name: str, steps: int) -> tuple[float, float]:
    """Return the level in dB and the peak of half a second of a spoken three."""
    pipe.scheduler = create_scheduler(name, pipe.scheduler.config)
    generator = [torch.Generator().manual_seed(1)]
    audio = pipe(1, steps, generator, 0.48, class_labels=[3], speaker_labels=[1]).audios
    return 10 * np.log10(np.square(audio).mean()), float(np.abs(audio).max())


# Few steps are where levels were wrong. The other samplers at 20 steps take half a minute.
@pytest.mark.parametrize(
    ("steps", "name"),
    [
        pytest.param(steps, name, marks=() if steps == 6 or name == "heun" else pytest.mark.slow)
        for steps in (6, 20)
        for name in NAMES
        if name != "diffwave-fast" and not warned(scheduler_for(name, steps))
    ],
)
def test_the_bundled_pipeline_has_the_right_level_with_every_sampler(steps: int, name: str) -> None:
    """One clip varies by some decibels; heun with 20 steps had a peak of 3.4, and ddim with 6 steps was 11 dB low."""
    decibels, peak = level_and_peak(bundled_pipeline(), name, steps)
    assert abs(decibels - REFERENCE_LEVEL) < 4
    assert peak < 1


@pytest.mark.slow
def test_the_reference_level_is_that_of_many_steps() -> None:
    assert level_and_peak(bundled_pipeline(), "dpmsolver++-karras", 40)[0] == pytest.approx(REFERENCE_LEVEL, abs=0.2)
