"""Tests of training by flow matching and with EDM preconditioning, of losses by time, and of the bound."""

import json
import math

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from sashimi_diffusion import likelihood
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.batches import Batch
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.objective import (
    TIME_BINS,
    loss_curve,
    time_bins,
    training_scheduler,
    training_timesteps,
)
from sashimi_diffusion.training.diffusion.task import DiffusionTask, bound_bits, diffusion_losses
from sashimi_diffusion.training.loop import train

SAMPLERS = {"flow": "flow-heun", "edm": "edm-euler"}
SHARES = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


def config_of(name: str, **objective: object) -> DiffusionConfig:
    return from_tree(DiffusionConfig, {"objective": {"name": name, **objective}})


@pytest.mark.parametrize("name", ["diffusion", "flow", "edm"])
def test_noise_levels_have_the_distribution_of_the_objective(name: str) -> None:
    config = config_of(name)
    timesteps = training_timesteps(config)(SHARES)
    if name == "diffusion":
        assert torch.equal(timesteps.bincount(), torch.full((200,), 10))
    else:
        logs = (timesteps.double() * 4) if name == "edm" else torch.logit(timesteps.double() / 200)
        assert float(logs.mean()) == pytest.approx(-1.2 if name == "edm" else 0.0, abs=1e-3)
        assert float(logs.std()) == pytest.approx(1.2 if name == "edm" else 1.0, abs=0.01)
    assert training_timesteps(config)(torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64)).isfinite().all()
    counts = time_bins(config, timesteps).bincount(minlength=TIME_BINS)
    assert len(counts) == TIME_BINS
    if name != "flow":  # whose times are not uniform
        assert (counts - 200).abs().max() <= 1


def test_mean_and_deviation_of_the_levels_are_settings() -> None:
    config = config_of("edm", noise_mean=-2.0, noise_std=0.5)
    logs = training_timesteps(config)(SHARES).double() * 4
    assert float(logs.mean()) == pytest.approx(-2.0, abs=1e-3)
    assert float(logs.std()) == pytest.approx(0.5, abs=0.01)


def make_batch() -> Batch:
    waveform, noise = torch.randn(2, 4, 1, 16, generator=torch.Generator().manual_seed(0))
    return Batch(waveform, noise, torch.zeros(4), None, None)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_the_loss_is_that_of_the_formula(name: str) -> None:
    scheduler, batch = training_scheduler(config_of(name)), make_batch()
    level = torch.tensor([0.05, 0.4, 1.0, 9.0])
    batch.timesteps = noise_path(scheduler).timestep(level)
    s = level[:, None, None]
    if name == "flow":
        time = s / (1 + s)
        noisy, target = (1 - time) * batch.waveform + time * batch.noise, batch.noise - batch.waveform
    else:  # arXiv 2206.00364, table 1, with sigma_data = 1
        c_skip, c_out, c_in = 1 / (s**2 + 1), s / (s**2 + 1).sqrt(), 1 / (s**2 + 1).sqrt()
        noisy = c_in * (batch.waveform + s * batch.noise)
        target = (batch.waveform - c_skip * (batch.waveform + s * batch.noise)) / c_out

    def network(sample: torch.Tensor, timesteps: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        torch.testing.assert_close(sample, noisy, rtol=1e-4, atol=1e-5)
        assert torch.equal(timesteps, batch.timesteps)
        return (target,)

    assert float(diffusion_losses(network, scheduler, batch).max()) < 1e-6
    zeros = diffusion_losses(lambda *_, **__: (torch.zeros(4, 1, 16),), scheduler, batch)
    torch.testing.assert_close(zeros, target.square().mean(dim=(1, 2)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["flow", "edm"])
def test_a_run_saves_a_pipeline_with_its_scheduler(name: str, tiny_config) -> None:
    overrides = [f"objective.name={name}", f"sampling.scheduler={SAMPLERS[name]}", "training.steps=4"]
    run = train(DiffusionTask, tiny_config(*overrides, "training.validate_bound=true"))
    pipe = SashimiPipeline.from_pretrained(run / "pipeline")
    expected = FlowMatchEulerDiscreteScheduler if name == "flow" else EDMDPMSolverMultistepScheduler
    assert type(pipe.scheduler) is expected
    assert pipe.model.config.objective == name
    assert (run / "samples/step-000004/contact_sheet.png").exists()
    assert pipe(class_labels=1, num_inference_steps=3).audios.shape == (1, 1, 256)
    found = likelihood.bits_per_sample(pipe, torch.rand(1, 256) * 0.1, "heun", steps=3, class_labels=1)
    assert found.bits.isfinite().all()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = next(line for line in lines if "validation_loss" in line)
    assert 5 < validation["validation_bound_bits"] < 100
    curve = {key: value for key, value in validation.items() if key.startswith("validation_loss/time_")}
    assert 1 < len(curve) <= TIME_BINS
    assert all(value > 0 for value in curve.values())
    assert "time_0" not in (run / "pipeline/README.md").read_text()


def test_a_curve_has_the_mean_of_each_part_with_examples() -> None:
    losses, counts = torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0, 0, 3.0]), torch.tensor([4.0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    assert loss_curve(losses, counts) == {"validation_loss/time_0.0": 0.5, "validation_loss/time_0.9": 3.0}


def test_the_bound_at_validation_is_that_of_the_pipeline() -> None:
    torch.manual_seed(0)
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "embedding_hidden": 8, "embedding_dim": 8}
    model = WaveNetDenoiser(sample_rate=1000, sample_size=64, waveform_std=0.25, **sizes).eval()
    torch.nn.init.normal_(model.output[-1].weight, std=0.1)
    scheduler = training_scheduler(config_of("diffusion"))
    audio = torch.round(torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(0)) * 2**13) / 2**15
    draws = 100
    noise = torch.randn(draws, 1, 64, generator=torch.Generator().manual_seed(1))
    batch = Batch((audio / 0.25).expand(draws, 1, 64), noise, torch.zeros(draws), None, None)
    with torch.no_grad():
        bits = bound_bits(model, scheduler, batch, range(draws))
    pipe = SashimiPipeline(model, scheduler)
    expected = likelihood.variational_bound(pipe, audio, draws, generator=torch.Generator().manual_seed(2))
    error = math.hypot(float(expected.standard_error), float(bits.std() / math.sqrt(draws)))
    assert abs(float(bits.mean()) - float(expected.bits)) < 4 * error
    assert error < 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective.name=flow"], "the scheduler ddim does not fit a model with the training objective flow"),
        (["objective.name=flow", "objective.min_snr_gamma=5"], "objective.min_snr_gamma has no effect with objective"),
        (["objective.name=edm", "objective.timestep_exponent=2"], "objective.timestep_exponent has no effect"),
        (["objective.noise_mean=-1"], "objective.noise_mean has no effect with objective.name=diffusion"),
        (["objective.name=score"], "objective.name"),
        (["model.objective=flow"], "objective"),
        (
            ["schedule.prediction_type=epsilon", "schedule.rescale_betas_zero_snr=true"],
            "schedule.rescale_betas_zero_snr is true: it needs schedule.prediction_type=v_prediction",
        ),
        (
            ["objective.name=edm", "schedule.rescale_betas_zero_snr=true"],
            "schedule.rescale_betas_zero_snr has no effect with objective.name=edm",
        ),
        (["sampling.scheduler=flow-euler"], "flow-euler does not fit a model with the training objective diffusion"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], message: str, tiny_config) -> None:
    with pytest.raises(UserError, match=message):
        train(DiffusionTask, tiny_config(*overrides))
