"""Tests of prefixes processed in chunks against one pass over the whole prefix."""

import functools
import importlib
from typing import Any

import pytest
import torch

from sashimi_diffusion.generation import generate
from sashimi_diffusion.generation.generate import PREFILL_CHUNK, prefill
from sashimi_diffusion.models import AutoregressiveModel, SampleRNN, SashimiAutoregressive, WaveNetAutoregressive

WAVENET = {"residual_channels": 4, "dilation_channels": 4, "skip_channels": 8, "end_channels": 8, "n_layers": 3}
S4D = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh"}
NETWORKS: dict[str, tuple[type[AutoregressiveModel], dict[str, Any]]] = {
    "sashimi": (SashimiAutoregressive, {"d_model": 8, "n_layers": 2, "n_state": 4, "pool": [2, 3], "unet": True}),
    "sashimi-s4d": (SashimiAutoregressive, {"d_model": 8, "n_layers": 1, "n_state": 4, "pool": [4], **S4D}),
    "wavenet": (WaveNetAutoregressive, WAVENET),
    "samplernn": (SampleRNN, {"dim": 8, "embedding_dim": 4, "frame_sizes": [2, 2]}),
}


@pytest.fixture(params=NETWORKS)
def model(request: pytest.FixtureRequest) -> AutoregressiveModel:
    torch.manual_seed(0)
    kind, options = NETWORKS[request.param]
    return kind(num_tokens=32, **options).eval()


@pytest.mark.parametrize("chunk", [7, 24])
def test_chunks_equal_one_pass(model: AutoregressiveModel, chunk: int) -> None:
    tokens, later = torch.randint(32, (2, 61)), torch.randint(32, (2, 30))
    *whole, expected = prefill(model, tokens)
    *scores, state = prefill(model, tokens, chunk)
    for got, wanted in zip(scores, whole, strict=True):
        assert got.shape == (2, 61)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    with torch.no_grad():
        logits = [model.prefill(later, state)[0] for state in (state, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


def test_scores_match_the_model(model: AutoregressiveModel) -> None:
    tokens = torch.randint(32, (2, 50))
    log_probabilities, entropies, _ = prefill(model, tokens, 16)
    torch.testing.assert_close(log_probabilities, model.score(tokens), rtol=0, atol=1e-5)
    with torch.no_grad():
        logits, _ = model.prefill(model.inputs(tokens))
    expected = torch.distributions.Categorical(logits=logits.transpose(1, 2)).entropy()
    torch.testing.assert_close(entropies, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["eager", "auto"])  # "auto" compiles SaShiMi models if numba is installed
def test_a_clip_continues_after_chunks_like_after_one_pass(
    model: AutoregressiveModel, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = torch.randint(32, (2, 53))

    def clip() -> Any:
        return generate(model, 90, 2, prefix, generator=torch.Generator().manual_seed(0), engine=engine)

    whole = clip()
    module = importlib.import_module("sashimi_diffusion.generation.generate")  # the package has a function of that name
    monkeypatch.setattr(module, "prefill", functools.partial(prefill, chunk=10))
    assert torch.equal(clip().tokens, whole.tokens)
    assert torch.equal(whole.tokens[:, :53], prefix)
    assert whole.prefix_length == 53


def test_half_a_second_is_one_chunk() -> None:
    assert PREFILL_CHUNK >= 8000
