"""Tests of given audio in the diffusion pipeline: variations, gaps and continuations of waveforms."""

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.given_audio import LevelWarning
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, create_scheduler
from tests.pipelines.exact_denoiser import covariance_of, exact_pipeline, process, seeded

NAMES = sorted(set(SCHEDULERS) - {"diffwave-fast"})


def small_pipeline(**options: object) -> SashimiPipeline:
    torch.manual_seed(0)
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "dilation_cycle": 2}
    embedding = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
    audio = {"sample_rate": 100, "sample_size": 50, "waveform_std": 0.25}
    model = WaveNetDenoiser(**{**sizes, **embedding, **audio, **options})
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    if model.class_embedding is not None:
        torch.nn.init.normal_(model.class_embedding.weight)
    pipe = SashimiPipeline(model.eval(), DiffWaveScheduler(10, beta_end=0.2))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    return small_pipeline()


@pytest.fixture(scope="module")
def recording() -> torch.Tensor:
    return 0.25 * torch.randn(50, generator=seeded(7))


# Variations


@pytest.mark.parametrize("name", NAMES)
def test_the_correlation_of_a_variation_of_white_noise_is_the_known_one(name: str) -> None:
    """For white x_0, the whole reverse process from the level a, s is eps-linear, and the correlation is known.

    A deterministic solver keeps x_t / |x_t|, so the result correlates with x_0 by a; with new noise in every step, the
    correlation is that of a step to x_0 and back: a^2.
    """
    own = exact_pipeline(name)
    audio = process(1, 0.0, 20_000)
    own.model.register_forward_pre_hook(_short_solve(own.model))
    result = own(audio=audio, strength=0.5, num_inference_steps=20, generator=seeded(), output_type="pt").audios
    assert result.shape == audio.shape
    assert result.std().item() == pytest.approx(0.5, rel=0.06)
    found = float(torch.corrcoef(torch.stack([audio.flatten(), result.flatten()]))[0, 1])
    stochastic = name in ("diffwave", "ddpm", "dpmsolver++-sde", "dpmsolver++-sde-karras", "euler-ancestral", "sasolver")
    signal = 0.5**0.5  # of the cosine schedule at its middle
    assert found == pytest.approx(signal**2 if stochastic else signal, abs=0.13)
