"""Tests of quantized samples as intervals."""

import math

import pytest
import torch

from sashimi_diffusion.data.quantization import encode, normalize
from sashimi_diffusion.likelihood.dequantization import Cells, Quantization, as_seen, decoded, log_cell_probability

AUDIO = torch.sin(torch.linspace(0, 30, 400, dtype=torch.float64)).reshape(1, 1, -1) * torch.linspace(0, 0.7, 400)


@pytest.mark.parametrize("kind", ["mu-law", "linear"])
def test_cells_are_those_of_the_tokens(kind: str) -> None:
    cells = Quantization(kind, 8).cells(AUDIO)
    tokens = encode(normalize(AUDIO.float(), kind), kind)
    assert (cells.lower < cells.value).all()
    assert (cells.value < cells.upper).all()
    # All of these waveforms have the same extremes and are scaled alike.
    limits = (AUDIO.amin(dim=-1, keepdim=True), AUDIO.amax(dim=-1, keepdim=True))
    inner = (1e-3, 0.5, 1 - 1e-3)
    for share in inner:
        inside = cells.lower + share * (cells.upper - cells.lower)
        assert torch.equal(encode(normalize(inside, kind, limits), kind), tokens)
    order = tokens.flatten().argsort()
    sorted_tokens, lower, upper = (part.flatten()[order] for part in (tokens, cells.lower, cells.upper))
    neighbors = sorted_tokens[1:] == sorted_tokens[:-1] + 1
    assert neighbors.sum() > 50
    torch.testing.assert_close(upper[:-1][neighbors], lower[1:][neighbors])


def test_cells_of_pcm_are_steps_around_the_rounded_values() -> None:
    cells = Quantization().cells(AUDIO)
    assert ((cells.value - AUDIO).abs() <= 2.0**-16).all()
    torch.testing.assert_close(cells.upper - cells.lower, torch.full_like(AUDIO, 2.0**-15))
    assert str(Quantization()) == "16-bit PCM"
    assert str(Quantization("mu-law", 8)) == "8-bit mu-law"


def test_widths_scale_with_gain_and_deviation_but_not_with_pre_emphasis() -> None:
    cells = Quantization().cells(AUDIO)
    seen = as_seen(cells, torch.full((1, 1, 1), 3.0, dtype=torch.float64), 0.9, 0.5)
    torch.testing.assert_close(seen.upper - seen.lower, torch.full_like(AUDIO, 6 * 2.0**-15), rtol=1e-9, atol=0)
    torch.testing.assert_close(seen.value[..., 1:], 6 * (cells.value[..., 1:] - 0.9 * cells.value[..., :-1]))


def test_probabilities_of_all_cells_sum_to_one_and_tails_are_exact() -> None:
    edges = torch.linspace(-50, 50, 1001, dtype=torch.float64)
    cells = Cells(edges[:-1].reshape(1, 1, -1), edges[1:].reshape(1, 1, -1), edges[:-1].reshape(1, 1, -1))
    mean = torch.tensor(0.37, dtype=torch.float64)
    logs = log_cell_probability(cells, mean, torch.ones(1, 1, 1, dtype=torch.float64))
    assert logs.isfinite().all()
    torch.testing.assert_close(logs.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    # In the far tails, the density falls exponentially inside of a cell.
    far = float(logs[0, 0, 900])
    start = 40.0 - 0.37
    expected = -(start**2) / 2 - math.log(math.sqrt(2 * math.pi) * start) + math.log1p(-math.exp(-0.1 * start))
    assert far == pytest.approx(expected, rel=1e-4)


def test_a_decoder_with_normal_errors_costs_their_entropy() -> None:
    errors = torch.randn(1, 1, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    cells = Quantization().cells(errors)
    bits = -float(decoded(cells, torch.zeros_like(errors))) / 20_000 / math.log(2)
    assert bits == pytest.approx(math.log2(0.01 * 2**15 * math.sqrt(2 * math.pi * math.e)), abs=0.03)
