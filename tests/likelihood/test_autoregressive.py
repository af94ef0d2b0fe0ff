"""Tests of the likelihood of recordings under autoregressive models."""

import math

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood import autoregressive, quantization_of, token_bits_per_sample
from sashimi_diffusion.models import SashimiAutoregressive
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline


@pytest.fixture(scope="module")
def pipe() -> SashimiAutoregressivePipeline:
    torch.manual_seed(0)
    model = SashimiAutoregressive(sample_rate=100, sample_size=64, d_model=8, n_layers=1, pool=[4], n_state=4).eval()
    return SashimiAutoregressivePipeline(model)


def test_bits_are_the_scores_of_the_tokens_in_any_chunks(
    pipe: SashimiAutoregressivePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    found = token_bits_per_sample(pipe, audio)
    scores = pipe.model.score(pipe.prefix_tokens(audio))
    torch.testing.assert_close(found.bits, -scores.double().mean(dim=1) / math.log(2), rtol=1e-5, atol=1e-6)
    assert (found.standard_error == 0).all()
    monkeypatch.setattr(autoregressive, "CHUNK", 16)
    torch.testing.assert_close(token_bits_per_sample(pipe, audio).bits, found.bits, rtol=1e-5, atol=1e-6)
    assert str(quantization_of(pipe)) == "8-bit mu-law"


def test_recordings_that_cannot_be_scaled_are_refused(pipe: SashimiAutoregressivePipeline) -> None:
    with pytest.raises(UserError, match="same value throughout"):
        token_bits_per_sample(pipe, torch.zeros(2, 50))
    with pytest.raises(UserError, match="expected \\(B, 1, L\\)"):
        token_bits_per_sample(pipe, torch.zeros(1, 2, 50))
