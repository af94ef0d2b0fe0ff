"""Tests of sampling with models of all training objectives."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.prediction import Prediction, model_input
from sashimi_diffusion.pipelines.schedule import Schedule
from sashimi_diffusion.pipelines.steps import scheduler_step, set_timesteps
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.compatible import create_few_step_scheduler
from sashimi_diffusion.schedulers.noise import initial_deviation
from sashimi_diffusion.schedulers.noise_paths import noise_path
from tests.likelihood.gaussian import LENGTH, ExactDenoiser, covariance

COSINE = DiffWaveScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(100)
EDM = diffusers.EDMDPMSolverMultistepScheduler(sigma_data=1.0, num_train_timesteps=100)
SAMPLERS = [("flow-euler", FLOW), ("flow-heun", FLOW), ("edm-euler", EDM), ("edm-dpmsolver++", EDM)]
SIZES = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "dilation_cycle": 2}
EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}


def make_pipeline(objective: str, scheduler: Any) -> SashimiPipeline:
    torch.manual_seed(0)
    model = WaveNetDenoiser(objective=objective, sample_rate=100, sample_size=50, **SIZES, **EMBEDDING)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    pipe = SashimiPipeline(model.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("name", "trained"), SAMPLERS)
def test_the_exact_denoiser_of_a_process_samples_this_process(name: str, trained: Any) -> None:
    process, count = covariance(0.8), 3000
    scheduler = create_scheduler(name, trained.config)
    model = ExactDenoiser(scheduler, process)
    timesteps = set_timesteps(scheduler, 80 if name.endswith("euler") else 40, model=model.config)
    generators = [seeded()]
    x = torch.randn(count, 1, LENGTH, generator=generators[0]) * initial_deviation(scheduler)
    predict, step = Prediction(model, {}, None), scheduler_step(scheduler, generators)
    for t in timesteps:
        x = step(predict(model_input(scheduler, x, t), t), t, x)
    found = (x.squeeze(1).T @ x.squeeze(1)).double() / count
    # The sampling error of a covariance is about 1 / sqrt(count).
    assert float((found - process).abs().max()) < 0.15


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("trained", [COSINE, DiffWaveScheduler(), FLOW, EDM])
def test_a_student_gets_noisy_audio_of_the_levels_of_its_timesteps(trained: Any, steps: int) -> None:
    """A network that always estimates the same audio: every input is this audio with new noise, the result has none."""
    scheduler, path = create_few_step_scheduler(trained.config, 4), noise_path(trained)
    assert len(set_timesteps(scheduler, steps)) == steps
    generators, clean = [seeded()], torch.randn(1, 1, 50_000, generator=torch.Generator().manual_seed(1))
    step, levels = scheduler_step(scheduler, generators), Schedule(scheduler).levels
    x = torch.randn(clean.shape, generator=generators[0]) * initial_deviation(scheduler)
    for number, t in enumerate(scheduler.timesteps):
        if number:
            noise = (x - levels[number].signal * clean) / levels[number].noise
            assert float(noise.std()) == pytest.approx(1, rel=0.02)
            assert abs(float((noise * clean).mean())) < 0.03
        given, level, ones = model_input(scheduler, x, t), path.level(t.clamp(max=path.timesteps[-1])), torch.ones(1)
        assert float(level) == pytest.approx(levels[number].noise / levels[number].signal, rel=1e-3)
        z = given / path.model_input(ones, level)
        none, one = (path.clean(output, z, level) for output in (torch.zeros_like(z), torch.ones_like(z)))
        x = step((clean - none) / (one - none), t, x)
    torch.testing.assert_close(x, clean, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize(("name", "trained"), SAMPLERS)
def test_a_pipeline_is_saved_loaded_and_sampled(name: str, trained: Any, tmp_path: Path) -> None:
    pipe = make_pipeline(name.partition("-")[0], create_scheduler(name, trained.config))
    pipe.save_pretrained(tmp_path)
    loaded = SashimiPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert loaded.scheduler.config.num_train_timesteps == 100
    first, second = (one(batch_size=2, num_inference_steps=4, generator=seeded()).audios for one in (pipe, loaded))
    assert first.shape == (2, 1, 50)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, second)
    calls = len(loaded.set_timesteps(5))
    assert calls == (9 if name == "flow-heun" else 5)


@pytest.mark.parametrize(
    ("objective", "scheduler", "message"),
    [
        ("flow", DiffWaveScheduler(), "is for the training objective diffusion, but this model was trained with the"),
        ("edm", FLOW, "is for the training objective flow, but this model was trained with the objective edm"),
        ("diffusion", EDM, "is for the training objective edm, but this model .* objective diffusion"),
        ("flow", diffusers.IPNDMScheduler(), "has no discrete training schedule and does not fit this model"),
    ],
)
def test_a_scheduler_for_another_objective_is_refused(objective: str, scheduler: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*create_scheduler|{message}"):
        make_pipeline(objective, scheduler)(generator=seeded())


@pytest.mark.parametrize(("name", "trained"), SAMPLERS)
def test_impossible_steps_are_refused(name: str, trained: Any) -> None:
    pipe = make_pipeline(name.partition("-")[0], create_scheduler(name, trained.config))
    for steps in (0, 101):
        with pytest.raises(UserError, match="ask for 1 to 100"):
            pipe(num_inference_steps=steps)
    with pytest.raises(UserError, match="takes no sigmas in this pipeline: give num_inference_steps"):
        pipe(sigmas=[1.0, 0.0])
    with pytest.raises(UserError, match="takes no timesteps in this pipeline"):
        pipe(timesteps=[3, 1])


def test_an_unknown_objective_of_a_model_is_refused() -> None:
    with pytest.raises(UserError, match="objective is 'score': expected one of diffusion, flow, edm"):
        WaveNetDenoiser(objective="score", **SIZES, **EMBEDDING)


@pytest.mark.parametrize(("key", "value"), [("sigma_data", 0.0), ("sigma_max", "80"), ("num_train_timesteps", 0)])
def test_damaged_settings_of_a_scheduler_are_refused(key: str, value: object, tmp_path: Path) -> None:
    pipe = make_pipeline("edm", create_scheduler("edm-euler", EDM.config))
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    stored = str(pipe.scheduler.config[key])
    text = path.read_text().replace(f'"{key}": {stored}', f'"{key}": {value!r}'.replace("'", '"'))
    path.write_text(text)
    with pytest.raises(UserError, match=f"{key} is .*expected a"):
        SashimiPipeline.from_pretrained(tmp_path)
